"""Many pairs at once: what is to be done, what of it is done already, and workers, in this process or on a Ray cluster,
that do the rest.
"""
