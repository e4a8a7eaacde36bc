"""Images and labels, and how an image becomes the network's input."""

from optimizer.data.class_matching import match_classes
from optimizer.data.dataset import Batch, Dataset, ImageDataset, by_group
from optimizer.data.datasets import DATA_FORMS, open_dataset
from optimizer.data.images import open_image
from optimizer.data.objects import Objects
from optimizer.data.preprocessing import Preprocessing
from optimizer.data.shards import shards_of
from optimizer.data.subset import shared_images, stratified_subset

__all__ = [
    "DATA_FORMS",
    "Batch",
    "Dataset",
    "ImageDataset",
    "Objects",
    "Preprocessing",
    "by_group",
    "match_classes",
    "open_dataset",
    "open_image",
    "shards_of",
    "shared_images",
    "stratified_subset",
]
