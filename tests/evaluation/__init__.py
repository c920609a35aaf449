"""Tests of fedkd.evaluation."""
