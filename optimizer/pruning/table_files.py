"""Latency tables as artifacts: measured once per network, engine, precision and machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.artifacts import Artifact, Cache, Plan, library_versions, produce
from optimizer.engines import get_backend
from optimizer.engines.choice import choose_engine
from optimizer.environment import fingerprint
from optimizer.errors import UsageError
from optimizer.models import Model, Widths
from optimizer.options import TableOptions
from optimizer.profiling.ceilings import ceilings
from optimizer.progress import Progress, Silent
from optimizer.pruning.prunable import check_prunable
from optimizer.pruning.table_measuring import measure_table
from optimizer.pruning.table_roofline import roofline_table
from optimizer.results import LatencyTable, read_result, write_result
from optimizer.search.cost import GPU, Machine
from optimizer.targets.hardware import cpu_features

__all__ = ["check_fits", "latency_table", "read_table", "table_engine"]

REVISION = 1
"""Raised when the same settings give another table."""
_LAYER_TIMES = ("openvino", "onnxruntime", "tensorrt")
"""Built-in engines whose layers are timed; the torch engine runs checkpoints, not graphs."""


def table_engine(options: TableOptions) -> str:
    """The engine's name, with ``auto`` resolved.

    Raises:
        UsageError: The engine does not compile graphs, or the precision needs a search.
        MissingDevice: ``auto``, and no engine computes the precision here.
    """
    if options.precision == "mixed":
        raise UsageError(
            "a latency table is of one precision, and mixed decides layer by layer",
            hint="use int8 or fp16",
        )
    if options.engine == "torch":
        raise UsageError(
            "the torch engine runs checkpoints as they are, which a table cannot time by layer",
            hint="use openvino, onnxruntime, tensorrt or tensorrt-rtx",
        )
    if options.engine != "auto":
        return options.engine
    chosen = choose_engine(options.precision)
    if chosen.provider is not None:
        raise UsageError(
            f"auto is ONNX Runtime's {chosen.provider} provider here, whose layers a table does not time",
            hint="--engine openvino or onnxruntime, or --precision int8",
        )
    return chosen.engine


def latency_table(
    model: Model,
    output: Path,
    options: TableOptions,
    *,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Measure a network's latency table, unless the cache has it.

    Where the engine does not run here, or reports no layer times, a roofline model takes the place of
    the measurement; the table's ``source`` and ``reason`` say so. Weights do not matter for time, so
    networks of the same widths share a table.

    Args:
        model: The network; its preprocessing determines the image size.
        output: Path of the table (``.json``).
        options: Engine, precision, batch sizes, threads, duration.
        cache: Artifact cache.
        progress: Receives progress updates.

    Raises:
        CheckpointError: The network cannot be pruned.
        UsageError: See `table_engine`.
        Inconclusive: The machine is too noisy.
    """
    progress = progress or Silent()
    engine = table_engine(options)
    prunable = check_prunable(model)
    backend = get_backend(engine)
    plan = Plan(
        kind="latency-table",
        settings={
            "revision": REVISION,
            "arch": model.arch,
            "widths": model.widths.to_dict(),
            "image_size": model.image_size,
            "channels": model.channels,
            "outputs": model.num_outputs,
            "options": options.model_dump(mode="json"),
            "engine": engine,
        },
        libraries=library_versions(*backend.libraries),
        device=fingerprint(),
    )

    def write(path: Path) -> Mapping[str, Any]:
        reason = _why_not(engine)
        if reason is None:
            table = measure_table(model, prunable, options, engine, progress)
        else:
            machine = GPU
            if not engine.startswith("tensorrt"):
                threads = options.threads or cpu_features().physical_cores
                machine = Machine.of(ceilings(threads, cache=cache, progress=progress))
            table = roofline_table(model, prunable, options, engine, machine, reason)
        write_result(table, path)
        return {"source": table.source, "reason": table.reason}

    return produce(plan, output, write, cache=cache)


def _why_not(engine: str) -> str | None:
    """Why an engine cannot be timed layer by layer here; ``None`` if it can."""
    available = get_backend(engine).availability()
    if not available.can_run:
        return f"{engine} does not run here: {available.reason}"
    return None if engine in _LAYER_TIMES else f"{engine} reports no layer times"


def read_table(path: Path) -> LatencyTable:
    """Read a table.

    Raises:
        ArtifactError: See `read_result`.
        UsageError: The file is another result.
    """
    table = read_result(path)
    if not isinstance(table, LatencyTable):
        raise UsageError(
            f"{path} is a {table.kind} result, not a latency table",
            hint="write one with resnet-opt latency-table",
        )
    return table


def check_fits(table: LatencyTable, model: Model, options: TableOptions, name: str) -> None:
    """Refuse a table of another network or purpose. Another machine is what ``--table`` is for.

    Raises:
        UsageError: The message names the difference.
    """
    engine = None if options.engine == "auto" else options.engine
    pairs = [
        ("architecture", table.arch, model.arch),
        ("image size", table.image_size, model.image_size),
        ("engine", table.engine, engine or table.engine),
        ("precision", table.precision, options.precision),
    ]
    for what, found, wanted in pairs:
        if found != wanted:
            raise UsageError(
                f"{name} is a table of {what} {found}, not {wanted}",
                hint="measure one: resnet-opt latency-table, or pass the options of the table",
            )
    if missing := sorted(set(options.batch) - {at.batch for at in table.batches}):
        raise UsageError(
            f"{name} has no times at batch {missing[0]}",
            hint=f"--batch {','.join(str(at.batch) for at in table.batches)}",
        )
    whole = Widths.from_dict(table.widths).by_block
    for block, widths in model.widths.blocks:
        wide = whole.get(block, ())
        if len(wide) != len(widths) or any(n > w for n, w in zip(widths, wide, strict=True)):
            raise UsageError(
                f"{name} is a table of another network: {block} is {list(wide)} there, {list(widths)} here",
                hint="measure one of this network: resnet-opt latency-table",
            )
