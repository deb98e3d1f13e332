"""Deformations: where a particle finds its points in the common density."""
