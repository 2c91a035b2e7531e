"""SAE on the differences of both models' activations."""
