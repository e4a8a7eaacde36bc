"""Third-party engines, as installed by the tests of `optimizer.profiling`."""

from tests.profiling.conftest import make_engine

__all__ = ["make_engine"]
