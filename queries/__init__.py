"""Direct questions to the models of a pair: answers, log-probabilities, candidates.
The same for tools and notebooks.
"""
