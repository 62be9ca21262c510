"""Tests of what meets the batch systems."""
