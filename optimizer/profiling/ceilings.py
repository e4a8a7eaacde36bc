"""This machine's ceilings: products of matrices by data type, and copying memory.

Measured through PyTorch, whose products come from MKL and oneDNN (OpenVINO brings a oneDNN of its
own, ONNX Runtime its MLAS), in a process of their own, with the threads of the run:

* ``fp32``: the faster of `torch.mm` (MKL, which leaves half of the vector width of some CPUs unused)
  and oneDNN's convolution of 1 x 1, which is a product of matrices too;
* ``bf16``, where the CPU has it: `torch.mm`;
* ``int8``: the faster of `torch._int_mm` (signed by signed to INT32) and oneDNN's quantized linear
  layer (unsigned by signed, requantized to 8 bits, as the engines compute). Without VNNI the first
  is a plain loop and no ceiling of anything;
* copying, by `Tensor.copy_`: arrays four times as large as the last cache, and arrays of which both
  fit into half of it. Bytes read and written both count, as STREAM counts them (McCalpin 1995).

A ceiling is what the machine can do, so it is the fastest of the rounds, as STREAM reports it; the
median stands beside it. Products are square, of several sizes, and the fastest size counts. It is
no upper bound: an engine's kernel may be better than the library's product.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ValidationError

from optimizer.artifacts import Cache, content_key, library_versions, write_text_atomically
from optimizer.environment import fingerprint
from optimizer.errors import BuildError
from optimizer.processes import ChildFailed, call, cpus_for
from optimizer.progress import Progress
from optimizer.results import Ceiling, Ceilings
from optimizer.targets.hardware import cpu_features

__all__ = ["Effort", "ceilings", "last_cache_bytes", "measure_here"]

_WAYS = 2
"""Counts the ways to measure: with another one, what is kept of a machine is measured again."""


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        sizes: Sides of the square matrices.
        rounds: Timed products or copies of each kind, after two that do not count.
        memory_bytes: Size of an array that no cache holds; ``None`` for four times the last cache.
    """

    sizes: tuple[int, ...] = (512, 1024, 2048)
    rounds: int = 20
    memory_bytes: int | None = None


def ceilings(
    threads: int,
    *,
    cache: Cache | None,
    remeasure: bool = False,
    effort: Effort | None = None,
    progress: Progress,
) -> Ceilings:
    """The ceilings of this machine's CPU, measured once for a machine, library and threads.

    Args:
        threads: Threads to compute with; the process is pinned to as many cores.
        cache: Where they are kept; ``None`` measures and keeps nothing.
        remeasure: Measure although they are kept, and keep the new ones.
        effort: How much to measure; ``None`` for all.
        progress: Told of the beginning and the end.

    Raises:
        BuildError: The measuring process crashed, or did not end.
    """
    effort = effort or Effort()
    libraries = library_versions("torch")
    asked = {
        "device": fingerprint()["sha256"],
        "threads": threads,
        "libraries": libraries,
        "effort": [list(effort.sizes), effort.rounds, effort.memory_bytes],
        "ways": _WAYS,
    }
    kept = None
    if cache is not None and not cache.rebuild_all:
        kept = cache.root / "measured" / f"{content_key(asked)}.json"
    if kept is not None and not remeasure and (found := _read(kept)) is not None:
        return found
    progress.start("measure the machine's ceilings")
    # A process of its own: PyTorch's threads would disturb what is measured next.
    try:
        compute, memory, near, notes = call(
            "optimizer.profiling.ceilings:measure_here",
            [threads, effort],
            threads=threads,
            cpus=cpus_for(threads),
        )
    except ChildFailed as failure:
        raise BuildError(
            f"measuring the machine's ceilings {failure.message}",
            hint="try again, or --no-ceilings",
        ) from failure
    progress.finish(", ".join(f"{kind} {one.rate / 1e9:.0f} G/s" for kind, one in compute.items()))
    measured = Ceilings(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=fingerprint(),
        threads=threads,
        libraries=libraries,
        compute=compute,
        memory=memory,
        cache=near,
        notes=notes,
    )
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(kept, measured.model_dump_json(indent=2) + "\n")
    return measured


def _read(path: Path) -> Ceilings | None:
    try:
        return Ceilings.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None  # not measured yet, or by another version of this package


def last_cache_bytes(sysfs: Path = Path("/sys")) -> int:
    """Size of the largest cache of the first CPU; 32 MiB where the system does not tell."""
    units = {"K": 1 << 10, "M": 1 << 20}
    files = sysfs.glob("devices/system/cpu/cpu0/cache/index*/size")
    texts = (file.read_text(encoding="ascii").strip() for file in files)
    found = (match for text in texts if (match := re.fullmatch(r"(\d+)([KM])", text)))
    return max((int(match[1]) * units[match[2]] for match in found), default=32 << 20)


# --- in the measuring process --------------------------------------------------------------------

