"""Representations: fields over the box that can be fitted."""
