from __future__ import annotations

import csv
import io

from optimizer.reporting import render_csv
from optimizer.reporting.spreadsheet import csv_of
from optimizer.results import RunResult

from .conftest import SAMPLES


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_one_row_per_engine_and_batch_with_exact_numbers(full_run: RunResult) -> None:
    assert full_run.bench
    rows = read(render_csv(full_run))
    assert len(rows) == len(full_run.bench.engines)
    by_key = {(row["engine"], row["batch_images"]): row for row in rows}
    for engine in full_run.bench.engines:
        row = by_key[engine.name, str(engine.batch)]
        assert row["status"] == engine.status
        if engine.status != "ok":
            continue
        assert float(row["throughput_images_per_s"]) == engine.images_per_s
        assert engine.images_per_s_ci95
        assert float(row["throughput_images_per_s_ci95_low"]) == engine.images_per_s_ci95[0]
        assert engine.latency_ms
        assert float(row["latency_p50_ms"]) == engine.latency_ms.p50
        assert (row["latency_p99_ms"] == "") == (engine.latency_ms.p99 is None)
        assert int(row["engine_size_bytes"]) == engine.engine_bytes
    assert float(by_key["OpenVINO INT8", "8"]["drop_pp"]) == 0.37
    assert float(by_key["OpenVINO INT8", "1"]["top1_fraction"]) == 0.9852
    assert by_key["OpenVINO INT8", "1"]["precision_computed_shares"].startswith(
        "int8=0.9712; fp32="
    )


def test_every_measured_column_names_its_unit(full_run: RunResult) -> None:
    numbers = [
        name
        for name in read(render_csv(full_run))[0]
        if all(_is_number(row[name]) for row in read(render_csv(full_run)) if row[name])
    ]
    units = (
        "_images",
        "_per_s",
        "_ms",
        "_s",
        "_pp",
        "_db",
        "_bytes",
        "_px",
        "_fraction",
        "_logits",
    )
    bare = {
        "threads",
        "streams",
        "samples",
        "rounds",
        "speedup_ratio",
        "mcnemar_p",
        "precision_share",
    }
    for name in numbers:
        stem = name.removesuffix("_ci95_low").removesuffix("_ci95_high")
        assert (
            stem.endswith((*units, "_j"))
            or stem in bare | {"run_created"}
            or not _used(name, full_run)
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _used(name: str, run: RunResult) -> bool:
    return any(row[name] for row in read(render_csv(run)))


def test_a_failure_has_its_reason(failing_run: RunResult) -> None:
    rows = read(render_csv(failing_run))
    last = rows[-1]
    assert (last["engine"], last["status"]) == ("OpenVINO FP8", "failed")
    assert last["reason"] == "FP8 is not computed by this CPU"
    assert last["batch_images"] == last["throughput_images_per_s"] == ""
    (bad,) = [r for r in rows if r["engine"] == "OpenVINO BF16" and r["batch_images"] == "8"]
    assert bad["status"] == "failed"


def test_every_sample_has_the_same_columns(any_run: RunResult) -> None:
    header = render_csv(any_run).split("\n", 1)[0]
    assert header == render_csv(SAMPLES["full"]()).split("\n", 1)[0]


def test_text_that_a_spreadsheet_would_execute_is_quoted(full_run: RunResult) -> None:
    assert full_run.bench
    full_run.bench.engines[0].name = "=cmd|' /C calc'!A0"
    row = read(render_csv(full_run))[0]
    assert row["engine"] == "'=cmd|' /C calc'!A0"
    negative = next(r for r in read(render_csv(full_run)) if r["drop_pp_ci95_low"])
    assert float(negative["drop_pp_ci95_low"]) == -0.71


def test_several_runs_share_one_header(full_run: RunResult, single_run: RunResult) -> None:
    single_run.title = "another"
    rows = read(csv_of([full_run, single_run]))
    assert [row["run"] for row in rows].count("another") == 1
    assert len(rows) == len(read(render_csv(full_run))) + 1
