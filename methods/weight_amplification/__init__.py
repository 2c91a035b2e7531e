"""Weight amplification: what a model writes when the finetune's weight difference counts more than once."""
