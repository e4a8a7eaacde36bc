"""Several processes on one validation: ``torchrun -m optimizer validate …``.

Every process takes each k-th image, so that each image counts exactly once and nothing is padded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TypeVar

__all__ = ["gathered", "joined", "local_device", "rank_and_world"]

_T = TypeVar("_T")


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other processes if torchrun started this one and nobody has done it yet."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "MASTER_ADDR" not in os.environ:
        yield
        return
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    # Only sums and names travel, so the CPU backend serves machines with GPUs as well.
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gathered(own: _T) -> list[_T]:
    """What each process has, in the order of their numbers; the same list everywhere."""
    import torch.distributed as dist

    _, world = rank_and_world()
    if world == 1:
        return [own]
    parts: list[_T] = [own] * world
    dist.all_gather_object(parts, own)
    return parts


def local_device() -> str | None:
    """The GPU of this process under torchrun, ``cuda:1``; ``None`` otherwise."""
    rank = os.environ.get("LOCAL_RANK")
    return None if rank is None else f"cuda:{rank}"
