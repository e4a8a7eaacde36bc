from __future__ import annotations

import math
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from optimizer.reporting import render_html
from optimizer.reporting.page import TEMPLATES
from optimizer.results import EngineBench, RunResult

from .conftest import HOSTILE, SAMPLES
from .parsing import Element, bounds, name, parse, table_rows, value


@cache
def _page(run: str) -> Element:
    return parse(render_html([(RunResult.model_validate_json(run), Path())]))


def page_of(run: RunResult) -> Element:
    return _page(run.model_dump_json())


def main_rows(run: RunResult) -> list[dict[str, Element]]:
    return table_rows(page_of(run), "r1-engines")


def note_of(page: Element, cell: Element) -> str:
    """The text of the footnote that a cell refers to."""
    (link,) = [a for a in cell.all("a") if "footnote" in (a.attributes.get("aria-label") or "")]
    return page.by_id(str(link.attributes["href"]).removeprefix("#")).all("span")[0].words


# --- structure ---------------------------------------------------------------------------------


def test_every_sample_is_well_formed_and_has_unique_ids(any_run: RunResult) -> None:
    page = page_of(any_run)
    ids = [e.attributes["id"] for e in page.walk() if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    for link in page.all("a"):
        href = str(link.attributes["href"])
        if href.startswith("#"):
            assert href.removeprefix("#") in ids


def test_the_page_loads_nothing(any_run: RunResult) -> None:
    text = render_html([(any_run, Path())])
    page = parse(text)
    assert not page.all("script")
    assert not page.all("img")
    assert not page.all("iframe")
    for element in page.walk():
        assert "src" not in element.attributes
        assert not [name for name in element.attributes if name.startswith("on")]
    (icon,) = page.all("link")
    assert icon.attributes["href"] == "data:,"
    (style,) = page.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in str(policy.attributes["content"])
    assert "://" not in text


def test_headings_descend_without_a_gap(any_run: RunResult) -> None:
    for runs in ([(any_run, Path())], [(any_run, Path("a")), (any_run, Path("b"))]):
        levels = [
            int(e.tag[1]) for e in parse(render_html(runs)).walk() if re.fullmatch(r"h[1-6]", e.tag)
        ]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))


def test_tables_have_captions_scopes_and_names_for_narrow_screens(any_run: RunResult) -> None:
    page = page_of(any_run)
    for table in page.all("table"):
        assert table.all("caption")[0].words
        headings = {" ".join(th.text.split()) for th in table.all("thead")[0].all("th")}
        assert all(th.attributes.get("scope") for th in table.all("th"))
        for cell in table.all("td"):
            if "colspan" not in cell.attributes:
                label = str(cell.attributes["data-label"])
                assert any(heading.startswith(" ".join(label.split())) for heading in headings)


def test_drawings_have_a_label(full_run: RunResult) -> None:
    page = page_of(full_run)
    drawings = page.all("svg", role="img")
    assert len(drawings) == 12 + 2 + 5 + 12, "throughput, fronts, drops, rounds"
    assert all(drawing.attributes["aria-label"] for drawing in drawings)


def test_the_order_of_the_sections(full_run: RunResult) -> None:
    headings = [e.words for e in page_of(full_run).walk() if e.has_class("section-heading")]
    assert headings == [
        "What was measured",
        "Speed and accuracy",
        "Accuracy hop by hop",
        "Precision audit",
        "Reliability of the timings",
        "Builds",
        "What cannot be concluded",
        "How to reproduce",
        "What each number means",
    ]


