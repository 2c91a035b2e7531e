"""Ground truth and a finding in, a grade out. Imports `diffing_mcp.organisms.ground_truth` and nothing else of the
project but errors.
"""
