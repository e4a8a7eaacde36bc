"""Where the time of ResNet-50 at 224 px goes on this CPU, and how far each block is from the ceilings.

    python benchmarks/layers.py [--duration 10s]

FP32 and INT8 on OpenVINO and ONNX Runtime, and PyTorch eager, by ``resnet-opt profile``: layer by
layer, each engine in a process of its own, against ceilings measured anew in the same run. Random
seeded weights and images: the numbers are about speed, not accuracy. Writes
``reports/cpu/layers.json`` and ``reports/cpu/layers.md``. ``--write-only`` makes the text again from
the recorded JSON file.
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
        found = optimizer.profile(paths, duration=f"{duration_s}s", remeasure=True)
    for profiled in found.engines:
        profiled.file = profiled.name  # where it lay is gone
    return found


def check(result: ProfileResult) -> None:
    """Refuse to record ceilings that cannot be those of the machine.

    Raises:
        SystemExit: FP32 products outside of what a core computes, which would be a wrong unit, or INT8
            products below half of them: a plain loop instead of a kernel.
    """
    assert result.ceilings is not None, "these engines run on the CPU"
    products, threads = result.ceilings.compute, result.ceilings.threads
    if not 1e9 < products["fp32"].rate / threads < 1e12:
        raise SystemExit(f"FP32 products at {products['fp32'].rate:.3g} operations a second")
    if products["int8"].rate < 0.5 * products["fp32"].median:
        raise SystemExit(f"INT8 products at {products['int8'].rate:.3g} operations a second")


def save_images(path: Path) -> None:
    """Seeded noise to calibrate on: ranges of random weights need no photographs."""
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
    """What the machine reaches."""
    found = result.ceilings
    assert found is not None, "these engines run on the CPU"
    yield "## The ceilings"
    yield ""
    yield "| ceiling | fastest round | median | what |"
    yield "|---|---:|---:|---|"
    for kind, one in found.compute.items():
        yield f"| {kind} | {one.rate / 1e9:.0f} G/s | {one.median / 1e9:.0f} | {one.how} |"
    for kind, one in (("memory", found.memory), ("cache", found.cache)):
        yield f"| {kind} | {one.rate / 1e9:.1f} GB/s | {one.median / 1e9:.1f} | {one.how} |"
    yield ""


def overview(engines: Sequence[EngineProfile]) -> Iterator[str]:
    """Whole calls and their layers."""
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
    """Where the INT8 time goes: by kind of layer, and what each block gains."""
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
    """Every block of one engine."""
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
    """Measure, or take what was measured, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--duration", default="10s", help="time an engine")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the two files")
    parser.add_argument("--write-only", action="store_true")
    asked = parser.parse_args()
    file = asked.output / "layers.json"
    if not asked.write_only:
        asked.output.mkdir(parents=True, exist_ok=True)
        measured = measure(parse_duration(asked.duration))
        check(measured)
        write_result(measured, file)
    result = read_result(file)
    if not isinstance(result, ProfileResult):
        raise SystemExit(f"{file.name} holds no profile")
    file.with_suffix(".md").write_text(text(result), encoding="utf-8")
    print(text(result))


if __name__ == "__main__":
    main()
