"""KL divergence between the next-token distributions of the two models."""
