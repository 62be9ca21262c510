"""Fixtures of the agent's tests."""

from tests.lab.fixtures import lab

__all__ = ["lab"]
