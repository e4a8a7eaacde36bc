"""The structure of ``keras.applications``' ResNets, for files that hold only weights.

A file with weights names or counts its layers, but does not say how they are connected. For these
networks that is known, so the layers are listed here as a whole model would state them, and followed
like those of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer.errors import CheckpointError
from optimizer.models.keras_archive import Weights
from optimizer.models.keras_graph import Layer, Network, Operand, refuse

__all__ = ["network_of_weights"]

_BLOCKS = {"ResNet50": (3, 4, 6, 3), "ResNet101": (3, 4, 23, 3), "ResNet152": (3, 8, 36, 3)}
_EPSILON = 1.001e-5
_INPUT = "input"
_WHOLE = "save the whole model instead: model.save('model.keras')"


def network_of_weights(layers: Sequence[Weights], path: Path) -> Network:
    """The network that weights without a structure belong to.

    Args:
        layers: The layers of a file with weights.
        path: The file, for messages.

    Raises:
        CheckpointError: They are not the weights of a ResNet-50, -101 or -152 of
            ``keras.applications`` with one fully connected layer.
    """
    convs = [w for w in layers if _dimensions(w) == 4]
    heads = [w for w in layers if _dimensions(w) == 2]
    norms = [w for w in layers if _dimensions(w) == 1]
    if any("preact" in w.name or w.name == "post_bn" for w in norms):
        raise refuse(path, "these are weights of a ResNet V2 (pre-activation), not V1")
    network = next((n for n in _BLOCKS if len(_conv_names(n)) == len(convs) == len(norms)), None)
    if network is None or len(convs) + len(heads) + len(norms) != len(layers):
        raise CheckpointError(
            f"{path} holds only weights, and {len(convs)} convolutions with {len(norms)} BatchNorms "
            f"are not one of {', '.join(_BLOCKS)}",
            hint=_WHOLE,
        )
    if len(heads) != 1:
        number = f"{len(heads)} fully connected layers" if heads else "no fully connected layer"
        raise CheckpointError(
            f"{path} holds only weights, with {number}: how they are connected is not in the file",
            hint=_WHOLE,
        )
    names = _conv_names(network)
    placed = {
        **_placed(convs, [f"{name}_conv" for name in names], path),
        **_placed(norms, [f"{name}_bn" for name in names], path),
    }
    return _network(network, placed, heads[0])


def _dimensions(weights: Weights) -> int:
    """4 for a convolution, 2 for a fully connected layer, 1 for a BatchNorm."""
    return max(len(dataset.shape) for dataset in weights.datasets.values())


def _conv_names(network: str) -> list[str]:
    """The convolutions in Keras's order, without ``_conv``."""
    names = ["conv1"]
    for stage, blocks in enumerate(_BLOCKS[network], start=2):
        for block in range(1, blocks + 1):
            order = (1, 2, 0, 3) if block == 1 else (1, 2, 3)
            names += [f"conv{stage}_block{block}_{index}" for index in order]
    return names


def _placed(found: Sequence[Weights], names: Sequence[str], path: Path) -> dict[str, Weights]:
    """The weights by the name that Keras gives the layer; by their count where it was renamed."""
    by_name = {weights.name: weights for weights in found}
    if set(by_name) == set(names):
        return {name: by_name[name] for name in names}
    if not all(name.isdecimal() for weights in found for name in weights.datasets):
        missing = next(name for name in names if name not in by_name)
        raise CheckpointError(
            f"{path} holds only weights, and none of them is named {missing}", hint=_WHOLE
        )
    ordered = sorted(found, key=_count)
    return dict(zip(names, ordered, strict=True))


def _count(weights: Weights) -> int:
    number = weights.place[-1].rpartition("_")[2]
    return int(number) if number.isdecimal() and weights.place[-1] != number else 0


def _network(network: str, placed: Mapping[str, Weights], head: Weights) -> Network:
    chain = _Chain(placed)
    tensor = chain.pad(_INPUT, "conv1_pad", 3)
    tensor = chain.relu(chain.conv(tensor, "conv1", 7, 2), "conv1_relu")
    tensor = chain.pad(tensor, "pool1_pad", 1)
    pooling = {"pool_size": 3, "strides": 2, "padding": "valid"}
    tensor = chain.add("pool1_pool", "MaxPooling2D", pooling, tensor)
    for stage, blocks in enumerate(_BLOCKS[network], start=2):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 2 and block == 1 else 1
            tensor = chain.block(tensor, f"conv{stage}_block{block}", stride, block == 1)
    tensor = chain.add("avg_pool", "GlobalAveragePooling2D", {}, tensor)
    name = head.name or "predictions"
    chain.add(name, "Dense", {"use_bias": len(head.datasets) == 2}, tensor, place=head.place)
    return Network(layers=chain.layers, input=_INPUT, input_shape=(), output=name)


class _Chain:
    """Lists layers as the configuration of a whole model does."""

    def __init__(self, placed: Mapping[str, Weights]) -> None:
        self.placed = placed
        self.layers: dict[str, Layer] = {}

    def add(
        self, name: str, kind: str, config: Mapping[str, Any], *inputs: str,
        place: tuple[str, ...] = (),
    ) -> str:  # fmt: skip
        """Add a layer; returns its name."""
        operands = tuple(Operand(source) for source in inputs)
        self.layers[name] = Layer(
            name=name, kind=kind, config=config, operands=operands, place=place
        )
        return name

    def pad(self, source: str, name: str, pixels: int) -> str:
        """Pad by zeros on all sides."""
        sides = ((pixels, pixels), (pixels, pixels))
        return self.add(name, "ZeroPadding2D", {"padding": sides}, source)

    def relu(self, source: str, name: str) -> str:
        """Add a ReLU."""
        return self.add(name, "ReLU", {}, source)

    def conv(self, source: str, name: str, kernel: int, stride: int) -> str:
        """Add a convolution and its BatchNorm."""
        weights, norm = self.placed[f"{name}_conv"], self.placed[f"{name}_bn"]
        config = {
            "kernel_size": kernel,
            "strides": stride,
            "padding": "same" if kernel == 3 else "valid",
            "use_bias": len(weights.datasets) == 2,
        }
        self.add(f"{name}_conv", "Conv2D", config, source, place=weights.place)
        settings = {"epsilon": _EPSILON}
        return self.add(
            f"{name}_bn", "BatchNormalization", settings, f"{name}_conv", place=norm.place
        )

    def block(self, source: str, name: str, stride: int, projects: bool) -> str:
        """Add a residual block; its first convolution has the stride."""
        shortcut = self.conv(source, f"{name}_0", 1, stride) if projects else source
        tensor = self.relu(self.conv(source, f"{name}_1", 1, stride), f"{name}_1_relu")
        tensor = self.relu(self.conv(tensor, f"{name}_2", 3, 1), f"{name}_2_relu")
        tensor = self.conv(tensor, f"{name}_3", 1, 1)
        return self.relu(self.add(f"{name}_add", "Add", {}, shortcut, tensor), f"{name}_out")
