"""What is done with a session of TensorRT while it is recorded, and again when a record is replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from optimizer.engines.protocol import Array
from optimizer.engines.tensorrt.session import OpenEngine, TensorRtSession
from optimizer.errors import ResnetOptError
from optimizer.gpu_record.recorded_calls import Calls
from optimizer.results import LayerInfo

__all__ = ["drive", "recorded"]

_CALLS = 3


def drive(opened: OpenEngine, batches: list[Array]) -> dict[str, Any]:
    """Use a session in every way there is, cheapest first; what comes out, failures included.

    Args:
        opened: The engine.
        batches: Images for each profile of the engine.
    """
    found: dict[str, Any] = {}

    def step(name: str, do: Callable[[], Any]) -> None:
        try:
            found[name] = do()
        except ResnetOptError as error:
            found[name] = {"error": type(error).__name__, "message": error.message}

    session: list[TensorRtSession] = []
    step("open", lambda: session.append(TensorRtSession(opened)))
    if not session:
        return found
    one = session[0]
    try:
        found["profiles"] = [[p.low, p.best, p.high] for p in one.profiles]
        step("layers", lambda: _documents(one.layers()))
        for number, batch in enumerate(batches):
            step(f"run {number}", partial(_run, one, batch))
            step(f"gpu_ms {number}", partial(_gpu_ms, one, batch))
            step(f"layer times {number}", partial(_layer_times, one, batch))
        one.cuda_graph = True
        step("cuda graph", lambda: _gpu_ms(one, batches[0]))
        found["notes"] = list(one.notes)
    finally:
        step("close", one.close)
    return found


def _run(session: TensorRtSession, batch: Array) -> list[int]:
    """The shape of the outputs; their values depend on the memory of a GPU."""
    return list(session.run(batch).shape)


def _layer_times(session: TensorRtSession, batch: Array) -> list[dict[str, Any]]:
    return _documents(session.time_layers(batch, _CALLS))


def _documents(layers: list[LayerInfo]) -> list[dict[str, Any]]:
    return [layer.model_dump(mode="json") for layer in layers]


def _gpu_ms(session: TensorRtSession, batch: Array) -> list[float]:
    bound = session.bind(batch)
    try:
        bound.upload()
        spent = [bound.gpu_ms() for _ in range(_CALLS)]
        bound.download()
        if not np.all(np.isfinite(bound.output())):
            raise ResnetOptError("the outputs are not finite")
        return spent
    finally:
        bound.close()


def recorded(opened: OpenEngine, calls: Calls) -> OpenEngine:
    """The same engine, whose calls are written down."""

    def maker(make: Callable[[], Any]) -> Callable[[], Any]:
        def make_recorded() -> Any:
            context = make()
            calls.begin("engine 0", "call", "create_execution_context", []).extend(
                ["returned", None if context is None else "<context>"]
            )
            return None if context is None else calls.wrap("context", context)

        return make_recorded

    timing = opened.make_timing_context
    return replace(
        opened,
        engine=calls.wrap("engine", opened.engine),
        api=calls.wrap("cuda", opened.api),
        make_context=maker(opened.make_context),
        make_timing_context=None if timing is None else maker(timing),
    )
