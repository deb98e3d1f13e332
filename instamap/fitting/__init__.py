"""Fitting: objectives, and the loop that lowers them until held-out images are most likely."""
