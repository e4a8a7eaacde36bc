"""The page in a real browser: no console output, no requests, nothing wider than the screen."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from optimizer.reporting import render_html

from .conftest import SAMPLES

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]
# A window has a minimum width, a frame does not; media queries inside see the frame's width.
FRAME = """<!doctype html><body style="margin:0">
<iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {{
  const page = frame.contentDocument;
  const cut = [...page.querySelectorAll("td, tbody th, dd, li, p, figcaption, pre.wrap")].filter(
    e => e.clientWidth && e.scrollWidth > e.clientWidth + 1);
  Object.assign(document.body.dataset, {{
    screen: frame.contentWindow.innerWidth,
    page: page.documentElement.scrollWidth,
    cells: page.querySelectorAll("td").length,
    cut: cut.length,
    sideways: [...page.querySelectorAll(".scroll")].filter(
      e => e.scrollWidth > e.clientWidth).length,
  }});
}});
</script>"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


def browse(page: Path, profile: Path) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM
    return subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={profile}",
            "--window-size=1400,900",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def logged(run: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in run.stderr.splitlines() if "CONSOLE" in line]


def test_the_console_stays_empty(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render_html([(SAMPLES["hostile"](), Path())]), encoding="utf-8")
    assert logged(browse(page, tmp_path / "profile")) == []


def test_the_policy_blocks_an_injected_script(tmp_path: Path) -> None:
    """Also shows that the tests see the console."""
    text = render_html([(SAMPLES["full"](), Path())])
    page = tmp_path / "report.html"
    attack = "<script>document.title = 'owned'</script><img src='http://127.0.0.1:9/x.png'>"
    page.write_text(text.replace("</main>", attack + "</main>"), encoding="utf-8")
    run = browse(page, tmp_path / "profile")
    assert "<title>owned" not in run.stdout
    assert len(logged(run)) >= 2
    assert all("Content Security Policy" in line for line in logged(run))


@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.parametrize("sample", ["full", "failing", "hostile", "many", "empty"])
def test_nothing_is_wider_than_the_screen(tmp_path: Path, sample: str, width: int) -> None:
    text = render_html([(SAMPLES[sample](), Path())])
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width, page=html.escape(text)), encoding="utf-8")
    run = browse(frame, tmp_path / "profile")
    measured = {k: int(v) for k, v in re.findall(r'data-(\w+)="(\d+)"', _opening_body(run.stdout))}
    assert measured["screen"] == width
    assert measured["cells"] == text.count("<td")
    assert measured["page"] <= width
    assert measured["cut"] == 0
    assert measured["sideways"] == 0, "tables that must be scrolled"


def _opening_body(dom: str) -> str:
    measured = re.search("<body[^>]*>", dom)
    assert measured
    return measured[0]
