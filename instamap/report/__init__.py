"""Everything that is drawn: curves, slices, coordinates and movies."""
