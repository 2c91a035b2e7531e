"""Ground truth and a finding in, a grade out. Imports `organisms.ground_truth` and nothing else of the project but errors."""
