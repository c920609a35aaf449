"""Checkpoints: published versions of a model, and the cache of the node that uses them."""
