"""Damaged and hostile files by the seed, for `hostile_files.py` and `tests/torture`.

Each kind of file starts from a small valid one. A case changes it (bits, fields of the format, or a
known attack) and names the commands that read it. The same seed gives the same files.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Command = list[str]
PIXELS, CLASSES = 8, 5
NESTED = "[" * 100_000
SCALARS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 128, 255, 256, 2**31, 2**63, -(2**63), 2**64, 10**400, 0.5, 1e-320,
    1e39, 1e308, -1e308, math.nan, math.inf, -math.inf, "", "x", "1", "\x1b[31m\x07", "../../etc/passwd",
    "a" * 10_000, "\u202e\u0000", [], {}, [[]], [None], {"a": 1}, [1, "x"],
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """The valid files that cases start from.

    Attributes:
        folder: Where they are; no case changes them.
    """

    folder: Path

    @property
    def graph(self) -> Path:
        """An FP32 graph of a small residual network, 8 x 8 pixels, 5 classes."""
        return self.folder / "base.onnx"

    @property
    def data(self) -> Path:
        """Images with the graph's own predictions as labels."""
        return self.folder / "data.npz"

    @property
    def statistics(self) -> Path:
        """Statistics of the graph on these images."""
        return self.folder / "base.stats.npz"

    @property
    def encodings(self) -> Path:
        """Encodings of the graph for OpenVINO."""
        return self.folder / "int8.encodings.json"

    @property
    def engine(self) -> Path:
        """An engine of ONNX Runtime."""
        return self.folder / "base.ort.onnx"

    @property
    def result(self) -> Path:
        """A result of ``validate``."""
        return self.folder / "validate.json"

    @property
    def image(self) -> Path:
        """A picture."""
        return self.folder / "image.png"


# --- the valid files -----------------------------------------------------------------------------


def make_base(folder: Path) -> Base:
    """Make the valid files with the commands that users call."""
    import optimizer

    base = Base(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_graph(base.graph)
    _write_data(base)
    optimizer.calibrate(base.graph, base.statistics, calib=str(base.data), workers=0)
    optimizer.quantize(
        base.graph, folder / "int8.onnx", stats=base.statistics, target="openvino", method="minmax"
    )
    optimizer.build(base.graph, base.engine, engine="onnxruntime", precision="fp32")
    optimizer.validate(
        base.engine, reference=str(base.graph), data=str(base.data), output=base.result
    )
    _write_image(base.image)
    return base


def _write_graph(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from optimizer.data import Preprocessing
    from optimizer.graphs.metadata import encoded

    rng = np.random.default_rng(0)
    constants: list[Any] = []

    def constant(name: str, *shape: int) -> str:
        scale = 1 / math.sqrt(math.prod(shape[1:]) or 1)
        values = (scale * rng.normal(size=shape)).astype(np.float32)
        constants.append(numpy_helper.from_array(values, name))
        return name

    def conv(name: str, source: str, inputs: int, outputs: int, kernel: int) -> Any:
        weights = [
            constant(f"{name}.weight", outputs, inputs, kernel, kernel),
            constant(f"{name}.bias", outputs),
        ]
        return helper.make_node(
            "Conv", [source, *weights], [name], name=name,
            kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, strides=[1, 1],
        )  # fmt: skip

    def node(op: str, inputs: list[str], name: str, **attributes: Any) -> Any:
        return helper.make_node(op, inputs, [name], name=name, **attributes)

    nodes = [
        conv("conv1", "images", 3, 4, 3),
        node("Relu", ["conv1"], "relu"),
        node("MaxPool", ["relu"], "maxpool", kernel_shape=[2, 2], strides=[2, 2]),
        conv("layer1.0.conv1", "maxpool", 4, 4, 3),
        node("Relu", ["layer1.0.conv1"], "layer1.0.relu"),
        conv("layer1.0.conv2", "layer1.0.relu", 4, 4, 3),
        node("Add", ["layer1.0.conv2", "maxpool"], "layer1.0.add"),
        node("Relu", ["layer1.0.add"], "layer1.0.relu_1"),
        node("GlobalAveragePool", ["layer1.0.relu_1"], "avgpool"),
        node("Flatten", ["avgpool"], "flatten", axis=1),
        helper.make_node(
            "Gemm", ["flatten", constant("fc.weight", CLASSES, 4), constant("fc.bias", CLASSES)],
            ["logits"], name="fc", transB=1,
        ),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, PIXELS, PIXELS])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="cases"
    )
    entries = encoded(
        {
            "arch": "small",
            "precision": "fp32",
            "input": "float32-nchw",
            "batch": "dynamic",
            "preprocessing": Preprocessing.digits(PIXELS).to_dict(),
            "classes": [f"class {number}" for number in range(CLASSES)],
        }
    )
    helper.set_model_props(model, {f"resnet_opt.{name}": text for name, text in entries.items()})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _write_data(base: Base) -> None:
    import onnxruntime as ort

    from optimizer.data import Preprocessing

    images = np.random.default_rng(1).integers(0, 256, (600, PIXELS, PIXELS, 3), dtype=np.uint8)
    session = ort.InferenceSession(base.graph, providers=["CPUExecutionProvider"])
    batch = Preprocessing.digits(PIXELS).normalize(images)
    (logits,) = session.run(None, {"images": batch})
    np.savez(base.data, images=images, labels=np.argmax(logits, axis=1))


