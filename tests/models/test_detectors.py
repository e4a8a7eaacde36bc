"""Detectors: torchvision's networks without their boxes, their anchors, and their weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.detection.image_list import ImageList

from optimizer.data import Preprocessing
from optimizer.errors import CheckpointError, GraphError
from optimizer.models import DETECTORS, DetectorSpec, Model, load_model, save_checkpoint
from optimizer.models.architectures import expected_shapes
from optimizer.models.detectors import PerLevelHeads, torchvision_detector

KINDS = ("retinanet", "fcos")
SIZES = (96, 100)  # a multiple of the smallest stride, and one that no level divides


@pytest.fixture(scope="module", params=KINDS)
def detector(request: pytest.FixtureRequest) -> Model:
    return load_model(f"{request.param}_resnet18_fpn:random:7")


def _kind(model: Model) -> str:
    return model.arch.partition("_")[0]


@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_anchors_are_torchvisions(detector: Model, size: int) -> None:
    model = replace(detector, preprocessing=detector.preprocessing.with_image_size(size))
    network = torchvision_detector(_kind(model), "resnet18", 7).eval()
    network.load_state_dict(model.module.state_dict())
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = list(network.backbone(images).values())
        expected = network.head(features)
        anchors = network.anchor_generator(ImageList(images, [(size, size)] * 2), features)
        outputs = model.module(images)
    spec = model.detector
    assert spec is not None
    assert outputs.shape[1:] == spec.output_shape
    assert torch.equal(outputs[..., :4], expected["bbox_regression"])
    assert torch.equal(outputs[..., spec.box_values :], expected["cls_logits"])
    if "bbox_ctrness" in expected:
        assert torch.equal(outputs[..., 4:5], expected["bbox_ctrness"])
    np.testing.assert_array_equal(spec.anchors(), anchors[0].numpy())


def test_copied_heads_compute_the_same(detector: Model) -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    copied = PerLevelHeads(detector.module, 5).eval()  # type: ignore[arg-type]
    with torch.inference_mode():
        assert torch.equal(copied(images), detector.module(images))
    weights = {id(p) for p in copied.heads.parameters()}
    assert len(weights) == 5 * len(list(detector.module.get_submodule("head").parameters()))


@pytest.mark.long
def test_random_weights_depend_on_the_name_alone(detector: Model) -> None:
    assert load_model(f"{detector.arch}:random:7").sha256 == detector.sha256


def test_a_checkpoint_comes_back(detector: Model, tmp_path: Path) -> None:
    named = replace(
        detector,
        classes=tuple("abcdefg"),
        preprocessing=Preprocessing.detection(96),
        preprocessing_assumed=False,
    )
    path = tmp_path / "detector.safetensors"
    save_checkpoint(named, path, details={})
    loaded = load_model(path)
    assert (loaded.sha256, loaded.arch, loaded.classes) == (
        detector.sha256, detector.arch, named.classes,
    )  # fmt: skip
    assert loaded.preprocessing == named.preprocessing
    path.with_name(path.name + ".json").unlink()
    assert load_model(path).detector == named.detector  # from the copy in the header


def test_torchvisions_own_state_dict_is_read(detector: Model, tmp_path: Path) -> None:
    """With frozen BatchNorm (no counters) and RetinaNet's older names of the towers."""
    state = {}
    for name, tensor in detector.module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            if _kind(detector) == "retinanet" and "_head.conv." in name:
                before, _, after = name.partition("_head.conv.")
                number, _, rest = after.partition(".")
                old = f"{before}_head.conv.{2 * int(number)}.{rest.removeprefix('0.')}"
                state[old] = tensor.contiguous()
            else:
                state[name] = tensor.contiguous()
    save_file(state, tmp_path / "plain.safetensors")
    loaded = load_model(tmp_path / "plain.safetensors")
    assert (loaded.arch, loaded.num_classes, loaded.sha256) == (
        detector.arch, 7, detector.sha256,
    )  # fmt: skip
    assert loaded.preprocessing.fit == "letterbox"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fasterrcnn_resnet50_fpn:COCO_V1", "two stages"),
        ("maskrcnn_resnet50_fpn", "two stages"),
        ("detr_resnet50", "turns queries into boxes"),
        ("facebook/detr-resnet-50", "turns queries into boxes"),
        ("PekingU/rtdetr_r50vd", "turns queries into boxes"),
        ("retinanet_resnet18_fpn:COCO_V1", "no weights 'COCO_V1' for retinanet_resnet18_fpn"),
        ("retinanet_resnet50_fpn:COCO_V9", "no weights 'COCO_V9'"),
        ("retinanet_resnet50_fpn", "does not say which weights"),
    ],
)
def test_a_name_that_means_no_weights_is_refused(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(name)


@pytest.mark.long
def test_weights_of_another_network_are_refused(detector: Model, tmp_path: Path) -> None:
    state = {name: t.contiguous() for name, t in detector.module.state_dict().items()}

    def error(changes: dict[str, torch.Tensor | None], arch: str | None = None) -> str:
        kept = {n: t for n, t in {**state, **changes}.items() if t is not None}
        save_file(kept, tmp_path / "bad.safetensors")
        with pytest.raises(CheckpointError) as caught:
            load_model(tmp_path / "bad.safetensors", arch=arch)
        return str(caught.value)

    logits = "head.classification_head.cls_logits.bias"
    assert f"{logits} is missing" in error({logits: None}, detector.arch)
    weight = "backbone.body.conv1.weight"
    assert "NaN" in error({weight: torch.full_like(state[weight], float("nan"))})
    assert "unexpected tensor extra" in error({"extra": torch.zeros(1)})
    assert "not of resnet50" in error({}, "resnet50")
    other = next(arch for arch in DETECTORS if arch.startswith(_kind(detector)) and "50" in arch)
    assert f"does not match {other}" in error({}, other)
    assert "two stages" in error({"roi_heads.box_head.fc6.weight": torch.zeros(1)})


def test_published_epsilon_of_zero_is_kept() -> None:
    """torchvision sets epsilon to 0 for RetinaNet's weights; ours is always 1e-5."""
    from optimizer.models.pretrained_detectors import _without_epsilon

    random = torch.Generator().manual_seed(0)
    published = torch.nn.BatchNorm2d(5, eps=0.0).eval()
    published.running_mean = torch.randn(5, generator=random)
    published.running_var = torch.rand(5, generator=random) * 1e-4
    state = {f"bn.{name}": value for name, value in published.state_dict().items()}
    ours = torch.nn.BatchNorm2d(5).eval()
    scaled = _without_epsilon(state)
    ours.load_state_dict({name.removeprefix("bn."): value for name, value in scaled.items()})
    images = torch.randn(2, 5, 3, 3, generator=random)
    torch.testing.assert_close(ours(images), published(images), rtol=1e-5, atol=1e-5)


def test_a_spec_comes_back_and_damage_is_refused(detector: Model) -> None:
    spec = detector.detector
    assert spec is not None
    values = spec.to_dict()
    assert DetectorSpec.from_dict(values) == spec
    for damaged in ({**values, "kind": "yolo"}, {"kind": "fcos"}, {**values, "more": 1}):
        with pytest.raises(GraphError, match="damaged"):
            DetectorSpec.from_dict(damaged)


def test_every_detector_can_be_built() -> None:
    for arch in DETECTORS:
        assert "head.classification_head.cls_logits.weight" in expected_shapes(arch)
