"""Investigators as MCP clients, and the suite that runs and stores evaluations. Imports no model code: everything goes
through the server.
"""
