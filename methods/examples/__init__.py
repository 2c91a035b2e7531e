"""Max-activating examples: found while scores stream by, written, read and shown."""
