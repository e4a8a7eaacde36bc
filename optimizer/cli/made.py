"""What the commands that make artifacts share: bars, what they print, what a search adds to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from optimizer.artifacts import Artifact
    from optimizer.results import SearchResult

__all__ = ["as_detail", "bars", "raise_for", "say", "search_result", "searched"]


def search_result(graph: Path, output: Path, precision: str) -> SearchResult | None:
    """What the search left beside the output; a graph that is mixed already needed none."""
    from optimizer.results import SearchResult, read_result
    from optimizer.search import search_path

    path = search_path(output)
    if precision != "mixed" or not path.is_file():
        return None
    result = read_result(path)
    assert isinstance(result, SearchResult)
    return result if result.graph == graph.name else None


def as_detail(found: SearchResult | None) -> dict[str, Any]:
    """A search as a part of what ``--json`` prints."""
    return {} if found is None else {"search": found.model_dump(mode="json")}


def searched(found: SearchResult | None) -> list[str]:
    """What a search found, as remarks."""
    if found is None:
        return []
    judged = [found.validation.finding] if found.validation is not None else []
    return [found.finding, *judged]


def raise_for(found: SearchResult | None) -> None:
    """Raise what the judge of a search decided; a pass or no search raises nothing.

    Raises:
        AccuracyGateFailed, Inconclusive: The verdict is not a pass.
    """
    from optimizer.evaluation import raise_for_verdict

    if found is not None and found.validation is not None:
        raise_for_verdict(found.validation)


def bars() -> Any:
    """Progress bars on the terminal."""
    from optimizer.cli.console import progress

    return progress()


def say(
    made: Artifact,
    as_json: bool,
    *remarks: str | None,
    details: dict[str, Any] | None = None,
) -> None:
    """Print an artifact: its size and remarks, or with ``as_json`` its manifest and ``details``."""
    if as_json:
        raw = made.manifest.model_dump(mode="json")
        raw["details"] |= details or {}
        typer.echo(json.dumps({**raw, "path": str(made.path), "cached": made.cached}, indent=2))
        return
    size = made.path.stat().st_size
    unit, divisor = ("MB", 1e6) if size >= 1e5 else ("kB", 1e3)
    cached = ", nothing to do: it was made before, here or in the cache" if made.cached else ""
    typer.echo(f"{made.path}  {size / divisor:.1f} {unit}{cached}")
    for remark in remarks:
        if remark:
            typer.echo(f"  {remark}")
