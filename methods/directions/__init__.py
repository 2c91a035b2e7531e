"""Directions of the residual stream: where they come from, and what the logit lens reads in them."""
