"""Crosscoder over both models' activations, with latent scaling."""