def test_the_head_has_the_verdict_and_the_findings(any_run: RunResult) -> None:
    page = page_of(any_run)
    (verdict,) = [p for p in page.all("p") if p.has_class("verdict")]
    assert verdict.all("strong")[0].words == f"Verdict: {any_run.verdict.capitalize()}"
    findings = [li.words for ol in page.all("ol") for li in ol.all("li")]
    assert findings == [" ".join(finding.split()) for finding in any_run.findings]


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s not in ("no-bench", "empty")])
def test_every_speed_in_the_main_table_is_the_result(sample: str) -> None:
    run = SAMPLES[sample]()
    assert run.bench
    rows = {(name(r["Engine"]), value(r["Batch, images"])): r for r in main_rows(run)}
    compared = {(c.b, c.batch): c for c in run.bench.comparisons if c.a == "PyTorch eager FP32"}
    timed = [e for e in run.bench.engines if e.status == "ok"]
    assert timed
    for engine in timed:
        row = rows[" ".join(engine.name.split()), engine.batch]
        assert value(row["Throughput, images/s"]) == engine.images_per_s
        assert bounds(row["Throughput, images/s"]) == engine.images_per_s_ci95
        assert engine.latency_ms is not None
        assert value(row["p50, ms"]) == engine.latency_ms.p50
        assert value(row["p99, ms"]) == engine.latency_ms.p99
        assert engine.engine_bytes is not None
        assert value(row["Size, MiB"]) == engine.engine_bytes / 2**20
        comparison = compared.get((engine.name, engine.batch))
        if comparison:
            assert value(row["Speed-up, ×"]) == comparison.ratio
            assert bounds(row["Speed-up, ×"]) == comparison.ci95


def test_every_accuracy_in_the_main_table_is_the_result(failing_run: RunResult) -> None:
    assert failing_run.validate_
    rows = {
        row["Engine"].words.split(" onnx")[0].split(" openvino")[0]: row
        for row in main_rows(failing_run)
    }
    for hop in failing_run.validate_.hops[4:-1]:
        row = rows[hop.name.removesuffix(" engine")]
        assert hop.top1 is not None
        assert value(row["Top-1, %"]) == hop.top1 * 100
        assert value(row["Drop, pp"]) == hop.drop_pp
        assert bounds(row["Drop, pp"]) == hop.drop_ci95_pp
        assert value(row["Flips, images"]) == hop.flips
        assert value(row["SQNR, dB"]) == hop.sqnr_db
        assert f"of {hop.n}" in row["Flips, images"].words


def test_displayed_numbers_are_the_rounded_values(full_run: RunResult) -> None:
    shown = [data for data in page_of(full_run).all("data") if data.words not in ("∞", "−∞")]
    assert len(shown) > 300
    for data in shown:
        read = float(data.words.replace("−", "-").replace(",", ""))
        exact = float(str(data.attributes["value"]))
        assert read == pytest.approx(exact, rel=0.02, abs=0.051), data.words


def test_every_number_of_the_hop_table_is_the_result(failing_run: RunResult) -> None:
    assert failing_run.validate_
    rows = table_rows(page_of(failing_run), "r1-hops")
    hops = {hop.name: hop for hop in failing_run.validate_.hops}
    assert len(rows) == len(hops)
    for row in rows:
        (hop,) = [h for name, h in hops.items() if row["Hop"].words.startswith(name + " ")]
        if hop.status == "ok" and hop.parent:
            assert value(row["SQNR vs previous hop, dB"]) == hop.sqnr_vs_parent_db
            assert value(row["Flips vs previous hop, images"]) == hop.flips_vs_parent
            assert value(row["SQNR vs reference, dB"]) == hop.sqnr_db
            assert value(row["McNemar p"]) == hop.mcnemar_p
            assert value(row["Largest difference"]) == hop.max_abs_diff
            assert value(row["Drop, pp"]) == hop.drop_pp


def test_latencies_and_costs_are_the_results(full_run: RunResult) -> None:
    page = page_of(full_run)
    assert full_run.bench
    timed = [e for e in full_run.bench.engines if e.status == "ok"]
    latencies, costs = table_rows(page, "r1-latency"), table_rows(page, "r1-cost")
    assert len(latencies) == len(costs) == len(timed)
    for engine, latency, cost in zip(timed, latencies, costs, strict=True):
        assert engine.latency_ms
        assert name(latency["Engine"]) == engine.name
        assert value(latency["Mean, ms"]) == engine.latency_ms.mean
        assert bounds(latency["p50, ms"]) == engine.latency_ci95_ms
        assert value(latency["p95, ms"]) == engine.latency_ms.p95
        assert value(latency["Samples"]) == engine.samples
        assert value(latency["Rate, batches/s"]) == engine.batches_per_s
        assert value(cost["Compute, ms"]) == engine.spans_ms["compute"]
        assert cost["Host to device, ms"].words == "0.0004"
        assert value(cost["First call, ms"]) == engine.first_inference_ms
        assert value(cost["Process start, s"]) == 0.31
        assert "Energy, J per image" not in cost, "nothing was recorded"


