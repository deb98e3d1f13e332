"""Particle images with a known answer, from atomic models and density maps."""
