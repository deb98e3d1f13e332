"""Statistics of the normal equations, which images say of a density: gathered, kept and solved."""
