"""Tests of fedkd.data."""
