"""One job in several processes that torchrun started: ``torchrun -m optimizer validate …``.

Of k processes, each takes every k-th shard, so each image counts exactly once without padding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TypeVar

from optimizer.errors import EnvironmentFault, UsageError

__all__ = ["gathered", "is_first_process", "joined", "local_device", "rank_and_world"]

_T = TypeVar("_T")


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the process group if torchrun started this process and it has not joined yet.

    Raises:
        UsageError: A variable of torchrun's has no number.
        EnvironmentFault: The other processes cannot be reached.
    """
    if _number("WORLD_SIZE", 1) < 2 or "MASTER_ADDR" not in os.environ:
        yield
        return
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    # Only sums and names are exchanged, so the CPU backend suffices on GPU machines too.
    try:
        dist.init_process_group("gloo")
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EnvironmentFault(
            f"cannot join the other processes: {reason}",
            hint="start all of them with torchrun, or unset WORLD_SIZE and MASTER_ADDR",
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_first_process() -> bool:
    """Whether this process writes and prints what all have; true without torchrun.

    Works before the process group is joined and after it was left.
    """
    return _number("RANK", 0) == 0


def _number(variable: str, default: int) -> int:
    """A whole number that torchrun sets.

    Raises:
        UsageError: The variable holds something else.
    """
    text = os.environ.get(variable, "")
    if text and not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError(
            f"the environment variable {variable} is {text[:40]!r}, not a number",
            hint=f"unset {variable}, or start with torchrun, which sets it",
        )
    return int(text) if text else default


def rank_and_world() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gathered(item: _T) -> list[_T]:
    """The items of all processes in rank order; every process gets the same list."""
    import torch.distributed as dist

    _, world = rank_and_world()
    if world == 1:
        return [item]
    parts: list[_T] = [item] * world
    dist.all_gather_object(parts, item)
    return parts


def local_device() -> str | None:
    """The GPU of this process under torchrun, e.g. ``cuda:1``; ``None`` otherwise."""
    return f"cuda:{_number('LOCAL_RANK', 0)}" if "LOCAL_RANK" in os.environ else None
