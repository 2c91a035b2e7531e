"""Ways of comparing a finetuned model with its base: the contract, the registry, the run store, and one folder a
method.
"""
