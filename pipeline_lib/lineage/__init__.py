"""Where every output came from, across runs, commits and experiments."""
