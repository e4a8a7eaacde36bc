from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.reporting.links import Links


@pytest.mark.parametrize(
    ("folder", "file", "href"),
    [
        (".", "results.json", "results.json"),
        ("runs/a", "engines/x.onnx", "runs/a/engines/x.onnx"),
        ("../a b", "x#1?.npz", "../a%20b/x%231%3F.npz"),
        (".", "../model.safetensors", "../model.safetensors"),
        (".", "javascript:alert(1)", "javascript%3Aalert%281%29"),
        (".", "/home/someone/x.onnx", None),
        (".", "", None),
        (".", None, None),
    ],
)
def test_links(folder: str, file: str | None, href: str | None) -> None:
    assert Links(Path(folder)).to(file) == href


@given(st.text(min_size=1))
def test_no_name_becomes_a_scheme_a_host_or_an_attribute(file: str) -> None:
    try:
        file.encode()
    except UnicodeEncodeError:
        return  # JSON files cannot contain a lone surrogate
    href = Links(Path("run")).to(file)
    if href is None:
        return
    parts = urlsplit(href)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
    assert not set(href) & set("<>\"'& \n")
    assert unquote(href).split("/")[-1] == Path("run", file).as_posix().rstrip("/").split("/")[
        -1
    ] or (".." in file or file.endswith("/."))


def test_an_absolute_path_is_shown_by_its_last_part() -> None:
    assert Links.shown("/home/someone/x.onnx") == "x.onnx"
    assert Links.shown("engines/x.onnx") == "engines/x.onnx"
