"""Tests of fedkd.planning."""
