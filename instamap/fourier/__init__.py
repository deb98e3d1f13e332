"""Contrast transfer, central slices of a map and their adjoint, and what scales a map."""
