"""Published weights by name: torchvision's and timm's, each with its own preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from optimizer.artifacts import digest
from optimizer.data import Preprocessing
from optimizer.errors import CheckpointError, DataError, EnvironmentFault, MissingLibrary
from optimizer.models.architectures import ARCHITECTURES, check_arch, torchvision_name
from optimizer.models.model import Model, weights_digest
from optimizer.models.model_sources import Source
from optimizer.models.timm_resnets import TIMM_RESNETS, reason_not_built
from optimizer.models.weights import fit_weights, read_weights

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "TIMM",
    "Published",
    "download",
    "identify",
    "load_timm",
    "load_torchvision",
    "torchvision_weights",
]


@dataclass(frozen=True, kw_only=True)
class Published:
    """Weights that torchvision publishes, with their metadata.

    Attributes:
        name: ``resnet50:IMAGENET1K_V2``.
        arch: The architecture.
        url: URL of the file.
        digest_prefix: First eight digits of the file's SHA-256, part of its name.
        classes: Names of the outputs in order.
        preprocessing: The transforms used for the published evaluation.
        top1: Published accuracy on ImageNet's validation images, a fraction of one.
    """

    name: str
    arch: str
    url: str
    digest_prefix: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    top1: float | None = None

    @property
    def file(self) -> str:
        """The file's name."""
        return Path(urlparse(self.url).path).name


def torchvision_weights(arch: str) -> dict[str, Published]:
    """All weights that torchvision publishes for an architecture, by name (``IMAGENET1K_V2``)."""
    from torchvision.models import get_model_weights

    published: dict[str, Published] = {}
    if torchvision_name(arch) != arch or arch in TIMM_RESNETS:
        return published
    for weights in get_model_weights(check_arch(arch)):
        published[weights.name] = Published(
            name=f"{arch}:{weights.name}",
            arch=arch,
            url=weights.url,
            digest_prefix=Path(urlparse(weights.url).path).stem.rpartition("-")[2],
            classes=tuple(weights.meta["categories"]),
            preprocessing=Preprocessing.from_torchvision(weights.transforms()),
            top1=_published_top1(weights.meta),
        )
    return published


def _published_top1(meta: Mapping[str, Any]) -> float | None:
    percent = meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    return None if percent is None else float(percent) / 100


def identify(path: Path) -> Published | None:
    """Recognize a file of torchvision's weights by its digest, whatever its name.

    The right preprocessing (resize to 232 or 256 pixels) is worth half a percent of accuracy, and
    for a file copied to an offline machine the digest is the only way to determine it.
    """
    sha256 = digest(path)
    for arch in ARCHITECTURES:
        for published in torchvision_weights(arch).values():
            if sha256.startswith(published.digest_prefix):
                return published
    return None


def load_torchvision(arch: str, weights: str) -> Model:
    """Load published torchvision weights, downloading them into torch's hub folder if needed.

    Args:
        arch: The architecture.
        weights: ``IMAGENET1K_V1``, ``IMAGENET1K_V2`` or ``DEFAULT``.

    Raises:
        CheckpointError: There are no weights of this name, or the downloaded file is damaged.
        EnvironmentFault: The weights are not cached and cannot be downloaded.
    """
    available = torchvision_weights(arch)
    name = next(reversed(available), weights) if weights == "DEFAULT" else weights
    if name not in available:
        raise CheckpointError(
            f"torchvision has no weights {weights!r} for {arch}",
            hint=f"use one of {', '.join(f'{arch}:{key}' for key in available)}, {arch}:random",
        )
    published = available[name]
    read = read_weights(download(published))
    module, _ = fit_weights(read.state, arch, published.name)
    return Model(
        module=module,
        arch=arch,
        classes=published.classes,
        num_classes=len(published.classes),
        preprocessing=published.preprocessing,
        source=published.name,
        sha256=weights_digest(module.state_dict()),
        expected_top1=published.top1,
    )


