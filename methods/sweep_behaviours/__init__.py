"""A sweep of short questions over many kinds of request, answered by both models and compared."""
