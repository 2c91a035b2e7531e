"""Trigger search: what in front of a question makes the finetuned model give answers that it else keeps to itself."""