def _write_image(path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(2).integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


# --- changes of any file -------------------------------------------------------------------------


def damaged(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, inserted, repeated, moved or cut off."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not result:
            return b""
        at = rng.randrange(len(result))
        match rng.randrange(8):
            case 0:
                result[at] ^= 1 << rng.randrange(8)
            case 1:
                result[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del result[at:]
            case 3:
                del result[at : at + rng.choice((1, 4, 64))]
            case 4:
                result[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
            case 5:
                number = rng.choice((0, -1, 2**31 - 1, -(2**31), 2**16))
                result[at : at + 4] = struct.pack("<i", number)
            case 6:
                length = rng.choice((8, 64, 512))
                result[at:at] = result[at : at + length]
            case _:
                length = rng.choice((8, 64))
                result[at : at + length] = bytes(length)
    return bytes(result)


def damaged_json(rng: random.Random, value: Any, changes: int = 1) -> str:
    """JSON in which a few values were replaced, left out, repeated or nested."""
    value = json.loads(json.dumps(value))
    for _ in range(changes):
        value = _changed(rng, value)
    text = json.dumps(value)
    match rng.randrange(40):
        case 0:
            return text.replace('"', NESTED, 1)
        case 1:
            return text[: rng.randrange(len(text))]
        case 2:
            return text.replace(":", ": 1" + "0" * 5000 + ", ", 1)
        case _:
            return text


def _changed(rng: random.Random, value: Any) -> Any:
    parents = [(value, key) for key in _keys(value)]
    for container, key in parents:  # grows while it is read: every place in the document
        parents += [(container[key], inner) for inner in _keys(container[key])]
    if not parents:
        return rng.choice(SCALARS)
    container, key = rng.choice(parents)
    match rng.randrange(6):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[f"{key}x"] = container[key]
        case 1:
            container.insert(key, container[key])
        case 2:
            container[key] = [container[key]]
        case _:
            container[key] = rng.choice(SCALARS)
    return value


def _keys(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value)
    return list(range(len(value))) if isinstance(value, list) else []


def _sealed(path: Path, manifest: dict[str, Any]) -> None:
    """A manifest that fits the file: what an attacker can write too."""
    from optimizer.artifacts import digest

    manifest = {**manifest, "file": path.name, "sha256": digest(path)}
    path.with_name(path.name + ".json").write_text(json.dumps(manifest))


def _manifest(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(path.with_name(path.name + ".json").read_text())
    return manifest


# --- the kinds -----------------------------------------------------------------------------------


def onnx_case(rng: random.Random, base: Base, folder: Path) -> list[Command]:
    """An ONNX file."""
    path = folder / "case.onnx"
    data = base.graph.read_bytes()
    if rng.random() < 0.3:
        path.write_bytes(damaged(rng, data))
    else:
        path.write_bytes(_changed_graph(rng, data))
    out = str(folder / "out")
    commands = [
        ["inspect", str(path)],
        ["calibrate", str(path), "--calib", str(base.data), "--calib-images", "16", "-o", out],
        ["quantize", str(path), "--precision", "fp16", "-o", f"{out}.fp16.onnx"],
        ["quantize", str(path), "--calib", str(base.data), "--calib-images", "16", "--method",
         "minmax", "--target", "openvino", "-o", f"{out}.int8.onnx"],
        ["validate", str(path), "--reference", str(base.graph), "--data", str(base.data),
         "-o", f"{out}.json"],
    ]  # fmt: skip
    return [rng.choice(commands), commands[-1]]


def _changed_graph(rng: random.Random, data: bytes) -> bytes:
    import onnx

    model = onnx.load_model_from_string(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(_GRAPH_CHANGES)(rng, model)
    encoded: bytes = model.SerializeToString()
    return encoded


_OPERATORS = (
    "Relu", "Conv", "Add", "Gemm", "MaxPool", "Flatten", "Softmax", "Identity", "Expand", "Loop",
    "If", "ConstantOfShape", "Tile", "BatchNormalization", "QuantizeLinear", "DequantizeLinear",
    "Cast", "Reshape", "Dropout", "NoSuchOperator", "",
)  # fmt: skip
_INTEGERS = (0, 1, -1, 2, 3, 7, 8, 255, 10**6, 2**31, 2**40, 2**63 - 1, -(2**63))


def _change_operator(rng: random.Random, model: Any) -> None:
    rng.choice(model.graph.node).op_type = rng.choice(_OPERATORS)


def _change_edge(rng: random.Random, model: Any) -> None:
    node, other = rng.choice(model.graph.node), rng.choice(model.graph.node)
    if node.input:
        place = rng.randrange(len(node.input))
        node.input[place] = rng.choice([*other.output, *other.input, "", "nowhere", node.output[0]])


def _change_attribute(rng: random.Random, model: Any) -> None:
    attributes = [a for node in model.graph.node for a in node.attribute]
    if not attributes:
        return
    attribute = rng.choice(attributes)
    if attribute.ints and rng.random() < 0.8:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_INTEGERS)
    elif rng.random() < 0.5:
        attribute.i = rng.choice(_INTEGERS)
    else:
        attribute.name = rng.choice(("auto_pad", "group", "axis", "x", "alpha"))


def _change_constant(rng: random.Random, model: Any) -> None:
    tensor = rng.choice(model.graph.initializer)
    match rng.randrange(6):
        case 0:
            tensor.data_type = rng.randrange(-1, 30)
        case 1 if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_INTEGERS)
        case 2:
            tensor.raw_data = damaged(rng, tensor.raw_data)
        case 3:
            values = np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 4 * 4], np.float32)
            values = np.where(rng.random() < 0.5, np.float32(rng.choice((np.nan, 1e38, 0))), values)
            tensor.raw_data = values.astype(np.float32).tobytes()
        case 4:
            tensor.name = rng.choice((tensor.name + "x", "images", ""))
        case _:
            tensor.data_location = 1
            entry = tensor.external_data.add()
            entry.key = "location"
            entry.value = rng.choice(("/etc/passwd", "../x", "case.onnx", "", "missing.data"))


def _change_shape(rng: random.Random, model: Any) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output])
    match rng.randrange(3):
        case 0:
            value.type.tensor_type.elem_type = rng.randrange(0, 24)
        case 1 if value.type.tensor_type.shape.dim:
            rng.choice(value.type.tensor_type.shape.dim).dim_value = rng.choice(_INTEGERS)
        case _:
            value.type.tensor_type.shape.dim.add().dim_value = rng.choice(_INTEGERS)


