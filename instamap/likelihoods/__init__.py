"""Likelihoods: how probable an image is, given its prediction."""
