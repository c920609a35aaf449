"""Tests of fedkd.distillation."""
