"""Motion: coordinates that order particles, maps of their states, and the field that bends one into
another.
"""
