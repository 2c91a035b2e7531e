"""Sparse dictionaries over activations: training, files, latent scaling and the latent table. Shared by
`sae_difference` and `crosscoder`.
"""
