"""Tests of fedkd, laid out as the code they test."""
