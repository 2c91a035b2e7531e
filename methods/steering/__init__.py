"""Steering: what a model writes when a direction is added to its residual stream."""
