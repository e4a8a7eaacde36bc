"""Time per layer of ResNet-50 at 224 px on this CPU, compared with the ceilings of the machine.

    python benchmarks/layers.py [--duration 10s]

``resnet-opt profile`` times FP32 and INT8 on OpenVINO and ONNX Runtime, and PyTorch eager, layer by
layer, each engine in its own process, and measures the ceilings in the same run. Weights and images
are random and seeded: the figures show speed, not accuracy. Writes ``reports/cpu/layers.json`` and
``reports/cpu/layers.md``. ``--write-only`` regenerates the text from the recorded JSON file.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import optimizer
from optimizer.models import load_model, save_checkpoint
from optimizer.results import EngineProfile, ProfileResult, TimedPart, read_result, write_result
from optimizer.units import parse_duration

REPORTS = Path(__file__).parent.parent / "reports" / "cpu"
ENGINES = (("openvino", ".blob"), ("onnxruntime", ".ort.onnx"))


def measure(duration_s: float) -> ProfileResult:
    """Build the engines and profile them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, graph = folder / "pytorch.safetensors", folder / "model.onnx"
        save_checkpoint(load_model("resnet50:random"), checkpoint, details={})
        optimizer.export(str(checkpoint), graph)
        save_images(folder / "noise.npz")
        stats = optimizer.calibrate(
            graph, folder / "stats.npz", calib=str(folder / "noise.npz"), calib_images=32
        ).path
        paths = [checkpoint]
        for engine, suffix in ENGINES:
            for precision in ("fp32", "int8"):
                path = folder / f"{engine}-{precision}{suffix}"
                optimizer.build(graph, path, precision=precision, engine=engine, stats=stats)
                paths.append(path)
        result = optimizer.profile(paths, duration=f"{duration_s}s", remeasure=True)
    for profiled in result.engines:
        profiled.file = profiled.name  # the folder was temporary
    return result


def check(result: ProfileResult) -> None:
    """Refuse to record implausible ceilings.

    Raises:
        SystemExit: The FP32 rate per core is implausible (a wrong unit), or the INT8 rate is below
            half of the FP32 rate (a plain loop instead of an optimized kernel).
    """
    assert result.ceilings is not None, "these engines run on the CPU"
    products, threads = result.ceilings.compute, result.ceilings.threads
    if not 1e9 < products["fp32"].rate / threads < 1e12:
        raise SystemExit(f"FP32 products at {products['fp32'].rate:.3g} operations per second")
    if products["int8"].rate < 0.5 * products["fp32"].median:
        raise SystemExit(f"INT8 products at {products['int8'].rate:.3g} operations per second")


def save_images(path: Path) -> None:
    """Write seeded noise for calibration; random weights need no photographs."""
    images = np.random.default_rng(0).integers(0, 256, (32, 224, 224, 3), np.uint8)
    np.savez(path, images=images, labels=np.arange(32) % 10)


