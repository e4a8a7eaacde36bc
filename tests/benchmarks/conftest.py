"""Engines of a third party, as the tests of `optimizer.profiling` install them."""

from tests.profiling.conftest import make_engine

__all__ = ["make_engine"]
