"""Logit-difference mining: which next tokens the finetuned model favours everywhere."""
