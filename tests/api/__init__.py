"""A valid call of everything public, by package, and what comes of changing one argument of each."""
