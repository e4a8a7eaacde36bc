"""Images inside tar archives, read by their place in the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ImagePlace", "TarMember"]


@dataclass(frozen=True, slots=True)
class TarMember:
    """One file inside an archive that is not compressed.

    Attributes:
        archive: The archive.
        name: The member's name in it.
        offset: Where its contents start, bytes.
        size: Their length, bytes.
    """

    archive: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def read(self) -> bytes:
        """The contents.

        Raises:
            OSError: The archive cannot be read, or became shorter.
        """
        with open(self.archive, "rb") as stream:  # noqa: PTH123 - a Path for each image costs more
            stream.seek(self.offset)
            content = stream.read(self.size)
        if len(content) < self.size:
            raise OSError(f"the archive ends within {self.name}")
        return content


ImagePlace = Path | TarMember
"""What an image is decoded from."""
