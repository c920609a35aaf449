"""Planners that learn, as baselines of the exact ones and for worlds whose quality nobody can write down."""
