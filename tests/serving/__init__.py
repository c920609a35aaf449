"""Tests of fedkd.serving."""
