"""Values with units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import UsageError
from optimizer.units import parse_bytes, parse_duration, parse_pp, parse_share


@pytest.mark.parametrize(
    ("text", "points"),
    [("1pp", 1.0), ("0.5pp", 0.5), ("0.5 pp", 0.5), ("0pp", 0.0), (".25PP", 0.25)],
)
def test_percentage_points(text: str, points: float) -> None:
    assert parse_pp(text) == points


@pytest.mark.parametrize(
    "text", ["1%", "1", "", "pp", "-1pp", "101pp", "1 p", "nanpp", "1pp1", "1e999pp"]
)
def test_percentage_points_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pp(text)
    assert caught.value.hint == "percentage points such as 1pp or 0.5pp"


@pytest.mark.parametrize(
    ("text", "share"), [("1%", 0.01), ("0.5 %", 0.005), ("0.01", 0.01), ("100%", 1.0), ("0", 0.0)]
)
def test_share(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share, rel=1e-15)


@pytest.mark.parametrize("text", ["1", "5", "101%", "-1%", "1pp", "one"])
def test_share_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_share(text)
    assert caught.value.hint == "a share such as 1% or 0.01"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10.0), ("200ms", 0.2), ("50us", 50e-6), ("2min", 120.0), ("1.5 h", 5400.0)],
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-15)


@pytest.mark.parametrize("text", ["10", "0s", "-1s", "10 sec", "s", "1m"])
def test_duration_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_duration(text)
    assert caught.value.hint == "a duration such as 10s, 200ms or 2min"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 * 2**30),
        ("512MiB", 2**29),
        ("64 KiB", 65536),
        ("1GB", 10**9),
        ("0.5KiB", 512),
        ("7B", 7),
    ],
)
def test_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["4", "4G", "0B", "0.3B", "-1GiB", "GiB", "4gib"])
def test_bytes_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert caught.value.hint == "a size such as 4GiB, 512MiB or 1GB"


@given(st.text(max_size=12))
def test_any_text_is_parsed_or_refused_with_a_hint(text: str) -> None:
    for parse in (parse_pp, parse_share, parse_duration, parse_bytes):
        hint = ""
        try:
            value: float | None = parse(text)
        except UsageError as error:
            value, hint = None, error.hint or ""
        assert (value is not None and value >= 0) or hint
