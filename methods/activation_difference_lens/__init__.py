"""Mean activation differences on unrelated text, read through the logit lens."""