def _change_nodes(rng: random.Random, model: Any) -> None:
    nodes = list(model.graph.node)
    at = rng.randrange(len(nodes))
    match rng.randrange(5):
        case 0:
            del nodes[at]
        case 1:
            nodes.insert(rng.randrange(len(nodes)), nodes[at])
        case 2:
            nodes[at].name = rng.choice(("", "fc", "\x1b[2J"))
        case 3:
            nodes.append(nodes.pop(at))
        case _:
            nodes = nodes * rng.choice((2, 100))
    copies = [type(nodes[0])() for _ in nodes] if nodes else []
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _change_metadata(rng: random.Random, model: Any) -> None:
    entry = rng.choice(model.metadata_props)
    if rng.random() < 0.2:
        entry.value = rng.choice(("", "{", NESTED, "nul", "5", "\x1b[31m"))
        return
    try:
        value = json.loads(entry.value)
    except ValueError:
        value = entry.value
    entry.value = damaged_json(rng, value)


def _change_model(rng: random.Random, model: Any) -> None:
    match rng.randrange(4):
        case 0:
            model.opset_import[0].version = rng.choice(_INTEGERS)
        case 1:
            model.ir_version = rng.choice(_INTEGERS)
        case 2:
            model.opset_import[0].domain = rng.choice(("ai.onnx.ml", "x"))
        case _:
            function = model.functions.add()
            function.name, function.domain = "Relu", ""
            function.node.add().op_type = "Relu"


