"""The Python API, whose names `import diffing_mcp` offers. The command line calls the same functions."""
