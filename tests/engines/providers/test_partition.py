"""The provider of each node, from a real session, and the precision that follows from it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from optimizer.engines.layer_annotation import annotate
from optimizer.engines.providers import Choice, read_choice
from optimizer.engines.providers.partition import (
    ASSIGNMENT_KEY,
    describe_partition,
    graph_layers,
    node_providers,
)
from optimizer.engines.providers.provider_build import opened_layers
from optimizer.errors import BuildError, GraphError
from optimizer.evaluation import audit
from optimizer.precision import quantize
from tests.conftest import Quantized

CPU_NAME = "CPUExecutionProvider"


def choice(provider: str, **options: str) -> Choice:
    return read_choice({"provider": provider, "provider_options": options})


def on_cpu(graph: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.add_session_config_entry(ASSIGNMENT_KEY, "1")
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=[CPU_NAME])


@pytest.fixture(scope="module")
def graphs(small_graph: Path, small_quantized: Quantized) -> dict[str, Path]:
    quantized = {p: small_quantized(p, "tensorrt") for p in ("fp16", "bf16", "int8")}
    return {"fp32": small_graph, **quantized}


def test_a_session_reports_the_provider_of_every_node(small_graph: Path) -> None:
    owners = node_providers(on_cpu(small_graph))
    assert owners is not None
    assert owners["layer4.1.conv2"] == CPU_NAME
    assert set(owners.values()) == {CPU_NAME}


def test_an_older_session_does_not_report_providers(small_graph: Path) -> None:
    assert node_providers(object()) is None
    layers = annotate(graph_layers(small_graph, choice("cuda"), None), small_graph)
    assert {layer.precision for layer in layers} == {"unknown"}
    assert audit("fp32", layers).verdict == "inconclusive"
    (note,) = describe_partition(choice("cuda"), layers)
    assert note.startswith("ONNX Runtime does not report which provider runs conv1, ")


@pytest.mark.parametrize(
    ("provider", "options", "graph", "precision", "verdict"),
    [
        ("cuda", {"use_tf32": "0"}, "fp32", "fp32", "pass"),
        ("cuda", {"use_tf32": "1"}, "fp32", "tf32", "fail"),
        ("cuda", {}, "fp32", "tf32", "fail"),  # the default of ONNX Runtime
        ("cuda", {}, "fp16", "fp16", "pass"),
        ("cuda", {"use_tf32": "0"}, "int8", "fp16", "fail"),
        ("tensorrt", {}, "fp16", "fp16", "pass"),
        ("nv-tensorrt-rtx", {}, "bf16", "bf16", "pass"),
        ("tensorrt", {}, "int8", "unknown", "inconclusive"),
        ("nv-tensorrt-rtx", {}, "fp32", "unknown", "inconclusive"),
    ],
)
def test_the_audit_passes_only_reported_precisions(
    graphs: dict[str, Path],
    provider: str,
    options: dict[str, str],
    graph: str,
    precision: str,
    verdict: str,
) -> None:
    chosen = choice(provider, **options)
    owners = node_providers(on_cpu(graphs["fp32"]))
    assert owners is not None
    taken = dict.fromkeys(owners, chosen.provider.registered)
    layers = annotate(graph_layers(graphs[graph], chosen, taken), graphs[graph])
    assert {layer.precision for layer in layers if layer.name != "fc"} == {precision}
    assert {layer.tactic for layer in layers} == {chosen.provider.registered}
    assert audit(graph, layers).verdict == verdict
    notes = describe_partition(chosen, layers)
    assert notes[0] == f"{chosen.provider.registered} runs 21 of 21 layers with weights"
    assert ("the audit cannot pass" in notes[-1]) == (verdict == "inconclusive")


def test_layers_of_another_provider_are_named(small_graph: Path) -> None:
    owners = dict(node_providers(on_cpu(small_graph)) or {})
    owners |= dict.fromkeys(owners, "TensorrtExecutionProvider")
    owners["fc"] = "CUDAExecutionProvider"
    chosen = choice("tensorrt")
    notes = describe_partition(chosen, graph_layers(small_graph, chosen, owners))
    assert (
        "CUDAExecutionProvider runs fc, which TensorrtExecutionProvider does not support" in notes
    )


def test_int8_quantized_for_the_cpu_is_refused(
    small_graph: Path, small_statistics: Path, tmp_path: Path
) -> None:
    lowered = quantize(
        small_graph, tmp_path / "q.onnx", precision="int8", target="onnxruntime",
        stats=small_statistics,
    ).path  # fmt: skip
    with pytest.raises(GraphError, match="UINT8") as caught:
        graph_layers(lowered, choice("tensorrt"), {})
    assert "--target tensorrt" in str(caught.value.hint)


def test_a_layer_on_the_cpu_fails_the_build(small_graph: Path) -> None:
    session = on_cpu(small_graph)
    with pytest.raises(BuildError, match=r"provider cuda does not support conv1, .* and 18 more"):
        opened_layers(session, small_graph, choice("cuda"))
    assert len(opened_layers(session, small_graph, choice("cpu"))) == 21
