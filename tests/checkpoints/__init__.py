"""Tests of fedkd.checkpoints."""
