"""The bundle that desktop hosts install with one click (.mcpb of type `uv`)."""