_SETTLING = 2
_PROBE = 256
_MUCH_SLOWER, _UNSTEADY = 0.5, 0.7


_Measured = tuple[dict[str, Ceiling], Ceiling, Ceiling, list[str]]


def measure_here(threads: int, effort: Effort) -> _Measured:
    """Measure in this process; what `ceilings` has called in a child.

    Returns:
        Ceilings of computing by kind, of copying out of memory and inside the cache, and remarks.
    """
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    makers: dict[str, list[tuple[str, _Maker]]] = {
        "fp32": [("torch.mm", _mm(torch.float32)), ("oneDNN's 1 x 1 convolution", _convolution)]
    }
    if cpu_features().bf16:
        makers["bf16"] = [("torch.mm", _mm(torch.bfloat16))]
    makers["int8"] = [
        ("torch._int_mm", _int_mm),
        ("oneDNN's quantized linear layer (u8 x s8 to u8)", _quantized_linear),
    ]
    notes: list[str] = []
    compute = {
        kind: found
        for kind, ways in makers.items()
        if (found := _product(effort, ways, notes)) is not None
    }
    last = last_cache_bytes()
    memory, near = _copying(effort, effort.memory_bytes or 4 * last), _copying(effort, last // 4)
    every = {**compute, "memory": memory, "cache": near}
    if unsteady := [kind for kind, one in every.items() if one.median < _UNSTEADY * one.rate]:
        notes.append(
            f"half of the rounds of {', '.join(unsteady)} were much slower than the fastest: the "
            "machine was busy; measure again with --remeasure when it is quiet"
        )
    return compute, memory, near, notes


_Maker = Callable[[int], Callable[[], object]]
"""Makes a product of square matrices of this side."""


def _product(
    effort: Effort, makers: Sequence[tuple[str, _Maker]], notes: list[str]
) -> Ceiling | None:
    """The fastest size and library of a product, in operations a second; ``None`` if none works."""
    probed = {}
    for name, make in makers:
        try:
            probed[name] = _PROBE**3 / min(_seconds(make(_PROBE), 3))
        except RuntimeError as error:  # not in this build of PyTorch, or not for this CPU
            notes.append(f"{name} was not measured: {str(error).splitlines()[0][:200]}")
    best: Ceiling | None = None
    for name, make in makers:
        # A plain loop takes minutes for the larger sizes.
        if probed.get(name, 0.0) < _MUCH_SLOWER * max(probed.values(), default=1.0):
            continue
        for size in effort.sizes:
            found = _rates(2 * size**3, _seconds(make(size), effort.rounds))
            if best is None or found[0] > best.rate:
                best = _ceiling(found, f"{name}, {size} x {size} matrices", effort)
    return best


def _copying(effort: Effort, size: int) -> Ceiling:
    """Copying an array of this many bytes, in bytes a second."""
    import torch

    source = torch.ones(size // 4)
    target = torch.zeros(size // 4)
    rates = _rates(2 * size, _seconds(lambda: target.copy_(source), effort.rounds))
    return _ceiling(rates, f"Tensor.copy_ of {size / 2**20:.0f} MiB", effort)


def _ceiling(rates: tuple[float, float], how: str, effort: Effort) -> Ceiling:
    return Ceiling(rate=rates[0], median=rates[1], rounds=effort.rounds, how=how)


def _rates(work: int, seconds: Sequence[float]) -> tuple[float, float]:
    return work / min(seconds), work / median(seconds)


def _seconds(call: Callable[[], object], rounds: int) -> list[float]:
    spent = []
    for _ in range(_SETTLING + rounds):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return spent[_SETTLING:]


def _mm(dtype: Any) -> _Maker:
    def make(size: int) -> Callable[[], object]:
        import torch

        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        out = torch.empty(size, size, dtype=dtype)
        return lambda: torch.mm(a, b, out=out)

    return make


def _convolution(size: int) -> Callable[[], object]:
    import torch

    # As many positions as channels: the product of two square matrices.
    last = {"memory_format": torch.channels_last}
    images = torch.randn(1, size, size // 16, 16).contiguous(**last)
    weights = torch.randn(size, size, 1, 1).contiguous(**last)
    return lambda: torch.conv2d(images, weights)


def _int_mm(size: int) -> Callable[[], object]:
    import torch

    a, b = (torch.randint(-64, 64, (size, size), dtype=torch.int8) for _ in range(2))
    return lambda: torch._int_mm(a, b)  # noqa: SLF001 - there is no public name


def _quantized_linear(size: int) -> Callable[[], object]:
    import torch

    a = torch.randint(0, 128, (size, size), dtype=torch.uint8)
    weight = torch.randint(-64, 64, (size, size), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    scales, zeros = torch.full((size,), 0.01), torch.zeros(size, dtype=torch.int64)
    return lambda: torch.ops.onednn.qlinear_pointwise(
        a, 0.1, 3, packed, scales, zeros, None, 1.0, 0, torch.uint8, "none", [], ""
    )
