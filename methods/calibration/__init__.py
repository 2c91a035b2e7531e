"""Verdicts as probabilities: what methods measure of finetunes that taught nothing, and what that says of a run."""
