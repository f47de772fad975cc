"""Published experiments and further ones, a folder each: run from the repository's root, `python -m experiments.gmm.run`."""
