"""The `diffing` command. Thin: every subcommand imports its room when it is called, so that `--help`
answers at once.
"""
