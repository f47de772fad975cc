"""Published experiments and others, a folder each: run from the repository's root, `python -m experiments.gmm.run`."""
