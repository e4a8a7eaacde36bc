"""Writes generated text between two marks of a page, so that no figure is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.artifacts import write_text_atomically

ROOT = Path(__file__).parent.parent

__all__ = ["machine", "write_between_marks", "write_into_readme", "write_record"]


def machine(device: Mapping[str, Any]) -> str:
    """The CPU of a machine's fingerprint, with its relevant instruction sets."""
    return f"{device.get('cpu')} ({', '.join(device.get('flags') or ['no AVX2'])})"


def write_record(path: Path, report: Mapping[str, Any], page: str | None = None) -> None:
    """Write a record as JSON, and its page beside it as Markdown if there is one.

    Args:
        path: The JSON file; its folder is made.
        report: The record.
        page: The text of the page.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, json.dumps(report, indent=1) + "\n")
    if page is not None:
        write_text_atomically(path.with_suffix(".md"), page)


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
