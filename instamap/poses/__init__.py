"""Poses refined beside the map: a rigid correction of each particle, in closed form on what its
image says.
"""
