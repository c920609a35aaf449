"""Tests of fedkd.inference."""
