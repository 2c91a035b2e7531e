"""`python -m diffing_mcp` is the command `diffing`."""

from diffing_mcp.cli.main import main

if __name__ == "__main__":
    main()
