"""Tests of fedkd.models."""
