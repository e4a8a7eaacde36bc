"""One training whose rounds of steps another process times; started by ``training_speed.py``.

    python benchmarks/training_worker.py ours '{"arch": "resnet18", ...}'

A line on standard input asks for one round; the answer is a line with its seconds. Both loops train the
same network on the same images from memory, with the same batches, optimizer, schedule and loss, and
nothing is augmented. ``ours`` is the whole of `optimizer.training.train`; ``bare`` is a plain loop as in
PyTorch's tutorials; ``contiguous`` is that loop without the channels-last layout.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

from optimizer.data import Preprocessing, open_dataset
from optimizer.models import build_module
from optimizer.options import TrainOptions
from optimizer.progress import Silent
from optimizer.training import train

MANY = 10**6


class Rounds(Silent):
    """Times rounds of steps, and waits for the parent between them."""

    def __init__(self, steps: int) -> None:
        self._steps, self._done = steps, 0
        self._started: float | None = None

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        """Count a step."""
        del note
        self._done += steps
        if self._done % self._steps == 0:
            if self._started is not None:
                print(time.perf_counter() - self._started, flush=True)
            if not sys.stdin.readline():
                raise SystemExit(0)
            self._started = time.perf_counter()


def ours(settings: dict[str, Any], rounds: Rounds) -> None:
    """The package's training."""
    options = TrainOptions(
        arch=settings["arch"],
        image_size=settings["image_size"],
        batch_size=settings["batch"],
        epochs=MANY,
        augment="none",
        recipe="digits",
        device="cpu",
    )
    train(open_dataset("digits:train"), options, progress=rounds)


def bare(settings: dict[str, Any], rounds: Rounds, *, channels_last: bool = True) -> None:
    """A plain loop."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    data = open_dataset("digits:train")
    (everything,) = data.batches(len(data), Preprocessing.digits(settings["image_size"]))
    images, labels = torch.from_numpy(everything.images), torch.from_numpy(everything.labels)
    torch.manual_seed(0)
    network = build_module(settings["arch"], 10, zero_init_residual=True)
    network = network.to(memory_format=layout).train()
    sgd = torch.optim.SGD(
        network.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
    )
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.05)
    steps = len(data) // settings["batch"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        sgd, max_lr=0.03, total_steps=MANY * steps, cycle_momentum=False
    )
    while True:
        order = torch.randperm(len(data))
        for step in range(steps):
            chosen = order[step * settings["batch"] : (step + 1) * settings["batch"]]
            batch = images[chosen].contiguous(memory_format=layout)
            loss = criterion(network(batch), labels[chosen])
            sgd.zero_grad(set_to_none=True)
            loss.backward()
            sgd.step()
            schedule.step()
            loss.item()  # as one that is shown
            rounds.advance()


def main() -> None:
    """Train until standard input ends."""
    kind, settings = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(settings["threads"])
    rounds = Rounds(settings["steps"])
    if kind == "ours":
        ours(settings, rounds)
    else:
        bare(settings, rounds, channels_last=kind == "bare")


if __name__ == "__main__":
    main()
