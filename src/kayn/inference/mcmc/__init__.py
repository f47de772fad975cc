"""Massively parallel Gibbs sampling: the current state is one of K particles of every latent."""
