"""Weight difference: how much each matrix changed, in how many directions, and what those read as."""
