"""Contrastive decoding: text written with the difference of the two models amplified."""
