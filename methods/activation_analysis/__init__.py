"""How far the two models' activations are apart, token by token."""
