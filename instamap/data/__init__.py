"""Particles: their STAR files, image stacks, noise levels, and made-up ones with a known answer."""
