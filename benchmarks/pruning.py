r"""Compares a pruned network with the whole one: INT8 latency side by side, and accuracy beside it.

    python benchmarks/pruning.py [--model model.safetensors] [--data digits:train --val digits:test]
        [--speedup 2.0] [--image-size 224] [--batch 1,8] [--engines openvino,onnxruntime]
        [--seed 0] [--name digits] [--quick]

Without ``--model`` a ResNet-50 is trained on ``--data`` first. The latency table is measured with the
first engine at ``--image-size``, the size that the latency counts for; the network is pruned by it
and tuned at the size that it was trained at. Then INT8 engines of both networks are built for every
engine: at the network's own size they are validated against the whole network on ``--val``, and at
``--image-size`` they are measured in the same rounds. The predicted latency is that of the table.

Writes ``reports/pruning/NAME.json`` and ``NAME.md``; ``--write-only`` writes the text of a recorded
JSON again. ``--quick`` is a smoke test on a ResNet-18 at 32 pixels; it writes into a temporary folder
and its figures are meaningless.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from readme import write_record

import optimizer
from optimizer.environment import fingerprint
from optimizer.results import BenchResult, PruneResult

REPORTS = Path(__file__).parent.parent / "reports" / "pruning"
SUFFIXES = {"openvino": ".blob", "onnxruntime": ".onnx"}
AIMS = {1: 1.6, 8: 1.8}
"""INT8 pruned against INT8 whole, ResNet-50, by batch size."""


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train if needed, prune, build, validate and bench; the record."""
    model = args.model or folder / "model.safetensors"
    if args.model is None:
        arch = "resnet18" if args.quick else "resnet50"
        epochs = {"epochs": 1} if args.quick else {}
        optimizer.train(model, arch=arch, data=args.data, val=args.val, seed=args.seed, **epochs)
    table, pruned = folder / "table.json", folder / "pruned.safetensors"
    started = time.perf_counter()
    optimizer.latency_table(
        model, table, engine=args.engines[0], precision="int8", batch=args.batch,
        image_size=args.image_size, duration="300ms" if args.quick else "2s",
    )  # fmt: skip
    table_s = time.perf_counter() - started
    tuning = {"epochs": 1} if args.quick else {}
    result = optimizer.prune(
        model, pruned, data=args.data, val=args.val, table=table, engine=args.engines[0],
        precision="int8", batch=args.batch, image_size=args.image_size, speedup=args.speedup,
        max_drop="0.5pp", seed=args.seed, **tuning,
    )  # fmt: skip
    prune_s = time.perf_counter() - started
    record = {
        "device": fingerprint(),
        "data": args.data,
        "val": args.val,
        "seed": args.seed,
        "speedup": args.speedup,
        "image_size": args.image_size,
        "seconds": {"table": table_s, "table and prune": prune_s},
        "prune": result.model_dump(mode="json"),
        "engines": [],
    }
    for engine in args.engines:
        record["engines"].append(_engine(engine, model, pruned, result, (args, folder)))
    return record


def _engine(
    engine: str,
    model: Path,
    pruned: Path,
    result: PruneResult,
    where: tuple[argparse.Namespace, Path],
) -> dict[str, Any]:
    args, folder = where
    accuracy, timed = {}, []
    for name, source in (("whole", model), ("pruned", pruned)):
        own = folder / f"{name}{SUFFIXES[engine]}"
        calib = {"engine": engine, "precision": "int8", "calib": args.data, "force": True}
        optimizer.build(source, own, **calib)
        checked = optimizer.validate(own, reference=str(model), data=args.val, max_drop="0.5pp")
        hop = checked.hops[-1]
        accuracy[name] = {
            "top1": hop.top1, "drop_pp": hop.drop_pp, "drop_ci95_pp": hop.drop_ci95_pp,
            "flips": hop.flips, "verdict": checked.verdict, "finding": checked.finding,
        }  # fmt: skip
        large = folder / f"{name}-{args.image_size}px{SUFFIXES[engine]}"
        fixed = {"fixed_batch": args.batch} if engine == "openvino" else {}
        optimizer.build(source, large, image_size=args.image_size, **calib, **fixed)
        timed.append(large)
    speed = optimizer.bench(
        timed, against=timed[0], batch=args.batch, duration="1s" if args.quick else "10s",
        image_size=args.image_size,
    )  # fmt: skip
    predicted = {at.batch: at.after_ms for at in result.latency} if _is_first(engine, args) else {}
    return {"engine": engine, "accuracy": accuracy, "speed": _speed(speed, predicted)}


