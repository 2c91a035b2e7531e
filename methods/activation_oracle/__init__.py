"""The activation oracle: a verbalizer reads activations and answers questions about them in words."""
