"""Finished runs judged against ground truth, or by a language model that reads them."""
