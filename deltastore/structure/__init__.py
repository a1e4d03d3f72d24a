"""Which tensor of a delta goes where in a new base, and what is said where one has no place."""
