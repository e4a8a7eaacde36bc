"""A process that decodes images for another one; `optimizer.data.decoding` starts it.

It is asked for one file a line (a name in JSON) and answers one line each: the CPU
seconds the image took, and what is wrong with it, if anything. The pixels go into shared memory, the
k-th image of a worker into the k-th of its places, round and round; who asks sees to it that a
place is free. The end of the input is the end of the process, so none outlives who started it.
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
from optimizer.errors import DataError

__all__ = ["serve"]


def serve(settings: dict[str, Any], requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more.

    Args:
        settings: ``memory`` (file of the shared memory), ``shape`` (of the shared array: places x
            H x W x 3 uint8), ``first`` and ``step`` (this worker's places), ``preprocessing``
            (``None`` only decodes, to see whether it can be done), and Pillow's ``max_pixels`` and
            ``load_truncated`` as the other process has them.
        requests: One JSON string a line, the path of an image.
        answers: One JSON list a line: CPU seconds, message and hint (or ``null``) of an error.
    """
    from PIL import Image, ImageFile

    Image.MAX_IMAGE_PIXELS = settings["max_pixels"]
    ImageFile.LOAD_TRUNCATED_IMAGES = settings["load_truncated"]
    # What Pillow warns of is either refused by name (too many pixels) or of no use to the reader.
    warnings.simplefilter("ignore")
    preprocessing, places = None, np.empty((1,), dtype=np.uint8)
    if settings["preprocessing"] is not None:
        preprocessing = Preprocessing.from_dict(settings["preprocessing"])
        memory = np.memmap(settings["memory"], dtype=np.uint8, mode="r+")
        places = memory.reshape(settings["shape"])
    place = settings["first"]
    before = time.process_time()
    for line in requests:
        message = hint = None
        try:
            image = open_image(Path(json.loads(line)))
            if preprocessing is not None:
                places[place] = preprocessing.apply_uint8(image)
        except DataError as error:
            message, hint = error.message, error.hint
        place = (place + settings["step"]) % len(places)
        now = time.process_time()
        answers.write(json.dumps([now - before, message, hint]).encode() + b"\n")
        answers.flush()
        before = now