def test_units_are_in_the_headings(full_run: RunResult) -> None:
    page = page_of(full_run)
    headings = [
        " ".join(th.text.split()) for th in page.by_id("r1-engines").all("thead")[0].all("th")
    ]
    assert headings == [
        "Engine",
        "Precision" + "requested → computed",
        "Batch, images",
        "Throughput, images/s" + "95 % interval",
        "Speed-up, ×" + "95 % interval",
        "p50, ms",
        "p99, ms",
        "Top-1, %",
        "Drop, pp" + "paired 95 %",
        "Flips, images",
        "SQNR, dB",
        "Size, MiB",
        "Status",
    ]


def test_requested_and_computed_precision_are_in_one_cell(full_run: RunResult) -> None:
    cell = main_rows(full_run)[-2]["Precision"]
    assert cell.words == "int8 → int8 97.1 %, fp32 2.9 %"


def test_a_share_is_not_rounded_to_0_or_100_percent(full_run: RunResult) -> None:
    assert full_run.validate_
    audit = full_run.validate_.audits["model.int8.openvino.blob"]
    audit.share, audit.computed = 0.9999, {"int8": 0.9999, "fp32": 0.0001}
    page = page_of(full_run)
    (row,) = [r for r in table_rows(page, "r1-audit") if r["Engine"].words == "OpenVINO INT8"]
    assert row["Computed, % of FLOPs"].words == "int8 > 99.9 %, fp32 < 0.1 %"
    assert row["In the requested precision, %"].words == "> 99.9"


def test_a_storage_only_engine_is_labelled_as_such(
    full_run: RunResult,
) -> None:
    assert full_run.bench
    for engine in full_run.bench.engines:
        if engine.name == "OpenVINO FP32":
            engine.precision = "fp16 storage, fp32 compute"
    (cell, _) = [r["Precision"] for r in main_rows(full_run) if "OpenVINO FP32" in r["Engine"].text]
    assert cell.words == "fp16 storage, fp32 compute → fp32 100.0 %"


# --- what is missing ---------------------------------------------------------------------------


def test_a_percentile_without_enough_samples_is_a_dash_with_a_footnote(full_run: RunResult) -> None:
    page = page_of(full_run)
    (row,) = [
        r
        for r in table_rows(page, "r1-engines")
        if "OpenVINO INT8" in r["Engine"].text and value(r["Batch, images"]) == 8
    ]
    assert value(row["p99, ms"]) is None
    assert row["p99, ms"].text.strip().startswith("–")
    assert "n = 192" in row["p99, ms"].words
    assert note_of(page, row["p99, ms"]) == (
        "Too few samples for p99: a distribution-free 95 % bound needs 299 samples."
    )


def test_every_dash_of_the_main_table_has_a_footnote(any_run: RunResult) -> None:
    page = page_of(any_run)
    if not any_run.bench and not any_run.validate_:
        assert "This run has no engine." in page.text
        return
    dashes = 0
    for row in table_rows(page, "r1-engines"):
        for cell in row.values():
            if cell.text.strip().startswith("–"):
                dashes += 1
                assert note_of(page, cell).endswith(".")
    assert dashes


def test_every_footnote_belongs_to_a_cell(any_run: RunResult) -> None:
    page = page_of(any_run)
    targets = {a.attributes["href"] for a in page.all("a")}
    for notes in [ul for ul in page.all("ul") if ul.has_class("notes")]:
        for note in notes.all("li"):
            assert f"#{note.attributes['id']}" in targets


def test_built_not_run_is_shown_with_its_reason(full_run: RunResult) -> None:
    page = page_of(full_run)
    (row,) = [r for r in table_rows(page, "r1-engines") if "TensorRT-RTX" in r["Engine"].text]
    assert row["Status"].words.endswith("built, not run")
    assert row["Throughput, images/s"].text.strip().startswith("–")
    remarks = [tr.words for tr in page.by_id("r1-engines").all("tr") if tr.has_class("remark")]
    assert remarks == [
        "TensorRT-RTX FP16: built, not run: needs an NVIDIA GPU to be loaded; this machine has none"
    ]
    assert note_of(page, row["Throughput, images/s"]) == "Not timed: built, not run."
    assert note_of(page, row["Drop, pp"]) == (
        "Not validated: built, not run. The graph it was built from, executed as written: "
        "top-1 98.52 %, drop 0.00 [−0.71, 0.71] pp (ONNX FP32)."
    )
    limits = [ul.words for ul in page.all("ul") if ul.has_class("limits")]
    assert "The speed of TensorRT-RTX FP16: built, not run." in limits[0]


