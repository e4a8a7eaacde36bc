"""docs/sources.md says what really happens to each file."""

from __future__ import annotations

from tests.graphs.sources_table import PAGE, page


def test_the_table_of_onnx_files_is_current() -> None:
    """Written by ``python -m tests.graphs.sources_table``."""
    assert PAGE.read_text(encoding="utf-8") == page()
