"""Base models, organisms and their training data. Ground truth lives in `diffing_mcp.organisms.ground_truth` and is
imported by graders only.
"""
