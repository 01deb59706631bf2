"""Faster forward and backward passes for parts of a model, with the same results."""