_GRAPH_CHANGES: tuple[Callable[[random.Random, Any], None], ...] = (
    _change_operator, _change_edge, _change_attribute, _change_constant, _change_shape,
    _change_nodes, _change_metadata, _change_model,
)  # fmt: skip


def encodings_case(rng: random.Random, base: Base, folder: Path) -> list[Command]:
    """Encodings that were edited."""
    path = folder / "case.encodings.json"
    raw = json.loads(base.encodings.read_text())
    path.write_text(damaged_json(rng, raw, rng.choice((1, 1, 2))), encoding="utf-8")
    if rng.random() < 0.1:
        path.write_bytes(damaged(rng, base.encodings.read_bytes()))
    return [["quantize", str(base.graph), "--encodings", str(path), "--target", "openvino",
             "-o", str(folder / "out.onnx")]]  # fmt: skip


def _npz_members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


_HEADERS = (
    ("'shape': (", "'shape': (9999999999, "), ("'shape': (", "'shape': (-1, "), ("<", ">"),
    ("|u1", "|O"), ("<i8", "<u8"), ("<f4", "<c16"), ("False", "True"), ("u1", "u8"), ("{", "{" * 9000),
)  # fmt: skip


def _write_damaged_npz(rng: random.Random, members: dict[str, bytes], path: Path) -> None:
    """An archive of arrays with other headers, other contents, or without some of them."""
    name = rng.choice(list(members))
    match rng.randrange(8):
        case 0:
            del members[name]
        case 1:
            members[name] = damaged(rng, members[name])
        case 2:
            old, new = rng.choice(_HEADERS)
            members[name] = members[name].replace(old.encode(), new.encode(), 1)
        case 3:
            kind = rng.choice(("<i8", "<u8", "|u1", "<f4", "<f8", "<U3", "|S2", "|b1"))
            shape = rng.choice(((), (0,), (3,), (600,), (2, 2), (600, 8, 8, 3), (5, 3, 8, 8)))
            members[name] = _array_file(np.zeros(shape, kind))
        case 4:
            members[name] = _huge_array_file(rng)
        case 5:
            label = rng.choice((2**64 - 1, 2**63, 10**9, 5, 4))
            members["labels.npy"] = _array_file(np.full(600, label, np.uint64))
        case 6:
            members[name] = pickle.dumps({"a": 1})
        case _:
            members[f"{name}x"] = members[name]
    compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    if rng.random() < 0.3:
        path.write_bytes(damaged(rng, path.read_bytes()))
    if rng.random() < 0.05:  # claims to be encrypted
        _set_flag(path, 1)


def _set_flag(path: Path, flag: int) -> None:
    """Set a general purpose flag of every member of an archive."""
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0 and at + offset < len(data):
            data[at + offset] |= flag
            at = data.find(signature, at + 4)
    path.write_bytes(bytes(data))