def _is_first(engine: str, args: argparse.Namespace) -> bool:
    """Whether the table is of this engine."""
    return bool(engine == args.engines[0])


def _speed(result: BenchResult, predicted: dict[int, float]) -> list[dict[str, Any]]:
    rows = []
    for comparison in result.comparisons:
        ms = {
            engine.name: engine.latency_ms.p50
            for engine in result.engines
            if engine.batch == comparison.batch and engine.latency_ms is not None
        }
        rows.append(
            {
                "batch": comparison.batch,
                "whole_ms": ms.get(comparison.a),
                "pruned_ms": ms.get(comparison.b),
                "ratio": comparison.ratio,
                "ci95": comparison.ci95,
                "predicted_ms": predicted.get(comparison.batch),
            }
        )
    return rows


def text(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    pruned = record["prune"]
    shares = (
        pruned["gflops"][1] / pruned["gflops"][0],
        pruned["parameters"][1] / pruned["parameters"][0],
    )
    about = (
        f"{record['device'].get('cpu', 'unknown CPU')}; latency at {record['image_size']} px, accuracy "
        f"on {record['val']}; seed {record['seed']}. {shares[0]:.0%} of the operations and "
        f"{shares[1]:.0%} of the parameters remain; {len(pruned['dropped'])} blocks are gone. Table: "
        f"{pruned['table_reason']}. Table and pruning took "
        f"{record['seconds']['table and prune']:.0f} s."
    )
    columns = (
        "engine, INT8", "batch", "whole, ms", "pruned, ms", "speedup (95 % interval)", "aim",
        "predicted, ms", "top-1 whole", "top-1 pruned", "drop, pp (95 % interval)", "verdict",
    )  # fmt: skip
    lines = [f"# Pruning: {pruned['arch']} on {record['data']}", "", about, ""]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for engine in record["engines"]:
        whole, cut = engine["accuracy"]["whole"], engine["accuracy"]["pruned"]
        for row in engine["speed"]:
            low, high = row["ci95"]
            least, most = cut["drop_ci95_pp"]
            aim = AIMS.get(row["batch"])
            lines.append(
                f"| {engine['engine']} | {row['batch']} | {row['whole_ms']:.2f} | {row['pruned_ms']:.2f} | "
                f"{row['ratio']:.2f} ({low:.2f} to {high:.2f}) | {aim or '–'} | {_predicted(row)} | "
                f"{whole['top1']:.2%} | {cut['top1']:.2%} | {cut['drop_pp']:+.2f} ({least:+.2f} to "
                f"{most:+.2f}) | {cut['verdict']} |"
            )
    lines += ["", "| block | inner channels | after |", "|---|---|---|"]
    for name, widths in pruned["before"].items():
        if name != "stem":
            after = pruned["after"].get(name)
            left = "dropped" if after is None else " ".join(map(str, after[:-1]))
            lines.append(f"| {name} | {' '.join(map(str, widths[:-1]))} | {left} |")
    return "\n".join(lines) + "\n"


def _predicted(row: dict[str, Any]) -> str:
    if row["predicted_ms"] is None:
        return "–"
    error = row["predicted_ms"] / row["pruned_ms"] - 1
    return f"{row['predicted_ms']:.2f} ({error:+.0%})"


def main() -> None:
    """Record, or write the text of a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", default="digits:train")
    parser.add_argument("--val", default="digits:test")
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument(
        "--batch", type=lambda value: [int(n) for n in value.split(",")], default=[1, 8]
    )
    parser.add_argument("--engines", type=lambda value: value.split(","), default=list(SUFFIXES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="digits")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write-only", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.image_size, args.batch, args.speedup = 32, [1], 1.2
        args.engines = args.engines[:1]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reports = folder if args.quick else REPORTS
        path = reports / f"{args.name}.json"
        record = json.loads(path.read_text()) if args.write_only else measure(args, folder)
        write_record(path, record, text(record))
        print(text(record))


if __name__ == "__main__":
    main()
