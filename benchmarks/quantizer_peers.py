"""One quantizer, run alone: ``python quantizer_peers.py PEER graph.onnx images.npy output.onnx``.

`quantizers.py` runs this file once per peer, with the interpreter of the peer's environment. It
imports this package only for this package's own rows. The last line of its output is JSON: seconds,
peak memory and the peer's version.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

Images = Any


def onnxruntime_static(graph: str, images: Images, output: str, *, kind: str, method: str) -> str:
    """ONNX Runtime's static quantizer: Q/DQ, weights per channel, ``s8`` symmetric or ``u8``."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Batches of 32."""

        def __init__(self) -> None:
            self.batches = iter(np.array_split(images, max(1, len(images) // 32)))

        def get_next(self) -> dict[str, Any] | None:
            """The next batch."""
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    quantize_static(
        graph,
        output,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8 if kind == "s8" else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, method),
        extra_options={"ActivationSymmetric": kind == "s8"},
    )
    return "onnxruntime-gpu"


def nncf(graph: str, images: Images, output: str, *, preset: str, correction: str) -> str:
    """NNCF's post-training quantization of an ONNX model; ``correction`` is NNCF's bias correction."""
    import nncf as library
    import onnx
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters

    dataset = library.Dataset([image[None] for image in images], lambda item: {"images": item})
    quantized = library.quantize(
        onnx.load(graph),
        dataset,
        preset=getattr(library.QuantizationPreset, preset),
        subset_size=len(images),
        fast_bias_correction=correction != "full",
        advanced_parameters=AdvancedQuantizationParameters(
            disable_bias_correction=correction == "none"
        ),
    )
    onnx.save(quantized, output)
    return "nncf"


def modelopt(graph: str, images: Images, output: str, *, method: str) -> str:
    """NVIDIA ModelOpt's ONNX quantization."""
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

    quantize(
        graph,
        quantize_mode="int8",
        calibration_data={"images": images},
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=output,
    )
    return "nvidia-modelopt"


def olive(graph: str, images: Images, output: str, *, kind: str, method: str) -> str:
    """Microsoft's Olive: its static quantization of ONNX models, weights per channel."""
    import shutil

    import torch
    from olive.data.registry import Registry  # type: ignore[import-not-found]
    from olive.workflows import run  # type: ignore[import-not-found]

    @Registry.register_dataset("calibration")
    class Calibration(torch.utils.data.Dataset[Any]):
        """Single images; Olive batches them."""

        def __init__(self, **_: Any) -> None:
            pass

        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> tuple[dict[str, Any], int]:
            return {"images": torch.from_numpy(images[index])}, 0

    folder = Path(output).with_suffix(".olive")
    data = {
        "name": "calibration",
        "load_dataset_config": {"type": "calibration"},
        "dataloader_config": {"params": {"batch_size": 32}},
    }
    quantization = {
        "type": "OnnxStaticQuantization",
        "data_config": data,
        "precision": "int8",
        "activation_type": "int8" if kind == "s8" else "uint8",
        "activation_symmetric": kind == "s8",
        "per_channel": True,
        "calibrate_method": method,
    }
    run(
        {
            "input_model": {"type": "OnnxModel", "model_path": graph},
            "passes": {"quantization": quantization},
            "output_dir": str(folder),
            "cache_dir": str(folder / "cache"),
        }
    )
    quantized = next(path for path in folder.glob("*.onnx"))
    shutil.copyfile(quantized, output)
    return "olive-ai"


def ours(graph: str, images: Images, output: str, **options: Any) -> str:
    """This package: calibrate and quantize in one step, with FP32 around INT8 for comparison."""
    from dataclasses import replace

    import onnx_ir as ir

    from optimizer.artifacts import digest
    from optimizer.graphs.taps import tapped
    from optimizer.graphs.topology import analyse
    from optimizer.options import EncodingOptions
    from optimizer.precision.int8 import Collector, compute_encodings, lower
    from optimizer.targets.rules import rules_for

    target, pairs = options.pop("target"), options.pop("pairs", None)
    rules = replace(rules_for(target), high_precision="fp32")
    if pairs is not None:
        rules = replace(rules, pairs=pairs)
    topology = analyse(ir.load(graph))
    observed = {name: topology.after_relu(name) for name in topology.observed_tensors()}
    collector = Collector(observed, tapped(Path(graph), list(observed)))
    for batch in np.array_split(images, max(1, len(images) // 32)):
        collector.add(batch)
    statistics = collector.statistics
    del collector  # and its session
    model = ir.load(graph)
    encodings = compute_encodings(
        model, statistics, rules, digest(Path(graph)), EncodingOptions(**options)
    )
    encodings.save(Path(output).with_suffix(".encodings.json"))
    lower(model, encodings, rules)
    ir.save(model, output)
    return "resnet-opt"


PLAIN = {"method": "minmax", "equalize": False, "bias": "none", "shift": False}
PEERS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{
        f"onnxruntime {kind} {method.lower()}": (
            onnxruntime_static,
            {"kind": kind, "method": method},
        )
        for kind in ("s8", "u8")
        for method in ("MinMax", "Percentile", "Entropy")
    },
    "nncf symmetric": (nncf, {"preset": "PERFORMANCE", "correction": "fast"}),
    "nncf symmetric, no bias correction": (nncf, {"preset": "PERFORMANCE", "correction": "none"}),
    "nncf mixed": (nncf, {"preset": "MIXED", "correction": "fast"}),
    "nncf mixed, no bias correction": (nncf, {"preset": "MIXED", "correction": "none"}),
    "nncf mixed, full bias correction": (nncf, {"preset": "MIXED", "correction": "full"}),
    "modelopt max": (modelopt, {"method": "max"}),
    "modelopt entropy": (modelopt, {"method": "entropy"}),
    **{
        f"olive {kind} {method.lower()}": (olive, {"kind": kind, "method": method})
        for kind in ("s8", "u8")
        for method in ("MinMax", "Entropy")
    },
    "ours tensorrt min-max alone": (ours, {"target": "tensorrt", **PLAIN}),
    "ours tensorrt without shift": (ours, {"target": "tensorrt", "shift": False}),
    "ours tensorrt": (ours, {"target": "tensorrt"}),
    "ours tensorrt, no equalization": (ours, {"target": "tensorrt", "equalize": False}),
    "ours tensorrt, no bias correction": (ours, {"target": "tensorrt", "bias": "none"}),
    "ours tensorrt, biases by statistics": (ours, {"target": "tensorrt", "bias": "statistics"}),
    **{
        f"ours tensorrt, {method} ranges": (ours, {"target": "tensorrt", "method": method})
        for method in ("minmax", "mse", "entropy")
    },
    "ours openvino min-max alone": (ours, {"target": "openvino", **PLAIN}),
    "ours openvino": (ours, {"target": "openvino", "pairs": "free"}),
    "ours openvino without VNNI": (ours, {"target": "openvino", "pairs": "channels"}),
    "ours onnxruntime": (ours, {"target": "onnxruntime", "pairs": "free"}),
    "ours onnxruntime without VNNI": (ours, {"target": "onnxruntime", "pairs": "matrix"}),
}


def _peak_bytes() -> int:
    """Linux's ``VmHWM``, because ``getrusage`` inherits the peak of the parent."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> int:
    """Quantize, and print time, memory and version."""
    peer, graph, images, output = sys.argv[1:]
    function, options = PEERS[peer]
    data = np.load(images, mmap_mode="r")
    started = time.perf_counter()
    distribution = function(graph, data, output, **options)
    seconds = time.perf_counter() - started
    facts = {
        "seconds": seconds,
        "peak_rss_bytes": _peak_bytes(),
        "version": f"{distribution} {metadata.version(distribution)}",
    }
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
