"""Ceilings of this machine's CPU: matrix products by data type, and memory bandwidth.

Measured with PyTorch, whose products come from MKL and oneDNN (OpenVINO has its own copy of oneDNN,
ONNX Runtime has MLAS), in a separate process with the requested number of threads:

* ``fp32``: the faster of `torch.mm` (MKL, which uses only half of the vector width of some CPUs) and
  oneDNN's 1 x 1 convolution, which is also a matrix product;
* ``bf16``, if the CPU supports it: `torch.mm`;
* ``int8``: the faster of `torch._int_mm` (signed by signed to INT32) and oneDNN's quantized linear
  layer (unsigned by signed, requantized to 8 bits, as the engines compute). Without VNNI the first
  is a plain loop and not a meaningful ceiling;
* bandwidth of `Tensor.copy_`: with arrays four times as large as the last-level cache, and with two
  arrays that together fit into half of it. Bytes read and written both count, as in STREAM
  (McCalpin 1995).

A ceiling is the fastest round, as in STREAM; the median is recorded with it. Products are square, of
several sizes, and the fastest size counts. A ceiling is not a strict upper bound: an engine's kernel
may be faster than the library's product.
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

_METHOD_VERSION = 2
"""Part of the cache key: increment it when the measuring method changes."""


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        sizes: Sides of the square matrices.
        rounds: Timed products or copies of each kind, after two warm-up rounds.
        memory_bytes: Size of the arrays in main memory; ``None`` for four times the last cache.
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
    """The ceilings of this machine's CPU, measured once per machine, library and thread count.

    Args:
        threads: Compute threads; the process is pinned to as many cores.
        cache: Where results are stored; ``None`` always measures and stores nothing.
        remeasure: Measure even if results are cached, and replace them.
        effort: How much to measure; ``None`` for the default.
        progress: Receives progress updates.

    Raises:
        BuildError: The measuring process crashed or hung.
    """
    effort = effort or Effort()
    libraries = library_versions("torch")
    key = {
        "device": fingerprint()["sha256"],
        "threads": threads,
        "libraries": libraries,
        "effort": [list(effort.sizes), effort.rounds, effort.memory_bytes],
        "ways": _METHOD_VERSION,
    }
    path = None
    if cache is not None and cache.keeps:
        path = cache.root / "measured" / f"{content_key(key)}.json"
    if path is not None and not remeasure and (cached := _read(path)) is not None:
        return cached
    progress.start("measure the machine's ceilings")
    # In a child process: PyTorch's threads would disturb later measurements.
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
    progress.finish(", ".join(f"{kind} {c.rate / 1e9:.0f} G/s" for kind, c in compute.items()))
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
    if cache is not None and path is not None:
        cache.folder(path.parent.name)
        write_text_atomically(path, measured.model_dump_json(indent=2) + "\n")
    return measured


def _read(path: Path) -> Ceilings | None:
    try:
        return Ceilings.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None  # not measured yet, or written by another version of this package


def last_cache_bytes(sysfs: Path = Path("/sys")) -> int:
    """Size of the largest cache of the first CPU; 32 MiB if the system does not report it."""
    units = {"K": 1 << 10, "M": 1 << 20}
    files = sysfs.glob("devices/system/cpu/cpu0/cache/index*/size")
    texts = (file.read_text(encoding="ascii").strip() for file in files)
    matches = (match for text in texts if (match := re.fullmatch(r"(\d+)([KM])", text)))
    return max((int(match[1]) * units[match[2]] for match in matches), default=32 << 20)


# --- in the measuring process --------------------------------------------------------------------

_WARM_UP_ROUNDS = 2
_PROBE_SIZE = 256
_MUCH_SLOWER, _UNSTEADY = 0.5, 0.7

_Measured = tuple[dict[str, Ceiling], Ceiling, Ceiling, list[str]]


def measure_here(threads: int, effort: Effort) -> _Measured:
    """Measure in this process; `ceilings` calls this in a child process.

    Returns:
        Compute ceilings by data type, the bandwidths of main memory and cache, and notes.
    """
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    products: dict[str, list[tuple[str, _Maker]]] = {
        "fp32": [("torch.mm", _mm(torch.float32)), ("oneDNN's 1 x 1 convolution", _convolution)]
    }
    if cpu_features().bf16:
        products["bf16"] = [("torch.mm", _mm(torch.bfloat16))]
    products["int8"] = [
        ("torch._int_mm", _int_mm),
        ("oneDNN's quantized linear layer (u8 x s8 to u8)", _quantized_linear),
    ]
    notes: list[str] = []
    compute = {
        kind: ceiling
        for kind, makers in products.items()
        if (ceiling := _product(effort, makers, notes)) is not None
    }
    last = last_cache_bytes()
    memory, near = _copying(effort, effort.memory_bytes or 4 * last), _copying(effort, last // 4)
    all_ceilings = {**compute, "memory": memory, "cache": near}
    if unsteady := [kind for kind, c in all_ceilings.items() if c.median < _UNSTEADY * c.rate]:
        notes.append(
            f"half of the rounds of {', '.join(unsteady)} were much slower than the fastest: the "
            "machine was busy; use --remeasure when it is idle"
        )
    return compute, memory, near, notes


_Maker = Callable[[int], Callable[[], object]]
"""Takes the side of square matrices and returns a function that multiplies them."""


def _product(
    effort: Effort, makers: Sequence[tuple[str, _Maker]], notes: list[str]
) -> Ceiling | None:
    """The fastest size and library of a product, in operations/s; ``None`` if all fail."""
    probed = {}
    for name, make in makers:
        try:
            probed[name] = _PROBE_SIZE**3 / min(_seconds(make(_PROBE_SIZE), 3))
        except RuntimeError as error:  # not supported by this PyTorch build or CPU
            notes.append(f"{name} was not measured: {str(error).splitlines()[0][:200]}")
    best: Ceiling | None = None
    for name, make in makers:
        # A naive loop would take minutes at the larger sizes.
        if probed.get(name, 0.0) < _MUCH_SLOWER * max(probed.values(), default=1.0):
            continue
        for size in effort.sizes:
            rates = _rates(2 * size**3, _seconds(make(size), effort.rounds))
            if best is None or rates[0] > best.rate:
                best = _ceiling(rates, f"{name}, {size} x {size} matrices", effort)
    return best


def _copying(effort: Effort, size: int) -> Ceiling:
    """Bandwidth of copying an array of ``size`` bytes, in bytes/s."""
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
    times = []
    for _ in range(_WARM_UP_ROUNDS + rounds):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times[_WARM_UP_ROUNDS:]


def _mm(dtype: Any) -> _Maker:
    def make(size: int) -> Callable[[], object]:
        import torch

        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        out = torch.empty(size, size, dtype=dtype)
        return lambda: torch.mm(a, b, out=out)

    return make


def _convolution(size: int) -> Callable[[], object]:
    import torch

    # With as many positions as channels, this multiplies two square matrices.
    last = {"memory_format": torch.channels_last}
    images = torch.randn(1, size, size // 16, 16).contiguous(**last)
    weights = torch.randn(size, size, 1, 1).contiguous(**last)
    return lambda: torch.conv2d(images, weights)


def _int_mm(size: int) -> Callable[[], object]:
    import torch

    a, b = (torch.randint(-64, 64, (size, size), dtype=torch.int8) for _ in range(2))
    return lambda: torch._int_mm(a, b)  # noqa: SLF001 - no public equivalent


def _quantized_linear(size: int) -> Callable[[], object]:
    import torch

    a = torch.randint(0, 128, (size, size), dtype=torch.uint8)
    weight = torch.randint(-64, 64, (size, size), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    scales, zeros = torch.full((size,), 0.01), torch.zeros(size, dtype=torch.int64)
    return lambda: torch.ops.onednn.qlinear_pointwise(
        a, 0.1, 3, packed, scales, zeros, None, 1.0, 0, torch.uint8, "none", [], ""
    )
