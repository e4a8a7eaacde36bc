"""Writes generated text between two marks of a page, so that no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

__all__ = ["machine", "write_between_marks", "write_into_readme"]


def machine(device: Mapping[str, Any]) -> str:
    """The CPU of a machine's fingerprint, with its relevant instruction sets."""
    return f"{device.get('cpu')} ({', '.join(device.get('flags') or ['no AVX2'])})"


def write_into_readme(mark: str, text: str) -> None:
    """Replace the text in the README between ``<!-- mark -->`` and ``<!-- /mark -->``."""
    write_between_marks(ROOT / "README.md", mark, text)


def write_between_marks(page: Path, mark: str, text: str) -> None:
    """Replace the text in a page between ``<!-- mark -->`` and ``<!-- /mark -->``."""
    head, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->")
    _, end, tail = rest.partition(f"<!-- /{mark} -->")
    if not (begin and end):
        raise SystemExit(f"{page.name} has no marks named {mark}")
    page.write_text(head + begin + text + end + tail, encoding="utf-8")
