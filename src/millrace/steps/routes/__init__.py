"""Ways of a copy that are faster than rows through Python: one file for each pair of ends."""
