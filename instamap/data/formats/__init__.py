"""Files of particles as programs write them; each becomes one particle table."""
