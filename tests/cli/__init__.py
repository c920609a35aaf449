"""Tests of fedkd.cli."""