def test_a_run_without_bench_states_that_instead_of_speed() -> None:
    page = page_of(SAMPLES["no-bench"]())
    assert "This run has no benchmark." in page.text
    rows = table_rows(page, "r1-engines")
    assert len(rows) == 7
    assert {note_of(page, row["Throughput, images/s"]) for row in rows} == {
        "This run has no benchmark."
    }
    assert value(rows[1]["Drop, pp"]) == 0.0


def test_a_run_without_validation_states_that_instead_of_accuracy() -> None:
    page = page_of(SAMPLES["no-validate"]())
    assert "This run has no validation." in page.text
    rows = table_rows(page, "r1-engines")
    assert {note_of(page, row["Drop, pp"]) for row in rows} == {"This run has no validation."}
    assert value(rows[0]["Throughput, images/s"]) == 15.83


def test_numbers_that_are_not_finite_do_not_break_the_page(full_run: RunResult) -> None:
    assert full_run.validate_
    assert full_run.bench
    hop = full_run.validate_.hops[4]
    hop.sqnr_db, hop.drop_pp, hop.max_abs_diff = -math.inf, math.nan, math.inf
    full_run.bench.engines[1].images_per_s_ci95 = (0.0, math.inf)
    row = main_rows(full_run)[2]
    assert row["SQNR, dB"].words == "−∞"
    assert row["Drop, pp"].words.startswith("–")
    assert row["Throughput, images/s"].words == "25.9 [0.0, ∞]"


# --- verdicts ----------------------------------------------------------------------------------


def test_the_first_failing_hop_is_highlighted(failing_run: RunResult, full_run: RunResult) -> None:
    marked = [
        tr
        for tr in page_of(failing_run).by_id("r1-hops").all("tr")
        if tr.has_class("first-failing")
    ]
    assert len(marked) == 2, "the row and its remark"
    assert marked[0].words.startswith("ONNX INT8 (u8)")
    assert "First failing hop" in marked[1].words
    assert not [tr for tr in page_of(full_run).walk() if tr.has_class("first-failing")]


def test_an_inconclusive_run_states_what_would_decide_it(inconclusive_run: RunResult) -> None:
    (decide,) = [e for e in page_of(inconclusive_run).all("div") if e.has_class("decide")]
    items = [li.words for li in decide.all("li")]
    assert items[0] == (
        "Accuracy: 540 images cannot decide whether the drop is within 1 pp; "
        "about 1,853 images would."
    )
    assert items[1].startswith("Precision of ONNX Runtime FP32: ")
    assert "run again on a quieter machine" in items[2]
    assert "[1.004, 1.034] at batch 1 and [1.004, 1.034] at batch 8" in items[3]
    assert len(items) == 4


def test_a_run_without_open_questions_lists_none(full_run: RunResult) -> None:
    assert full_run.bench
    for comparison in full_run.bench.comparisons:
        comparison.verdict = "faster"
    assert not [e for e in page_of(full_run).all("div") if e.has_class("decide")]


def test_a_control_that_is_not_equivalent_limits_the_conclusions(
    inconclusive_run: RunResult,
) -> None:
    text = page_of(inconclusive_run).words
    assert "do not trust differences of this size between engines" in text
    assert "the A/A control, an engine compared with itself, is inconclusive" in text


def test_the_limit_of_the_sample_is_stated(full_run: RunResult) -> None:
    assert "with 540 images the smallest upper bound of a drop in this run is 0.71 pp" in (
        page_of(full_run).words
    )


def test_noise_is_shown_block_by_block(full_run: RunResult) -> None:
    page = page_of(full_run)
    rows = table_rows(page, "r1-blocks")
    assert [row["After block"].words for row in rows] == ["maxpool", "layer1.0", "logits"]
    assert [value(row["SQNR of ONNX INT8 (u8), dB"]) for row in rows] == [None, 31.8, 27.2]
    assert note_of(page, rows[0]["SQNR of ONNX INT8 (u8), dB"]).startswith(
        "The tensors are identical"
    )
    assert note_of(page, rows[2]["SQNR of ONNX BF16, dB"]) == "Not measured in this graph."