def download(published: Published) -> Path:
    """Download a file into torch's hub folder, unless it is there; returns its path.

    Raises:
        CheckpointError: The file is damaged.
        EnvironmentFault: It cannot be downloaded.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / published.file
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(
            published.url, str(path), hash_prefix=published.digest_prefix, progress=False
        )
    except (OSError, RuntimeError) as error:  # URLError is an OSError, a wrong hash a RuntimeError
        raise EnvironmentFault(
            f"cannot download the weights {published.name}: {error}",
            hint=f"download {published.url} elsewhere and pass the file {published.file} instead",
        ) from error
    return path


# --- timm --------------------------------------------------------------------------------------


def load_timm(name: str, image_size: int | None = None) -> Model:
    """Load timm weights into a module of torchvision's blocks.

    timm's plain ResNets, and those with deep stems, have the same tensors. The outputs of both networks are
    compared on one batch, so variants with another activation or pooling are rejected.

    Args:
        name: The name after ``timm:``, such as ``resnet50.a1_in1k``.
        image_size: Input size to be used; timm has a different crop for its test size.

    Raises:
        MissingLibrary: timm is not installed.
        CheckpointError: timm has no such weights, or they belong to another network.
        EnvironmentFault: The weights cannot be downloaded.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingLibrary(
            "timm is not installed", hint="pip install 'resnet-opt[timm]'"
        ) from error
    if not timm.is_model(name.partition(".")[0]):
        raise CheckpointError(f"timm has no model {name!r}", hint="see timm.list_pretrained()")
    try:
        timm_module: nn.Module = timm.create_model(name, pretrained=True).eval()
    except RuntimeError as error:  # an unknown tag, or an architecture without weights
        raise CheckpointError(f"timm cannot load {name!r}: {error}") from error
    except Exception as error:
        if not _is_network_error(error):
            raise
        raise EnvironmentFault(
            f"cannot download the weights timm:{name}: {str(error).splitlines()[0]}",
            hint="download its model.safetensors elsewhere and pass the file with --arch",
        ) from error
    return from_timm_module(timm_module, name, image_size)


def _is_network_error(error: Exception) -> bool:
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or module in ("huggingface_hub", "httpx", "requests")


def from_timm_module(timm_module: Any, name: str, image_size: int | None) -> Model:
    """Convert a timm network to torchvision's module; see `load_timm`."""
    import timm
    import torch

    source = f"timm:{name}"
    try:
        module, arch = fit_weights(dict(timm_module.state_dict()), None, source)
    except CheckpointError as error:
        raise CheckpointError(
            f"{source} has {reason_not_built(name) or 'layers'} that no supported network has",
            hint=f"supported: {', '.join(ARCHITECTURES)}",
        ) from error
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        expected, actual = timm_module(images), module(images)
    if not torch.allclose(expected, actual, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise CheckpointError(f"{source} has the tensors of {arch} but different outputs")
    config = timm_module.pretrained_cfg
    test_size = (config.get("test_input_size") or (0, 0, 0))[1]
    data = timm.data.resolve_data_config(
        pretrained_cfg=config, use_test_size=image_size is not None and image_size == test_size
    )
    try:
        preprocessing = Preprocessing.from_timm(data)
    except DataError as error:
        raise CheckpointError(f"{source}: {error.message}") from error
    num_classes = int(module.get_parameter("fc.bias").shape[0])
    tag = name.partition(".")[2]
    imagenet = num_classes == 1000 and tag.endswith("in1k")
    published = next(iter(torchvision_weights("resnet50").values()))
    return Model(
        module=module,
        arch=arch,
        classes=published.classes if imagenet else None,
        num_classes=num_classes,
        preprocessing=preprocessing,
        source=source,
        sha256=weights_digest(module.state_dict()),
    )


TIMM = Source(forms=("timm:resnet50.a1_in1k",), prefix="timm:", load_name=load_timm)
