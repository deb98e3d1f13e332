"""Rotations and lattices: pure functions of tensors."""
