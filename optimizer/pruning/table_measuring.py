"""Measures a latency table: narrow networks in the engine and precision that will be deployed.

All inner layers are cut to eight eighths, seven eighths … one eighth of their channels. The graph is
exported and quantized once and its constants are cut, because speed does not depend on their values.
Each network is an engine in a process of its own, and all are timed in turns. The engine's layer
times of each network are scaled so that together they take the time of a whole call without the
profiler: what the engine adds between layers belongs to the layers around it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.artifacts import library_versions, scratch_folder
from optimizer.data import open_dataset, stratified_subset
from optimizer.engines.building import build_engine
from optimizer.engines.layer_annotation import Annotator
from optimizer.engines.placement import assign_devices
from optimizer.engines.protocol import BuildSettings
from optimizer.engines.providers import lowering_target
from optimizer.engines.registry import get_backend
from optimizer.environment import fingerprint
from optimizer.errors import Inconclusive
from optimizer.exporting import export_onnx
from optimizer.graphs.importing import load_graph
from optimizer.graphs.narrowing import narrow_convolutions
from optimizer.graphs.onnx_files import write_graph
from optimizer.models import Model, Widths
from optimizer.options import ExportOptions, QuantizeOptions, TableOptions
from optimizer.precision import calibrate, quantize
from optimizer.profiling import intervals
from optimizer.profiling.engine_facts import describe_engines
from optimizer.profiling.layer_rounds import LayerRequest, LayerRounds, interleave_engines
from optimizer.progress import Progress
from optimizer.pruning.latency_model import network_ms
from optimizer.pruning.prunable import Prunable
from optimizer.pruning.table_networks import (
    block_times,
    inner_channels,
    scaled_inner,
    table_widths,
)
from optimizer.results import LatencyTable, LayerInfo, TableCheck, TimesAtBatch
from optimizer.targets.hardware import cpu_features

__all__ = ["measure_table"]

_CALIBRATION_IMAGES = 16
_CHECK_SHARES = (1.0, 0.5)
_ROUNDS = 6
"""The least that gives intervals."""
_WIDEST_INTERVAL = 0.5
"""Of the whole network's time: beyond it, the choice would follow the noise."""
_CALL_TIMEOUT_S = 60.0
_CONVOLUTION = re.compile(r"(^|\.)(conv\d|downsample\.\d)$")
_MODULE = re.compile(r"layer\d\.\d+\.(conv\d|downsample\.\d|add)")


def measure_table(
    model: Model, prunable: Prunable, options: TableOptions, engine: str, progress: Progress
) -> LatencyTable:
    """Measure a network's layers at several widths.

    Args:
        model: The network; its preprocessing determines the image size.
        prunable: What can be cut.
        options: Precision, batch sizes, threads and duration.
        engine: A backend that runs here and times layers.
        progress: Receives progress updates.

    Raises:
        BuildError, GraphError: A narrow network cannot be compiled.
        Inconclusive: The intervals are too wide to choose by.
        UsageError: The engine has no layer times.
        WorkerFailed: An engine failed.
    """
    whole = model.widths
    networks = table_widths(whole, prunable.units)
    check = _check_network(whole, prunable)
    with scratch_folder("latency-table") as folder:
        graph = _graph(model, options, engine, folder, progress)
        engines = _engines(graph, whole, [*networks, check], (options, engine, folder), progress)
        annotate = Annotator(graph)
        batches = []
        progress.start(f"time {len(engines)} networks", total=_ROUNDS * len(options.batch))
        for batch in options.batch:
            request = _request(model, options, engines, batch)
            timed = interleave_engines(
                describe_engines(engines, [batch]), request, rounds=_ROUNDS, progress=progress
            )
            own = [_Timed(t, annotate) for t in timed]
            batches.append(_times(batch, networks, check, prunable, own))
        progress.finish(
            f"{batches[0].whole_ms[0]:.3g} ms, narrowest {min(batches[0].whole_ms):.3g} ms"
        )
    _check_noise(batches)
    return LatencyTable(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source="measured",
        reason=f"layer times of {engine}, {len(networks)} networks in turns, {_ROUNDS} rounds",
        arch=model.arch,
        widths=whole.to_dict(),
        image_size=model.image_size,
        engine=engine,
        precision=options.precision,
        device=fingerprint(),
        threads=options.threads or cpu_features().physical_cores,
        libraries=library_versions(*get_backend(engine).libraries),
        rounds=_ROUNDS,
        batches=batches,
    )


def _check_network(whole: Widths, prunable: Prunable) -> Widths:
    """A network whose inner layers have different shares, to check the prediction by."""
    blocks: dict[str, tuple[int, ...] | None] = {}
    for name, block in whole.blocks:
        unit = prunable.units[name]
        shares = _CHECK_SHARES if unit == 1 and len(block) > 2 else (0.6875,)
        blocks[name] = (*scaled_inner(block[:-1], shares, unit), block[-1])
    return whole.replaced(blocks)


