"""Finished runs: their files, the store that holds them, and the execution that makes them."""