def _array_file(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _huge_array_file(rng: random.Random) -> bytes:
    """A header of up to 586 GiB, with few values or with the zeros of a deflate bomb."""
    shape = rng.choice(((3_276_000, 256, 256, 3), (2**31, 3, 8, 8), (10**12,), (600, 2**20, 8, 3)))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return head.getvalue() + bytes(rng.choice((0, 100, 1 << 24)))


def npz_case(rng: random.Random, base: Base, folder: Path) -> list[Command]:
    """Images and labels in an NPZ file."""
    path = folder / "case.npz"
    _write_damaged_npz(rng, _npz_members(base.data), path)
    return [["validate", str(base.engine), "--reference", str(base.graph), "--data", str(path),
             "-o", str(folder / "out.json")]]  # fmt: skip


def statistics_case(rng: random.Random, base: Base, folder: Path) -> list[Command]:
    """Calibration statistics, mostly with a manifest that fits them."""
    path = folder / "case.stats.npz"
    members = _npz_members(base.statistics)
    if rng.random() < 0.5:
        array = np.load(io.BytesIO(members["header.npy"]))
        header = damaged_json(rng, json.loads(array.tobytes())).encode()
        members["header.npy"] = _array_file(np.frombuffer(header, np.uint8))
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    else:
        _write_damaged_npz(rng, members, path)
    if rng.random() < 0.9:
        _sealed(path, _manifest(base.statistics))
    return [["quantize", str(base.graph), "--stats", str(path), "--target", "openvino", "--method",
             rng.choice(("minmax", "auto")), "-o", str(folder / "out.onnx")]]  # fmt: skip


def safetensors_case(rng: random.Random, base: Base, folder: Path) -> list[Command]:
    """A safetensors file."""
    path = folder / "case.safetensors"
    tensors: dict[str, Any] = {
        name: {"dtype": "F32", "shape": [4], "data_offsets": [16 * index, 16 * (index + 1)]}
        for index, name in enumerate(("conv1.weight", "bn1.weight", "fc.weight", "fc.bias"))
    }
    card = {"arch": "resnet18", "classes": None}
    header: dict[str, Any] = {**tensors, "__metadata__": {"resnet-opt": json.dumps(card)}}
    if rng.random() < 0.3:
        header["__metadata__"]["resnet-opt"] = damaged_json(rng, card)
    text = (damaged_json(rng, header) if rng.random() < 0.7 else json.dumps(header)).encode()
    length = rng.choice((len(text), len(text), len(text), 0, 2**40, 2**64 - 1, len(text) + 1))
    data = struct.pack("<Q", length) + text + bytes(64)
    path.write_bytes(damaged(rng, data) if rng.random() < 0.3 else data)
    return [["predict", str(path), str(base.image)]]


class _Attack:
    """Unpickling it would leave a file behind."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self._command,)


def pth_case(rng: random.Random, base: Base, folder: Path) -> list[Command]:
    """A PyTorch checkpoint; a file named ``executed`` shows that something in it ran."""
    import torch

    path = folder / rng.choice(("case.pth", "case.pt", "case.ckpt"))
    state = {"conv1.weight": torch.ones(4, 3, 2, 2), "fc.bias": torch.zeros(5)}
    attack = f"touch {folder / 'executed'}"
    content: Any = rng.choice(
        (state, {"state_dict": state}, {"model": state, "epoch": 3}, [1], {}, {"model": {"a": 1}})
    )
    match rng.randrange(5):
        case 0:
            path.write_bytes(pickle.dumps({"state_dict": _Attack(attack)}, rng.choice((2, 4))))
        case 1:
            torch.save({"state_dict": state, "x": _Attack(attack)}, path)
        case 2:
            torch.save(content, path)
            members = _npz_members(path)
            name = rng.choice(list(members))
            members[name] = rng.choice((damaged(rng, members[name]), bytes(1 << 24), b""))
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for member, data in members.items():
                    archive.writestr(member, data)
        case _:
            torch.save(content, path)
            path.write_bytes(damaged(rng, path.read_bytes()))
    return [["predict", str(path), str(base.image)]]


def image_case(rng: random.Random, base: Base, folder: Path) -> list[Command]:
    """A picture in one of the accepted formats, or a file that only has such a name."""
    from PIL import Image

    kind = rng.choice(("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "EPS", "PDF", "BOMB"))
    path = folder / f"case.{rng.choice(('png', 'jpg', 'bmp', 'tif', 'webp', 'ppm'))}"
    if kind == "BOMB":
        path.write_bytes(_png(rng.choice((2**15, 2**20, 2**31 - 1)), rng.choice((1, 2**15))))
    else:
        with Image.open(base.image) as image:
            image.resize((37, 23)).save(path, format=kind)
    if rng.random() < 0.8:
        path.write_bytes(damaged(rng, path.read_bytes()))
    return [["predict", str(base.engine), str(path)]]


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


_RECIPE: dict[str, Any] = {
    "title": "a job",
    "model": "resnet18:random:10",
    "export": {"image_size": 32},
    "calibrate": {"calib": "digits:train", "calib_images": 64, "method": "auto"},
    "build": [{"precision": ["fp32", "int8"], "engine": ["onnxruntime"]}],
    "validate": {"data": "digits:test", "limit": 10, "max_drop": "1pp"},
    "bench": {"batch": [1, 8], "duration": "1s"},
}
_YAML = (
    "!!int 'x'", "2026-99-99", "!!python/object/apply:os.system ['true']", "1" * 5000, "0x", "*a",
    "[" * 10_000, "!!binary x", "!!timestamp x", "&a [*a, *a]", "{? {a: 1} : 2}", "\t", "1_000_:5",
    "0b", "[a, b]: c", "!!set {a}", "2001-12-14t21:59:43.10-05:00", "~", ".inf", "<<: [1]", "\x00",
    "'unfinished", "- - - a", "&a [&b [&c [x, x], *c, *c], *b, *b]",
)  # fmt: skip


def recipe_case(rng: random.Random, base: Base, folder: Path) -> list[Command]:
    """A recipe, with flags over it."""
    del base
    path = folder / "case.yaml"
    text = json.dumps(_RECIPE) if rng.random() < 0.1 else yaml.safe_dump(_RECIPE)
    match rng.randrange(4):
        case 0:
            path.write_bytes(damaged(rng, text.encode()))
        case 1:
            lines = text.splitlines()
            at = rng.randrange(len(lines))
            lines[at] = f"{lines[at].partition(':')[0]}: {rng.choice(_YAML)}"
            path.write_text("\n".join(lines), encoding="utf-8")
        case _:
            path.write_text(damaged_json(rng, _RECIPE, rng.choice((1, 2, 3))), encoding="utf-8")
    flags: tuple[Command, ...] = (
        [], [], ["--batch", "1,2"], ["--duration", "1s"], ["--limit", "5"], ["--data", "digits:test"],
        ["--engine", "onnxruntime"], ["--precision", "fp32"], ["--max-drop", "1pp"], ["--workers", "0"],
        ["--skip-bad-images"], ["--calib-images", "9"], ["--image-size", "32"], ["--target", "sm89"],
    )  # fmt: skip
    out = folder / "out.yaml"
    return [["run", str(path), *rng.choice(flags), "--save-recipe", str(out)]]


def manifest_case(rng: random.Random, base: Base, folder: Path) -> list[Command]:
    """The manifest beside a graph, an engine or statistics."""
    source = rng.choice((base.graph, base.engine, base.statistics, folder.parent / "none"))
    if source in {base.graph, folder.parent / "none"}:
        source = base.folder / "int8.onnx"
    path = folder / source.name
    shutil.copyfile(source, path)
    raw = _manifest(source)
    text = damaged_json(rng, raw, rng.choice((1, 1, 2))).encode()
    if rng.random() < 0.1:
        text = damaged(rng, json.dumps(raw).encode())
    path.with_name(path.name + ".json").write_bytes(text)
    commands: list[Command] = [["inspect", str(path)]]
    if source == base.engine:
        commands += [
            ["predict", str(path), str(base.image)],
            ["validate", str(path), "--reference", str(base.graph), "--data", str(base.data),
             "-o", str(folder / "out.json")],
        ]  # fmt: skip
    elif source == base.statistics:
        commands.append(["quantize", str(base.graph), "--stats", str(path), "--method", "minmax",
                         "--target", "openvino", "-o", str(folder / "out.onnx")])  # fmt: skip
    return commands


def result_case(rng: random.Random, base: Base, folder: Path) -> list[Command]:
    """A result, mostly with a digest that fits it."""
    import hashlib

    path = folder / "case.json"
    raw = json.loads(base.result.read_text())
    text = damaged_json(rng, raw, rng.choice((1, 1, 2)))
    try:
        edited = json.loads(text)
        if rng.random() < 0.9 and isinstance(edited, dict):
            edited.pop("digest", None)
            content = json.dumps(edited, sort_keys=True).encode()
            edited["digest"] = hashlib.sha256(content).hexdigest()
            text = json.dumps(edited)
    except (ValueError, RecursionError):
        pass
    path.write_text(text, encoding="utf-8")
    pair = [str(path), str(base.result)]
    return [["compare", *(pair if rng.random() < 0.5 else pair[::-1])]]


def engine_case(rng: random.Random, base: Base, folder: Path) -> list[Command]:
    """An engine that was changed after its manifest was written."""
    path = folder / base.engine.name
    data = base.engine.read_bytes()
    changed = damaged(rng, data)
    path.write_bytes(changed if changed != data else data + b"\x00")
    shutil.copyfile(
        base.engine.with_name(base.engine.name + ".json"), path.with_name(path.name + ".json")
    )
    return [
        rng.choice((["inspect", str(path)], ["predict", str(path), str(base.image)])),
        ["validate", str(path), "--reference", str(base.graph), "--data", str(base.data),
         "-o", str(folder / "out.json")],
    ]  # fmt: skip


KINDS: dict[str, Callable[[random.Random, Base, Path], list[Command]]] = {
    "onnx": onnx_case,
    "safetensors": safetensors_case,
    "pth": pth_case,
    "encodings": encodings_case,
    "statistics": statistics_case,
    "recipe": recipe_case,
    "manifest": manifest_case,
    "results": result_case,
    "npz": npz_case,
    "images": image_case,
    "engines": engine_case,
}
"""The kinds of files, by name."""
