"""``python train.py …`` is ``resnet-opt train …``, which also takes this script's usual flags."""

from __future__ import annotations

import sys

from optimizer.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    main()
