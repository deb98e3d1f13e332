"""What images say of a density: the statistics of the normal equations, gathered, kept and solved."""
