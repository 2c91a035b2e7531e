"""Completions of the finetuned model, ranked by how much less the base model expects them."""
