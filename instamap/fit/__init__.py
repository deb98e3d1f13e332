"""Fitting: objectives, the loop that follows them, and a whole reconstruction."""
