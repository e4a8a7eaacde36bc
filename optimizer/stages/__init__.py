"""The stages of the main job: each takes what the stages before it made and leaves an artifact."""

from optimizer.stages.building import build_engines
from optimizer.stages.judging import measure_engines, validate_engines
from optimizer.stages.making import Images, export, make_checkpoint, open_images, take_statistics
from optimizer.stages.state import Run

__all__ = [
    "Images",
    "Run",
    "build_engines",
    "export",
    "make_checkpoint",
    "measure_engines",
    "open_images",
    "take_statistics",
    "validate_engines",
]
