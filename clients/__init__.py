"""Flower clients: a user with private pictures, an edge with a model to fine-tune."""
