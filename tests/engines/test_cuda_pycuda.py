"""PyCUDA over a driver that keeps the real one's rules: a stack of contexts a thread.

The real module cannot be imported without NVIDIA's driver. Its rules are those of
``src/cpp/cuda.hpp`` of PyCUDA: memory is allocated in the context on top of the thread's stack, and a
stack that is not empty at the end of its thread aborts the process.
"""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import Any

import pytest

from optimizer.engines.cuda_pycuda import PyCuda
from optimizer.errors import ResnetOptError


class Driver(ModuleType):
    """What of ``pycuda.driver`` is used here."""

    class Error(Exception):
        """Of CUDA."""

    class MemoryError(Error):  # noqa: A001 - as the real one
        """Out of memory."""

    class LogicError(Error):
        """No context, and other misuse."""

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.stacks: dict[int, list[int]] = {}
        driver = self

        class Context:
            """A primary context."""

            def __init__(self, index: int) -> None:
                self.index = index

            def push(self) -> None:
                driver.stack().append(self.index)

            @staticmethod
            def pop() -> None:
                driver.stack().pop()

        class Device:
            """A GPU."""

            def __init__(self, index: int) -> None:
                self.index = index

            def retain_primary_context(self) -> Context:
                return Context(self.index)

            @staticmethod
            def count() -> int:
                return 2

            def name(self) -> str:
                return f"NVIDIA Test {self.index}"

            def compute_capability(self) -> tuple[int, int]:
                return (8, 9)

            def total_memory(self) -> int:
                return 1 << 34

            def pci_bus_id(self) -> str:
                return f"0000:{0x1A + self.index:02X}:00.0"

        self.Context, self.Device = Context, Device

    def stack(self) -> list[int]:
        """Of this thread."""
        return self.stacks.setdefault(threading.get_ident(), [])

    def init(self) -> None:
        """Nothing to start."""

    def mem_alloc(self, size: int) -> int:
        """An address, in the context on top."""
        if not self.stack():
            raise self.LogicError("invalid device context")
        if size > 1 << 30:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        return 4096 + self.stack()[-1]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    package, module = ModuleType("pycuda"), Driver()
    package.driver = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", module)
    return module


def test_one_context_is_current_and_none_is_left(driver: Driver) -> None:
    api = PyCuda("pycuda 1")
    for index in (0, 0, 1, 0):
        api.set_device(index)
        assert driver.stack() == [index]
        assert api.malloc(16) == 4096 + index
    api._free_all()
    assert driver.stack() == []
    api._free_all()


def test_every_thread_has_its_own_and_leaves_it(driver: Driver) -> None:
    api = PyCuda("pycuda 1")
    api.set_device(0)
    found: list[Any] = []

    def compute() -> None:
        api.set_device(0)
        found.append(api.malloc(16))
        found.append(list(driver.stack()))

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert found == [4096, [0]]
    others = [s for of, s in driver.stacks.items() if of != threading.get_ident()]
    assert others == [[]], "popped in the thread that pushed"
    assert driver.stack() == [0]
    api._free_all()


def test_its_errors_are_ours(driver: Driver) -> None:
    api = PyCuda("pycuda 1")
    with pytest.raises(ResnetOptError, match="mem_alloc: invalid device context"):
        api.malloc(16)
    api.set_device(0)
    with pytest.raises(ResnetOptError, match="mem_alloc: cuMemAlloc failed") as caught:
        api.malloc(1 << 40)
    assert "smaller batch" in str(caught.value.hint)
    api._free_all()


def test_devices_have_their_address(driver: Driver) -> None:
    devices = PyCuda("pycuda 1").devices()
    assert [(gpu.index, gpu.sm, gpu.address) for gpu in devices] == [
        (0, "sm89", "0000:1a:00"), (1, "sm89", "0000:1b:00"),
    ]  # fmt: skip