def test_layers_that_differ_are_listed(full_run: RunResult) -> None:
    rows = table_rows(page_of(full_run), "r1-layers-6")
    assert [(r["PyTorch modules"].words, value(r["Work, MFLOP per image"])) for r in rows] == [
        ("conv1, relu", 236.027904),
        ("fc", 4.096),
    ]


# --- evidence ----------------------------------------------------------------------------------


def test_numbers_link_to_the_files_of_the_run(full_run: RunResult) -> None:
    page = parse(render_html([(full_run, Path("runs/a b"))]))
    hrefs = {str(a.attributes["href"]) for a in page.all("a")}
    assert {
        "runs/a%20b/results.json",
        "runs/a%20b/predictions.npz",
        "runs/a%20b/engines/model.int8.openvino.blob",
        "runs/a%20b/engines/model.int8.openvino.blob.json",
        "runs/a%20b/samples/model.int8.openvino.blob.b8.npz",
    } <= hrefs
    assert all(href.startswith(("#", "runs/a%20b/")) for href in hrefs)


def test_sources_are_the_result_files_of_the_stages(full_run: RunResult) -> None:
    record = full_run.stages[0].model_copy(update={"name": "bench", "file": "bench.json"})
    full_run.stages.append(record)
    page = page_of(full_run)
    sources = [e.words for e in page.all("span") if e.has_class("source")]
    assert sources[1] == "Source: bench.json engines, comparisons, results.json hops"
    assert page.all("a", href="bench.json")


def test_the_size_of_an_engine_that_was_not_timed_is_that_of_its_build(full_run: RunResult) -> None:
    manifest = full_run.stages[-1].manifest
    assert manifest
    manifest["engine_bytes"] = 3 << 20
    assert value(main_rows(full_run)[-1]["Size, MiB"]) == 3
    assert value(table_rows(page_of(full_run), "r1-builds")[-1]["Size, MiB"]) == 3


def test_how_to_reproduce_has_command_recipe_versions_and_digests(full_run: RunResult) -> None:
    page = page_of(full_run)
    blocks = [pre.text for pre in page.all("pre")]
    assert full_run.command in blocks
    assert "build:\n  precision:\n  - fp32\n" in blocks[1]
    versions = {r["Library"].words: r["Version"].words for r in table_rows(page, "r1-libraries")}
    assert versions == {"onnxruntime-gpu": "1.31.0", "openvino": "2026.3.0", "torch": "2.14.1"}
    digests = table_rows(page, "r1-digests")
    assert digests[0]["File"].words == "data: digits:test"
    assert len(digests[0]["sha256"].words) == 64
    assert digests[-1]["File"].words == "preprocessing"


def test_a_library_that_is_not_installed_has_no_version(full_run: RunResult) -> None:
    full_run.environment["libraries"]["timm"] = None
    page = page_of(full_run)
    assert "timm" not in [r["Library"].words for r in table_rows(page, "r1-libraries")]


def test_readings_of_gpus_are_ranges_over_the_rounds(full_run: RunResult) -> None:
    assert full_run.bench
    full_run.bench.conditions.gpu = [
        {"round": i, "gpu": 0, "sm_mhz": 1980 - i, "power_w": 300.5 + i, "held_back_by": []}
        for i in range(24)
    ]
    facts = {dt.words: dd.words for dt, dd in _facts(page_of(full_run))}
    assert facts["GPU 0, sm mhz"] == "1,957 to 1,980"
    assert facts["GPU 0, power w"] == "300.5 to 323.5"
    assert facts["GPU 0, held back by"] == "none"


def _facts(page: Element) -> list[tuple[Element, Element]]:
    return list(zip(page.all("dt"), page.all("dd"), strict=True))


def test_the_facts_about_the_measurement(full_run: RunResult) -> None:
    facts = {dt.words: dd.words for dt, dd in _facts(page_of(full_run))}
    assert facts["Machine"].startswith(
        "cpu AMD EPYC 9354P; cores 2; instruction sets AVX2, AVX-512"
    )
    assert facts["Image size"] == "224 × 224 px"
    assert facts["Batch sizes"] == "1, 8 images"
    assert facts["Threads"] == "2"
    assert facts["Samples per engine"] == "192 to 640 in 24 rounds"
    assert facts["Data"] == "digits:test, n = 540 images, sha256 40c96a7b8e1f"
    assert facts["Limits"] == "drop of at most 2 pp, flips of at most 2 % of the images"
    assert facts["Disturbed rounds"] == "8, 16"


