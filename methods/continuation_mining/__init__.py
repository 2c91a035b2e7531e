"""Continuation mining: what each model says next where the two differ most."""
