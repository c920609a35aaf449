"""Tests of the planners that learn."""