def text(result: ProfileResult) -> str:
    """The report in Markdown."""
    lines = [
        "# Where the time of ResNet-50 goes",
        "",
        (
            f"Measured by `python benchmarks/layers.py` at {result.created}; all values are in "
            "`layers.json`. How a layer is timed, what is not in its time, and what the ceilings are is "
            "in [measuring.md](../../docs/measuring.md). Random weights."
        ),
        "",
        (
            f"{result.device['cpu']}, {result.settings['threads']} threads, batch "
            f"{result.settings['batch']}."
        ),
        "",
        *ceilings(result),
        *overview(result.engines),
        *int8_against_fp32(result.engines),
    ]
    for engine in result.engines:
        lines += [*blocks(engine), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def ceilings(result: ProfileResult) -> Iterator[str]:
    """The ceilings of the machine."""
    measured = result.ceilings
    assert measured is not None, "these engines run on the CPU"
    yield "## The ceilings"
    yield ""
    yield "| ceiling | fastest round | median | what |"
    yield "|---|---:|---:|---|"
    for kind, one in measured.compute.items():
        yield f"| {kind} | {one.rate / 1e9:.0f} G/s | {one.median / 1e9:.0f} | {one.how} |"
    for kind, one in (("memory", measured.memory), ("cache", measured.cache)):
        yield f"| {kind} | {one.rate / 1e9:.1f} GB/s | {one.median / 1e9:.1f} | {one.how} |"
    yield ""


def overview(engines: Sequence[EngineProfile]) -> Iterator[str]:
    """Whole calls and the sums of their layers."""
    yield "## Whole calls"
    yield ""
    yield "| engine | whole call, ms | layers, ms | in no layer, ms | of the ceilings |"
    yield "|---|---:|---:|---:|---:|"
    for one in engines:
        if one.whole_ms is None:
            yield f"| {one.name} | {one.status}: {one.error} | | | |"
            continue
        low, high = one.whole_ci95_ms or (one.whole_ms, one.whole_ms)
        roof = sum(part.roof_ms or 0.0 for part in one.blocks)
        yield (
            f"| {one.name} | {one.whole_ms:.2f} [{low:.2f}, {high:.2f}] | {one.layers_ms:.2f} "
            f"| {one.outside_ms:+.2f} | {roof / one.whole_ms:.0%} |"
        )
    yield ""


def int8_against_fp32(engines: Sequence[EngineProfile]) -> Iterator[str]:
    """INT8 time by kind of layer, and the speed-up of each block."""
    yield "## Where the INT8 time goes"
    yield ""
    for backend, _ in ENGINES:
        pair = {e.precision: e for e in engines if e.backend == backend and e.status == "ok"}
        if set(pair) != {"fp32", "int8"}:
            continue
        low, high = pair["int8"], pair["fp32"]
        products = sum(part.time_ms for part in low.layers if part.flops)
        other = sum(part.time_ms for part in low.layers if not part.flops and part.torch_names)
        added = sum(part.time_ms for part in low.layers if not part.torch_names)
        yield (
            f"{backend}: convolutions and the classifier {products:.2f} ms, pooling and additions "
            f"{other:.2f} ms, what the engine adds (quantizing, reorders) {added:.2f} ms."
        )
        yield ""
        yield "| block | FP32, ms | INT8, ms | INT8 is faster by | INT8 of its ceiling | bound by |"
        yield "|---|---:|---:|---:|---:|---|"
        before = {part.name: part.time_ms for part in high.blocks}
        for part in low.blocks:
            if part.name in before and part.time_ms:
                yield (
                    f"| {part.name} | {before[part.name]:.3f} | {part.time_ms:.3f} "
                    f"| {before[part.name] / part.time_ms:.2f}x | {_reached(part)} "
                    f"| {part.bound or '–'} |"
                )
        yield ""


def blocks(engine: EngineProfile) -> Iterator[str]:
    """All blocks of one engine."""
    yield f"## {engine.name}"
    yield ""
    if engine.status != "ok":
        yield f"{engine.status}: {engine.error}"
        return
    yield "| block | ms | 95 % interval | share | GFLOP/s | FLOP/byte | of its ceiling | bound by |"
    yield "|---|---:|---|---:|---:|---:|---:|---|"
    for part in engine.blocks:
        low_high = part.time_ci95_ms
        spread = f"[{low_high[0]:.3f}, {low_high[1]:.3f}]" if low_high else "–"
        rate = f"{part.flops_per_s / 1e9:.0f}" if part.flops_per_s else "–"
        dense = f"{part.intensity:.1f}" if part.intensity else "–"
        yield (
            f"| {part.name} | {part.time_ms:.3f} | {spread} | {part.share:.1%} | {rate} | {dense} "
            f"| {_reached(part)} | {part.bound or '–'} |"
        )


def _reached(part: TimedPart) -> str:
    share = part.ceiling_share
    return "–" if share is None else f"{share:.0%} of {part.ceiling}"


def main() -> None:
    """Measure or read the recorded result, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--duration", default="10s", help="time per engine")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the two files")
    parser.add_argument("--write-only", action="store_true")
    options = parser.parse_args()
    file = options.output / "layers.json"
    if not options.write_only:
        options.output.mkdir(parents=True, exist_ok=True)
        measured = measure(parse_duration(options.duration))
        check(measured)
        write_result(measured, file)
    result = read_result(file)
    if not isinstance(result, ProfileResult):
        raise SystemExit(f"{file.name} is not a profile")
    file.with_suffix(".md").write_text(text(result), encoding="utf-8")
    print(text(result))


if __name__ == "__main__":
    main()
