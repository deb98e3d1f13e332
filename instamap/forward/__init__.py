"""Forward operators: how a density becomes an image."""
