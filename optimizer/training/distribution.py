"""The processes of a training. ``torchrun`` or ``accelerate launch`` start them; this joins them.

Both launchers say by environment variables which process this is (``RANK``, ``WORLD_SIZE``,
``LOCAL_RANK``) and where the others are; without these variables there is one process.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.errors import ResnetOptError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["World", "joined", "world_of_environment"]


@dataclass(frozen=True)
class World:
    """The processes that train one network together.

    Attributes:
        rank: Number of this process; process 0 writes the files.
        size: Number of processes on all hosts.
        local_rank: Number of this process on its host, which is the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum numbers over all processes, in double precision.

        Raises:
            ResnetOptError: Another process is gone.
        """
        if self.size == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(list(values), dtype=torch.float64)
        with self.others():
            dist.all_reduce(tensor)
        return [float(value) for value in tensor]

    def from_first(self, value: Any) -> Any:
        """The value that process 0 passes; all processes call this at the same point."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        with self.others():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank; all processes call this at the same point."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with self.others():
            dist.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def others(self) -> Iterator[None]:
        """What exchanges data with the other processes; says so if one of them is gone.

        Raises:
            ResnetOptError: Another process is gone.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_of_the_exchange(error):
                raise
            reason = (str(error).splitlines() or ["no reason"])[0]
            raise ResnetOptError(
                f"process {self.rank} of {self.size} lost the others: {reason}",
                hint="the first process that ended says why; add --resume to continue",
            ) from error

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The network with gradients averaged over all processes."""
        if self.size == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        with warnings.catch_warnings():
            # Kernels in channels-last layout cost DDP one copy, which it reports at each start.
            warnings.filterwarnings("ignore", "Grad strides do not match")
            return DistributedDataParallel(
                module, device_ids=[device.index] if device.type == "cuda" else None
            )


def _is_of_the_exchange(error: RuntimeError) -> bool:
    """Whether an error comes from exchanging data: gloo raises plain RuntimeErrors."""
    from torch.distributed import DistError

    words = ("gloo", "nccl", "connection", "peer", "timed out")
    return isinstance(error, DistError) or any(word in str(error).lower() for word in words)


def world_of_environment() -> World:
    """The world that the launcher describes, without joining it.

    Raises:
        UsageError: A variable of the launcher is not a number.
    """
    try:
        rank, size, local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        )
    except ValueError as error:
        raise UsageError(
            f"RANK, WORLD_SIZE or LOCAL_RANK is not a number: {error}",
            hint="unset it, or use torchrun",
        ) from error
    return World(rank, size, local)


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the other processes for the length of a training."""
    import torch.distributed as dist

    world = world_of_environment()
    if world.size == 1 or dist.is_initialized():
        yield world
        return
    # Numbers and messages go over gloo, gradients on GPUs over NCCL.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield world
    finally:
        dist.destroy_process_group()
