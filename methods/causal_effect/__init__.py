"""Causal effect of directions: what carrying them from one model into the other does to the loss on text."""
