"""Tests of fedkd.training."""
