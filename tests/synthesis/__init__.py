"""Tests of fedkd.synthesis."""