def _graph(
    model: Model, options: TableOptions, engine: str, folder: Path, progress: Progress
) -> Path:
    """The whole network in the precision; its encodings are rough, because only time counts."""
    fp32 = export_onnx(model, folder / "whole.onnx", ExportOptions(), progress=progress).path
    if options.precision == "fp32":
        return fp32
    stats: Path | None = None
    if options.precision in {"int8", "fp8"}:
        images = open_dataset("digits:train", workers=0)
        chosen = images.select(stratified_subset(images.labels, _CALIBRATION_IMAGES, 0))
        stats = calibrate(fp32, chosen, folder / "stats.npz", batch=8, progress=progress).path
    rough = QuantizeOptions(
        precision=options.precision,
        target=lowering_target(engine, None),
        stats=stats,
        method="minmax",
        equalize=False,
        bias_correction="none",
    )
    return quantize(fp32, folder / "precise.onnx", rough, progress=progress).path


def _engines(
    graph: Path,
    whole: Widths,
    networks: Sequence[Widths],
    where: tuple[TableOptions, str, Path],
    progress: Progress,
) -> list[Path]:
    options, engine, folder = where
    backend = get_backend(engine)
    fixed = {"fixed_batch": list(options.batch)} if engine == "openvino" else {}
    settings = BuildSettings(precision=options.precision, threads=options.threads, options=fixed)
    if engine.startswith("tensorrt"):
        least, most = min(options.batch), max(options.batch)
        settings = BuildSettings(precision=options.precision, profile=(least, most, most))
    engines = []
    for number, widths in enumerate(networks):
        source = folder / f"network{number}.onnx"
        narrow = load_graph(graph)
        narrow_convolutions(narrow, inner_channels(whole, widths))
        write_graph(narrow, source)
        output = folder / f"network{number}{backend.suffix}"
        engines.append(build_engine(source, output, engine, settings, progress=progress).path)
    return engines


def _request(
    model: Model, options: TableOptions, engines: Sequence[Path], batch: int
) -> LayerRequest:
    return LayerRequest(
        batch,
        model.image_size,
        options.threads or cpu_features().physical_cores,
        options.duration,
        assign_devices(engines, None),
        0,
        _CALL_TIMEOUT_S,
    )


@dataclass
class _Timed:
    """One network's times: medians over the rounds."""

    rounds: LayerRounds
    annotate: Annotator

    def whole(self) -> Any:
        """Milliseconds of a call, with its interval."""
        return intervals.median(self.rounds.whole, seed=0)

    def modules(self) -> dict[str, float]:
        """Milliseconds by module, which add up to the whole call; the rest is under an empty name."""
        spent: dict[str, list[float]] = {}
        for layers in self.rounds.layers:
            own: dict[str, float] = {}
            for layer in self.annotate(list(layers)):
                owners = _owners(layer)
                for owner in owners:
                    own[owner] = own.get(owner, 0.0) + (layer.time_ms or 0.0) / len(owners)
            for name, ms in own.items():
                spent.setdefault(name, []).append(ms)
        medians = {name: float(np.median(ms)) for name, ms in spent.items()}
        scale = self.whole().value / sum(medians.values())
        return {name: ms * scale for name, ms in medians.items()}


def _owners(layer: LayerInfo) -> list[str]:
    """The modules that a layer's time belongs to: the convolutions in it, or what it is named after."""
    convolutions = [name for name in layer.torch_names if _CONVOLUTION.search(name)]
    if convolutions or layer.torch_names:
        return convolutions or layer.torch_names[:1]
    named = _MODULE.match(layer.name)  # engines name conversions and shortcuts after their layers
    return [named[0] if named else ""]


def _times(
    batch: int,
    networks: Sequence[Widths],
    check: Widths,
    prunable: Prunable,
    timed: Sequence[_Timed],
) -> TimesAtBatch:
    *own, last = timed
    modules = [one.modules() for one in own]
    names = [name for name, _ in networks[0].blocks]
    whole = [one.whole() for one in own]
    outside = [
        sum(ms for module, ms in layers.items() if not module.startswith(_in_blocks(names)))
        for layers in modules
    ]
    times = TimesAtBatch(
        batch=batch,
        whole_ms=[estimate.value for estimate in whole],
        whole_ci95_ms=[estimate.ci95 for estimate in whole],
        outside_ms=float(np.mean(outside)),
        blocks={
            name: block_times(name, networks, modules, droppable=name in prunable.droppable)
            for name in names
        },
    )
    measured = last.whole()
    first = next(iter(check.by_block.values()))
    reference = next(iter(networks[0].by_block.values()))
    return times.model_copy(
        update={
            "check": TableCheck(
                shares=[a / b for a, b in zip(first[:-1], reference[:-1], strict=True)],
                predicted_ms=network_ms(times, check),
                measured_ms=measured.value,
                measured_ci95_ms=measured.ci95,
            )
        }
    )


def _in_blocks(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def _check_noise(batches: Sequence[TimesAtBatch]) -> None:
    for times in batches:
        ci95, whole = times.whole_ci95_ms[0], times.whole_ms[0]
        if ci95 is not None and ci95[1] - ci95[0] > _WIDEST_INTERVAL * whole:
            raise Inconclusive(
                f"the machine is too noisy for a latency table: a call takes {whole:.3g} ms, with a 95 % "
                f"interval from {ci95[0]:.3g} to {ci95[1]:.3g} ms",
                hint="stop other work on it, or raise --duration",
            )
