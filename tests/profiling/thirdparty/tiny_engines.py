"""A minimal third-party backend that really computes.

Its engines are JSON files. They compute logits by a matrix product; ``busy_ms`` is the duration of a
call. The other keys make an engine misbehave in ways that the harness must survive.

A process that loads an engine gets a clock that only the engine advances (`EngineClock`), so that
measurements do not depend on the machine. With ``wall_clock`` the system clock is used and calls really
take their time.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.engines import Availability, Built, TensorSpec
from optimizer.errors import MissingDevice
from optimizer.results import LayerInfo


class EngineClock:
    """A clock that advances only while an engine computes or a thread sleeps.

    Every thread has its own, so streams run concurrently on any machine.
    """

    def __init__(self) -> None:
        self._real = time.perf_counter_ns()
        self._passed = threading.local()
        self.spins = False
        """Whether threads of the engine are busy between calls."""

    def install(self) -> None:
        """Replace the functions of `time` that this process uses for measuring."""
        assert "pytest" not in sys.modules, "only worker processes get this clock"
        time.perf_counter_ns = self.now_ns
        time.perf_counter = lambda: self.now_ns() / 1e9
        time.process_time = lambda: self._ns("worked") / 1e9
        time.sleep = lambda seconds: self.pass_ms(1e3 * seconds, works=self.spins)

    def now_ns(self) -> int:
        return self._real + self._ns("elapsed")

    def pass_ms(self, milliseconds: float, *, works: bool = True) -> None:
        """Advance the clock, with or without using CPU time."""
        ns = int(milliseconds * 1e6)
        self._passed.elapsed = self._ns("elapsed") + ns
        self._passed.worked = self._ns("worked") + ns * works

    def _ns(self, name: str) -> int:
        return getattr(self._passed, name, 0)


CLOCK = EngineClock()
really_sleep = time.sleep


class TinyEngines:
    name = "tiny"
    suffix = ".tiny"
    libraries = ("numpy",)

    def availability(self) -> Availability:
        return Availability(True, True, "numpy")

    def device(self) -> dict[str, Any]:
        return {"kind": "cpu"}

    def engine_settings(self, settings: Any) -> dict[str, Any]:
        return {}

    def build(self, graph: Path, output: Path, settings: Any, progress: Any) -> Built:
        output.write_bytes(graph.read_bytes())
        return Built(layers=[], seconds=0.0)

    def load(self, engine: Path, *, threads: int | None = None, device: str | None = None) -> Any:
        behaviour = json.loads(engine.read_text())
        if behaviour.get("needs_device"):
            raise MissingDevice("no such accelerator here", hint="buy one")
        if "print" in behaviour:
            print(behaviour["print"], flush=True)
            os.write(1, b"printed by native code\n")
        if "load_error" in behaviour:
            raise RuntimeError(behaviour["load_error"])
        if "crash_at_load" in behaviour:
            print("the library's last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        behaviour["start"] = _count_start(engine)
        if not behaviour.get("wall_clock"):
            CLOCK.spins = behaviour.get("spins", False)
            CLOCK.install()
        return (LayeredSession if "layers" in behaviour else TinySession)(behaviour)


def _count_start(engine: Path) -> int:
    """Number of previous loads of the engine."""
    counter = engine.with_name(f"{engine.name}.starts")
    before = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(before + 1))
    return before


class ConcurrentTinyEngines(TinyEngines):
    name = "tiny-streams"
    suffix = ".tiny"

    def load_streams(
        self,
        engine: Path,
        *,
        streams: int,
        threads: int | None = None,
        device: str | None = None,
    ) -> list[Any]:
        return [self.load(engine, threads=threads, device=device) for _ in range(streams)]


class TinySession:
    def __init__(self, behaviour: dict[str, Any]) -> None:
        size = behaviour.get("image_size", 8)
        shape: tuple[int | None, ...] = (behaviour.get("batch"), 3, size, size)
        if behaviour.get("uint8"):
            shape = (behaviour.get("batch"), size, size, 3)
        self.input = TensorSpec("images", shape, "uint8" if behaviour.get("uint8") else "float32")
        self.output = TensorSpec("logits", (behaviour.get("batch"), 10), "float32")
        self.behaviour = behaviour
        self.calls = 0

    def run(self, batch: Any) -> Any:
        bound = self.bind(batch)
        bound.calls = self.calls
        bound.enqueue()
        bound.wait()
        self.calls = bound.calls
        return bound.output().copy()

    def bind(self, batch: Any) -> TinyBound:
        return TinyBound(self.behaviour, batch)

    def layers(self) -> list[Any]:
        return []

    def close(self) -> None:
        pass


class LayeredSession(TinySession):
    """Reports layer times: ``layers`` maps names to milliseconds."""

    def time_layers(self, batch: Any, calls: int) -> list[Any]:
        if "crash_in_layers" in self.behaviour:
            os.kill(os.getpid(), signal.SIGSEGV)
        return [
            LayerInfo(
                name=name, torch_names=[name], type="Tiny", precision="fp32",
                time_ms=spent, bytes=len(batch) * 1000,
            )
            for name, spent in self.behaviour["layers"].items()
        ]  # fmt: skip


class TinyBound:
    def __init__(self, behaviour: dict[str, Any], batch: Any) -> None:
        self.behaviour = behaviour
        factors = behaviour.get("start_factors", [1.0])  # memory layout, for example
        self.factor = factors[behaviour["start"] % len(factors)]
        self.batch = batch.reshape(len(batch), -1).astype(np.float32)
        size = self.batch.shape[1]
        self.weights = np.random.default_rng(0).standard_normal((size, 10), np.float32)
        self.calls = 0
        self.started = 0
        self.moods = np.random.default_rng(behaviour["start"])
        self.logits: Any = None
        self.hoard: list[bytes] = []

    def upload(self) -> None:
        self._take(self.behaviour.get("upload_ms", 0.0))

    def enqueue(self) -> None:
        self.started = time.perf_counter_ns()
        self.calls += 1
        self.logits = self.batch @ self.weights
        self._misbehave()

    def wait(self) -> None:
        slower = self.behaviour.get("cold_factor", 1.0) - 1
        warmth = math.exp(-self.calls / self.behaviour.get("cold_calls", 1))
        mood = math.exp(self.behaviour.get("wanders", 0.0) * self.moods.normal())
        # Never zero: with a clock that only the engine advances, a block would not end.
        busy = self.behaviour.get("busy_ms", 0.05) * (1 + slower * warmth) * mood * self.factor
        self._take(busy, since=self.started)
        if "sleep_ms" in self.behaviour:  # sleeping for zero seconds takes time
            time.sleep(self.behaviour["sleep_ms"] / 1e3)

    def download(self) -> None:
        self._take(self.behaviour.get("download_ms", 0.0))

    def output(self) -> Any:
        return self.logits

    def _misbehave(self) -> None:
        after = self.behaviour.get("after", 0)
        signal_file = self.behaviour.get("once_exists")
        if self.calls <= after or (signal_file and not Path(signal_file).exists()):
            return
        if "hang" in self.behaviour:
            really_sleep(3600)
        if "crash" in self.behaviour:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "exit" in self.behaviour:
            os._exit(self.behaviour["exit"])
        if "raise" in self.behaviour:
            raise RuntimeError(self.behaviour["raise"])
        if "nan" in self.behaviour:
            self.logits[0, 3] = np.nan
        if "leak_bytes" in self.behaviour:
            self.hoard.append(b"x" * self.behaviour["leak_bytes"])

    def _take(self, milliseconds: float, since: int | None = None) -> None:
        if not self.behaviour.get("wall_clock"):
            CLOCK.pass_ms(milliseconds)
            return
        end = (since or time.perf_counter_ns()) + int(milliseconds * 1e6)
        while time.perf_counter_ns() < end:
            pass
