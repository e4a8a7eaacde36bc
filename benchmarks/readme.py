"""Writes measured text between two marks of the README, so that no figure is typed by hand."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parent.parent / "README.md"

__all__ = ["write_into_readme"]


def write_into_readme(mark: str, text: str, page: Path = README) -> None:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->``, of another page too."""
    head, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->")
    _, end, tail = rest.partition(f"<!-- /{mark} -->")
    if not (begin and end):
        raise SystemExit(f"{page.name} has no marks called {mark}")
    page.write_text(head + begin + text + end + tail, encoding="utf-8")
