"""Checks of particles before anything is fitted: what cannot be right, and what is doubtful."""
