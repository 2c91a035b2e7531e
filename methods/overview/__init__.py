"""One digest of what several methods say of a pair: the plan of what to run, and the digest of what was found."""
