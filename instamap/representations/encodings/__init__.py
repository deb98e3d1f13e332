"""Encodings of points by multiresolution grids, in torch and compiled."""
