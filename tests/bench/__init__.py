"""Measurements; not part of the test suite."""
