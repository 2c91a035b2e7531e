"""Patchscope: what a direction reads as when it stands in for a token that the model is asked to repeat."""
