"""Draws detections on an image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts import marked_png, write_atomically
from optimizer.tasks.boxes import Detections

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["draw_detections", "write_annotated"]

_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45")


def draw_detections(image: Image.Image, found: Detections, names: Sequence[str]) -> Image.Image:
    """A copy of the image with a box, the class and the score of each detection.

    Args:
        image: RGB.
        found: Detections in the image's pixels.
        names: Names of the classes.
    """
    from PIL import ImageDraw

    drawn = image.copy()
    brush = ImageDraw.Draw(drawn)
    width = max(1, round(max(image.size) / 300))
    # The best detection is drawn last, so that nothing covers it.
    for index in reversed(range(len(found.scores))):
        box, label = found.boxes[index].tolist(), int(found.classes[index])
        color = _COLORS[label % len(_COLORS)]
        brush.rectangle(box, outline=color, width=width)
        text = f"{names[label]} {found.scores[index]:.2f}"
        corner = (box[0] + width, box[1] + width)
        brush.rectangle(brush.textbbox(corner, text), fill=color)
        brush.text(corner, text, fill="black")
    return drawn


def write_annotated(
    image: Image.Image, found: Detections, names: Sequence[str], output: Path
) -> None:
    """Write the image with its detections as PNG, atomically and marked as this package's."""
    encoded = io.BytesIO()
    draw_detections(image, found, names).save(encoded, format="PNG")
    with write_atomically(output) as temporary:
        temporary.write_bytes(marked_png(encoded.getvalue(), "annotated"))
