"""Inspector dumps of engines: published ones if available, and small ones in this repository.

The published dumps are not part of this repository. Put their folder into
``RESNET_OPT_ENGINE_DUMPS`` (or as ``shared/engine-dumps`` beside the checkout) to read them too.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from optimizer.engines.tensorrt.build_log import layers_in_log
from optimizer.engines.tensorrt.inspector import layers_in_json
from optimizer.engines.tensorrt.layer_times import with_times
from optimizer.engines.tensorrt.layers import RawLayer, describe
from optimizer.engines.tensorrt.tactics import precision_in_tactic
from optimizer.evaluation.precision_audit import audit
from optimizer.results import LayerInfo

HERE = Path(__file__).parent
OWN = HERE / "dumps"
NEAR = [folder / "shared" / "engine-dumps" for folder in HERE.parents]
REAL = Path(
    os.environ.get("RESNET_OPT_ENGINE_DUMPS", "")
    or next((folder for folder in NEAR if folder.is_dir()), NEAR[3])
)
UNKNOWN = "N/A due to dynamic shapes"

# Number of products by precision in each dump, counted by hand from the type of the weights and, for
# FP32, the name of the kernel.
PRODUCTS = {
    "mobilenet.qat.onnx.engine": {"int8": 53},
    "mobilenet_v2_residuals.qat.onnx.engine": {"int8": 53},
    "pytorch-resnet-A100-fp16-resnet.onnx.engine": {"fp16": 21},
    "pytorch-resnet-A100-fp32-resnet.onnx.engine": {"tf32": 20, "fp32": 1},
    "pytorch-resnet-A100-qat-residual-qgap-resnet-qat-residual-qgap.onnx.engine": {"int8": 21},
    "pytorch-resnet-A100-qat-residual-resnet-qat-residual.onnx.engine": {"int8": 21},
    "pytorch-resnet-A100-qat-resnet-qat.onnx.engine": {"int8": 21},
    "tensorflow-resnet-RTX-3090-fp16-resnet.onnx.engine": {"fp16": 54},
    "tensorflow-resnet-RTX-3090-fp32-resnet.onnx.engine": {"tf32": 40, "fp32": 14},
    "tensorflow-resnet-RTX-3090-qat-resnet-qat.onnx.engine": {"int8": 54},
    "trt10.16-static": {"fp32": 3},
    "own-8-int8": {"int8": 2},
    "own-8-fp32": {"tf32": 1, "fp32": 1},
}
WITH_TIMES = [name for name in PRODUCTS if not name.startswith("trt10.16")]


def dump(name: str, kind: str) -> str:
    """The text of a dump; skips if a published one is not available."""
    folder = OWN if name.startswith("own") else REAL
    path = folder / f"{name}.{kind}"
    if not path.is_file():
        pytest.skip(f"{path} does not exist: published dumps are not part of this repository")
    return path.read_text(encoding="utf-8")


def products(raw: list[RawLayer], layers: list[LayerInfo]) -> list[LayerInfo]:
    holding = [layer for layer in raw if layer.inputs or layer.outputs]
    pairs = zip(holding, layers, strict=True)
    return [layer for one, layer in pairs if one.is_product]


@pytest.mark.parametrize("name", PRODUCTS)
def test_precisions_of_products(name: str) -> None:
    raw = layers_in_json(dump(name, "graph.json"))
    layers = products(raw, describe(raw))
    assert Counter(layer.precision for layer in layers) == PRODUCTS[name]
    # Types and kernel names are independent sources: they must agree if both are present.
    named = [(precision_in_tactic(x.tactic or ""), x.precision) for x in layers]
    assert all(by_name in {None, precision} for by_name, precision in named)


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_audit_of_an_engine(name: str) -> None:
    """The requested precision passes, any other fails; all products have the same weight here."""
    raw = layers_in_json(dump(name, "graph.json"))
    layers = [x.model_copy(update={"flops": 1}) for x in products(raw, describe(raw))]
    (most, count), *_ = Counter(PRODUCTS[name]).most_common()
    assert audit(most, layers).share == pytest.approx(count / len(layers))
    assert audit("bf16", layers).verdict == "fail"


@pytest.mark.parametrize("name", PRODUCTS)
def test_without_a_context_kernel_names_give_the_precision(name: str) -> None:
    """With every type hidden, as without a context, no precision changes."""
    document = json.loads(dump(name, "graph.json"))
    for layer in document["Layers"]:
        for tensor in (*layer["Inputs"], *layer["Outputs"]):
            tensor["Format/Datatype"] = UNKNOWN
    raw = layers_in_json(json.dumps(document))
    hidden = describe(raw)
    known = describe(layers_in_json(dump(name, "graph.json")))
    pairs = list(zip(products(raw, hidden), products(raw, known), strict=True))
    assert all(blind.precision == seeing.precision for blind, seeing in pairs if blind.tactic)
    assert UNKNOWN.lower() not in {layer.precision for layer in hidden}


@pytest.mark.parametrize("name", WITH_TIMES)
def test_every_layer_has_its_time(name: str) -> None:
    raw = layers_in_json(dump(name, "graph.json"))
    profile = [entry for entry in json.loads(dump(name, "profile.json")) if "name" in entry]
    run = {entry["name"]: float(entry["medianMs"]) for entry in profile}
    timed = with_times(describe(raw), [run])
    spent = {layer.name: layer.time_ms for layer in timed}
    assert all(spent[layer.name] == run[layer.name] for layer in products(raw, describe(raw)))
    assert sum(layer.time_ms or 0 for layer in timed) == pytest.approx(sum(run.values()))


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        (
            "trt10.16-inspector.log",
            {"node_conv2d", "node_conv2d_1", "node_linear", "node_linear_1"},
        ),
        ("own-10-two-profiles.log", {"conv1", "layer1.0.conv1", "fc"}),
    ],
)
def test_profiles_are_separated(name: str, modules: set[str]) -> None:
    text = dump(name.removesuffix(".log"), "log")
    raw = layers_in_log([text])
    layers = describe(raw)
    apart = [[x for x in layers if x.profile == profile] for profile in (0, 1)]
    assert len(apart[0]) == len(apart[1]) == len(layers) / 2
    assert [x.precision for x in apart[0]] == [x.precision for x in apart[1]]
    for one in apart:
        names = [name for x in products(*_of(raw, layers, one)) for name in x.torch_names]
        assert modules <= set(names)
        assert len(names) == len(set(names)), "a module belongs to one layer per profile"


def _of(
    raw: list[RawLayer], layers: list[LayerInfo], some: list[LayerInfo]
) -> tuple[list[RawLayer], list[LayerInfo]]:
    names = {layer.name for layer in some}
    return [x for x in raw if x.name in names], [x for x in layers if x.name in names]


def test_the_profile_that_ran_is_timed() -> None:
    layers = describe(layers_in_log([dump("own-10-two-profiles", "log")]))
    second = [layer.name for layer in layers if layer.profile == 1]
    timed = with_times(layers, [dict.fromkeys(second, 0.25)], profile=1)
    assert [layer.name for layer in timed] == second
    # A profiler that omits the profile from names works too.
    plain = [layer.name for layer in layers if layer.profile == 0]
    run: dict[str, float] = {name.replace("_myl5_", "_myl11_"): 0.5 for name in plain}
    assert {layer.name for layer in with_times(layers, [run], profile=1)} == set(second)


def test_each_profile_is_audited() -> None:
    """A second profile that computes in another precision is not hidden by the first."""
    layers = [
        layer.model_copy(update={"flops": 100 if layer.torch_names else None})
        for layer in describe(layers_in_log([dump("own-10-two-profiles", "log")]))
        if layer.type in {"CaskConvolution", "gemm"}
    ]
    assert audit("fp16", layers).verdict == "pass"
    worse = [
        layer.model_copy(update={"precision": "fp32"}) if layer.profile == 1 else layer
        for layer in layers
    ]
    judged = audit("fp16", worse)
    assert judged.verdict == "fail"
    assert judged.reason.startswith("in profile 1, 0.0 % of the FLOPs are computed in FP16")


def own_layer(**changes: Any) -> str:
    layer = {
        "Name": "conv1",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Dimensions": [-1, 3, 8, 8], "Format/Datatype": UNKNOWN}],
        "Outputs": [{"Name": "y", "Dimensions": UNKNOWN, "Format/Datatype": UNKNOWN}],
        "TacticName": "",
        **changes,
    }
    return json.dumps({"Layers": [layer], "Bindings": []})


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        ({}, "unknown"),
        ({"Weights": {"Type": "Int8", "Count": 1}}, "int8"),
        ({"Weights": {"Type": "Half", "Count": 1}}, "fp16"),
        ({"TacticName": "sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32_nhwc"}, "int8"),
        ({"TacticName": "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc"}, "tf32"),
        # The kernel name takes precedence over the type of the weights: TF32 has FP32 weights.
        (
            {
                "TacticName": "sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc",
                "Weights": {"Type": "Float", "Count": 1},
            },
            "tf32",
        ),
        ({"TacticName": "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n"}, "fp16"),
        ({"TacticName": "sm89_xmma_gemm_e4m3e4m3_e4m3f32_f32_tn_n"}, "fp8"),
        ({"TacticName": "sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwc"}, "bf16"),
        ({"TacticName": "__myl_MulAdd_0x1234"}, "unknown"),
    ],
)
def test_a_product_whose_types_are_not_known(changes: dict[str, Any], precision: str) -> None:
    (layer,) = describe(layers_in_json(own_layer(**changes)))
    assert layer.precision == precision
    judged = audit("int8", [layer.model_copy(update={"flops": 1})])
    expected = {"int8": "pass", "unknown": "inconclusive"}.get(precision, "fail")
    assert judged.verdict == expected
