from __future__ import annotations

import csv
from pathlib import Path

import pytest

from optimizer.errors import ArtifactError, UsageError
from optimizer.reporting import load_run, write_report
from optimizer.results import RunResult, write_result

from .conftest import SAMPLES
from .parsing import parse


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "first"
    path.mkdir(parents=True)
    write_result(SAMPLES["full"](), path / "results.json")
    return path


def test_a_run_is_read_as_it_was_written(folder: Path, full_run: RunResult) -> None:
    assert load_run(folder) == full_run


def test_a_folder_that_is_not_a_run_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no results\.json") as error:
        load_run(tmp_path)
    assert error.value.hint
    with pytest.raises(ArtifactError, match="no such folder"):
        load_run(tmp_path / "missing")


def test_results_of_another_kind_are_refused(tmp_path: Path, full_run: RunResult) -> None:
    assert full_run.bench
    write_result(full_run.bench, tmp_path / "results.json")
    with pytest.raises(ArtifactError, match="result of bench, not of a run"):
        load_run(tmp_path)


@pytest.mark.parametrize("suffix", ["html", "HTML", "md", "csv"])
def test_the_suffix_selects_the_format(folder: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / "out" / f"report.{suffix}"
    write_report([folder], output)
    text = output.read_text(encoding="utf-8")
    starts = {"html": "<!doctype html>", "md": "# ResNet-50", "csv": "run,run_created,engine"}
    assert text.startswith(starts[suffix.lower()])


@pytest.mark.parametrize("name", ["report.pdf", "report", "html"])
def test_other_suffixes_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as error:
        write_report([folder], tmp_path / name)
    assert ".html, .md, .csv" in str(error.value.hint)
    assert not (tmp_path / name).exists()


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        write_report([], tmp_path / "report.html")


def test_links_lead_from_the_report_to_the_run(folder: Path, tmp_path: Path) -> None:
    for output in (folder / "report.html", tmp_path / "reports" / "report.html"):
        write_report([folder], output)
        page = parse(output.read_text(encoding="utf-8"))
        hrefs = {str(a.attributes["href"]) for a in page.all("a")}
        (link,) = [href for href in hrefs if href.endswith("results.json")]
        assert (output.parent / link).resolve() == (folder / "results.json").resolve()


def test_a_report_contains_no_path_of_the_machine(folder: Path, tmp_path: Path) -> None:
    for suffix in ("html", "md", "csv"):
        output = folder / f"report.{suffix}"
        write_report([folder], output)
        assert str(tmp_path) not in output.read_text(encoding="utf-8")


def test_several_runs(folder: Path, tmp_path: Path) -> None:
    second = folder.with_name("second")
    second.mkdir()
    write_result(SAMPLES["failing"](), second / "results.json")
    write_report([folder, second], tmp_path / "two.html")
    page = parse((tmp_path / "two.html").read_text(encoding="utf-8"))
    assert page.by_id("r2-engines")
    write_report([folder, second], tmp_path / "two.csv")
    with (tmp_path / "two.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["accuracy_verdict"] for row in rows} == {"", "pass", "fail"}
    write_report([folder, second], tmp_path / "two.md")
    text = (tmp_path / "two.md").read_text(encoding="utf-8")
    assert "(runs/first/results.json)" in text
    assert "(runs/second/results.json)" in text
