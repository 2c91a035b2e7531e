"""`make bench`: what the corpus pass, the residency, generation and the server cost, as ratios that hold on any
machine.
"""
