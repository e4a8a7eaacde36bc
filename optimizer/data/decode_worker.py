"""A process that decodes images for another one; started by `optimizer.data.decoding`.

A request is one line with a place and a random number as a JSON list; a place is a path, or archive,
name, offset and size of one of its members. The response is one line with
the CPU seconds that the image took and the error, if any. The pixels go into shared memory: each
worker uses its slots as a ring buffer, and the requesting process makes sure that a slot is free.
The worker exits at the end of its input, so it never outlives its parent.
"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from optimizer.data.images import open_image
from optimizer.data.preprocessing import Preprocessing
from optimizer.data.tar_members import TarMember
from optimizer.errors import DataError
from optimizer.processes.child_main import resolve

__all__ = ["serve"]


def serve(settings: dict[str, Any], requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more.

    Args:
        settings: ``memory`` (file of the shared memory), ``shape`` (of the shared array: slots x H
            x W x channels uint8), ``first`` and ``step`` (this worker's slots), ``preprocessing``
            (``None`` only checks that the image can be decoded), ``operation`` (see `Operation`, or
            ``None``), and Pillow's ``max_pixels`` and ``load_truncated`` as set in the parent
            process.
        requests: One JSON list per line: the place of an image, and a number for the operation.
        answers: One JSON list per line: CPU seconds, error message, hint (``null`` if none).
    """
    from PIL import Image, ImageFile

    Image.MAX_IMAGE_PIXELS = settings["max_pixels"]
    ImageFile.LOAD_TRUNCATED_IMAGES = settings["load_truncated"]
    # Pillow's warnings are either raised as errors (too many pixels) or not useful to the user.
    warnings.simplefilter("ignore")
    preprocessing, slots = None, np.empty((1,), dtype=np.uint8)
    if settings["preprocessing"] is not None:
        preprocessing = Preprocessing.from_dict(settings["preprocessing"])
        memory = np.memmap(settings["memory"], dtype=np.uint8, mode="r+")
        slots = memory.reshape(settings["shape"])
    channels = 3 if preprocessing is None else preprocessing.channels
    change = None
    if preprocessing is not None and settings["operation"] is not None:
        function, values = settings["operation"]
        change = resolve(function)(preprocessing, values)
    slot = settings["first"]
    before = time.process_time()
    for line in requests:
        message = hint = None
        try:
            place, number = json.loads(line)
            file = Path(place[0]) if len(place) == 1 else TarMember(*place)
            image = open_image(file, channels)
            if change is not None:
                slots[slot] = change(image, number)
            elif preprocessing is not None:
                slots[slot] = preprocessing.apply_uint8(image)
        except DataError as error:
            message, hint = error.message, error.hint
        slot = (slot + settings["step"]) % len(slots)
        now = time.process_time()
        answers.write(json.dumps([now - before, message, hint]).encode() + b"\n")
        answers.flush()
        before = now
