"""The steps performed on a TensorRT session while recording, and again during replay."""

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
    """Use every function of a session; returns the results, including failures.

    Args:
        opened: The engine.
        batches: A batch of images for each profile of the engine.
    """
    results: dict[str, Any] = {}

    def step(name: str, action: Callable[[], Any]) -> None:
        try:
            results[name] = action()
        except ResnetOptError as error:
            results[name] = {"error": type(error).__name__, "message": error.message}

    sessions: list[TensorRtSession] = []
    step("open", lambda: sessions.append(TensorRtSession(opened)))
    if not sessions:
        return results
    session = sessions[0]
    try:
        results["profiles"] = [[p.low, p.best, p.high] for p in session.profiles]
        step("layers", lambda: _documents(session.layers()))
        for number, batch in enumerate(batches):
            step(f"run {number}", partial(_run, session, batch))
            step(f"gpu_ms {number}", partial(_gpu_ms, session, batch))
            step(f"layer times {number}", partial(_layer_times, session, batch))
        session.cuda_graph = True
        step("cuda graph", lambda: _gpu_ms(session, batches[0]))
        results["notes"] = list(session.notes)
    finally:
        step("close", session.close)
    return results


def _run(session: TensorRtSession, batch: Array) -> list[int]:
    """The shape of the outputs; a replay has no GPU memory to reproduce their values."""
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
    """The same engine with recorded calls."""

    def recorded_factory(make: Callable[[], Any]) -> Callable[[], Any]:
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
        make_context=recorded_factory(opened.make_context),
        make_timing_context=None if timing is None else recorded_factory(timing),
    )