# --- size and hostile input ------------------------------------------------------------------------


def test_names_are_escaped_everywhere(hostile_run: RunResult) -> None:
    text = render_html([(hostile_run, Path())])
    assert "<script" not in text.lower()
    page = parse(text)
    assert " ".join(HOSTILE.split()) in page.all("h1")[0].words
    assert page.all("title")[0].text.startswith(HOSTILE)
    classes = {c for e in page.walk() for c in (e.attributes.get("class") or "").split()}
    assert not [c for c in classes if not re.fullmatch(r"[a-z0-9-]+", c)]
    for link in page.all("a"):
        assert not str(link.attributes["href"]).lower().startswith("javascript:")


def test_all_of_forty_engines_are_shown(many_run: RunResult) -> None:
    text = render_html([(many_run, Path())])
    assert len(table_rows(parse(text), "r1-engines")) == 40
    assert len(text) < 600_000


def test_one_engine_alone(single_run: RunResult) -> None:
    page = page_of(single_run)
    (row,) = table_rows(page, "r1-engines")
    assert note_of(page, row["Speed-up, ×"]).startswith("Not compared with the baseline")


def test_a_page_stays_small(full_run: RunResult) -> None:
    assert len(render_html([(full_run, Path())])) < 300_000


def test_several_runs_are_shown_side_by_side(full_run: RunResult, failing_run: RunResult) -> None:
    page = parse(render_html([(full_run, Path("a")), (failing_run, Path("b"))]))
    verdicts = [r["Verdict"].words for r in table_rows(page, "all-overview")]
    assert verdicts == ["✓pass", "✕fail"]
    rows = table_rows(page, "all-across")
    (row,) = [
        r for r in rows if r["Engine"].words == "OpenVINO INT8" and value(r["Batch, images"]) == 8
    ]
    assert value(row["Run 1: throughput, images/s"]) == 97.53
    assert value(row["Run 1: drop, pp"]) == 0.37
    assert value(row["Run 2: drop, pp"]) == 6.3
    (missing,) = [r for r in rows if r["Engine"].words == "OpenVINO FP8"]
    assert note_of(page, missing["Run 1: drop, pp"]) == "No engine of this name in this run."
    assert page.by_id("r1-engines")
    assert page.by_id("r2-engines")
    hrefs = {str(a.attributes["href"]) for a in page.all("a")}
    assert {"a/results.json", "b/results.json", "#r1", "#r2"} <= hrefs


# --- colours -----------------------------------------------------------------------------------


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_required_by_wcag(scheme: str) -> None:
    css = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    block = blocks[0] if scheme == "light" else blocks[1]
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", block))
    page = colours["page"]
    for ink in ("text", "muted", "link", "pass", "fail", "open"):
        assert _contrast(colours[ink], page) >= 4.5, ink
        assert _contrast(colours[ink], colours["raised"]) >= 4.5, ink
    for verdict in ("pass", "fail", "open"):
        for ink in ("text", "muted", verdict):
            assert _contrast(colours[ink], colours[f"{verdict}-tint"]) >= 4.5, (ink, verdict)
    for bar in ("fp32", "tf32", "fp16", "bf16", "int8", "fp8", "mixed", "other"):
        assert _contrast(colours[bar], page) >= 3, bar


def test_rendering_does_not_change_the_results(any_run: RunResult) -> None:
    before = any_run.model_dump_json()
    render_html([(any_run, Path())])
    assert any_run.model_dump_json() == before


def test_a_bench_of_failures_only_has_rows_with_reasons(full_run: RunResult) -> None:
    assert full_run.bench
    full_run.validate_, full_run.stages, full_run.bench.comparisons = None, [], []
    full_run.bench.engines = [
        EngineBench(
            name="x", file="x.onnx", backend="onnxruntime", status="failed", error=None,
            precision="int8", batch=b,
        )
        for b in (1, 8)
    ]  # fmt: skip
    page = page_of(full_run)
    assert len(table_rows(page, "r1-engines")) == 2
    assert "x: failed: no reason was recorded" in page.words
    assert "none: no engine was timed" in page.words
