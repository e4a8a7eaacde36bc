"""The verb: pruning with a modelled table, resuming, refusals; measured tables in long tests."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import optimizer
from optimizer.artifacts import Cache
from optimizer.data import open_dataset
from optimizer.engines.registry import get_backend
from optimizer.errors import ArtifactError, CheckpointError, DataError, UsageError
from optimizer.evaluation.chain import Chain, plan_steps
from optimizer.evaluation.reference import open_reference
from optimizer.models import Model, Widths, load_model, save_checkpoint
from optimizer.options import PruneOptions, TableOptions
from optimizer.progress import Silent
from optimizer.pruning import PruneJob, check_fits, check_prunable, read_table
from optimizer.pruning.latency_model import network_ms
from optimizer.results import LatencyTable, PruneResult, read_result
from tests.pruning.networks import tiny


def _options(table: Path, **more: object) -> PruneOptions:
    given = {"data": "digits:train", "table": table, "epochs": 2, "step": 4, "speedup": 1.3}
    given |= {"engine": "openvino", "saliency_images": 64, "workers": 0, **more}
    return PruneOptions(**{name: value for name, value in given.items() if value is not None})


@pytest.mark.long
def test_a_network_is_pruned_and_judged(
    checkpoint: Path, table: Path, learned: Model, digits: str, tmp_path: Path
) -> None:
    output = tmp_path / "pruned.safetensors"
    options = _options(table, data=digits, max_drop="20pp", batch="1,8", rounds=2, epochs=1)
    result = optimizer.prune(checkpoint, output, options, cache=Cache(tmp_path / "cache"))
    times = read_table(table).batches
    narrow = load_model(output)
    assert narrow.pruned_from == learned.sha256
    assert narrow.narrow is not None
    assert Widths.from_dict(result.after) == narrow.widths
    for at, found in zip(times, result.latency, strict=True):
        assert found.before_ms == pytest.approx(network_ms(at, learned.widths))
        assert found.after_ms == pytest.approx(network_ms(at, narrow.widths))
        assert found.speedup >= 1.3
    assert len(result.rounds) == 2
    assert result.notes == [f"no --val: 84 images of {digits} judge, and are not trained on"]
    first, second = (Widths.from_dict(one.widths) for one in result.rounds)
    assert network_ms(times[0], second) < network_ms(times[0], first) < times[0].whole_ms[0]
    assert result.gflops[1] < result.gflops[0]
    assert result.parameters[1] == sum(p.numel() for p in narrow.module.parameters())
    assert result.validation is not None
    assert result.validation.hops[1].name == "pruned.safetensors"
    assert not (tmp_path / "pruned.pruning").exists()
    stored = read_result(tmp_path / "pruned.prune.json")
    assert isinstance(stored, PruneResult)
    assert stored.after == result.after
    assert "not measured" in stored.table_reason

    again = optimizer.prune(checkpoint, tmp_path / "b.safetensors", options,
                            cache=Cache(tmp_path / "cache"))  # fmt: skip
    assert again.created == result.created  # from the cache


@pytest.mark.long
def test_an_interrupted_pruning_continues(
    checkpoint: Path,
    table: Path,
    digits: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from optimizer.pruning import prune_job
    from optimizer.training import Stopped

    real, saliencies = prune_job.tune, []
    measure = prune_job.measure_saliency

    def stop(*args: object, **kwargs: object) -> None:
        raise Stopped("asked to stop")

    def count(*args: object, **kwargs: object) -> object:
        saliencies.append(1)
        return measure(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(prune_job, "measure_saliency", count)
    monkeypatch.setattr(prune_job, "tune", stop)
    output, cache = tmp_path / "p.safetensors", Cache(tmp_path / "cache")
    options = _options(table, data=digits, max_drop="50pp", epochs=1)
    with pytest.raises(Stopped) as caught:
        optimizer.prune(checkpoint, output, options, cache=cache)
    assert (caught.value.hint or "").startswith(f"resnet-opt prune {checkpoint} ")
    assert not output.exists()
    monkeypatch.setattr(prune_job, "tune", real)
    optimizer.prune(checkpoint, output, options, cache=cache)
    assert len(saliencies) == 1  # the cut was kept


def _job(learned: Model, table: Path, **given: object) -> PruneJob:
    return PruneJob(
        model=learned,
        data=open_dataset("digits:train", limit=128, workers=0),
        table=read_table(table),
        options=_options(table, epochs=1, **given),
        cache=None,
        progress=Silent(),
    )


def test_operations_can_be_limited_instead_of_time(
    learned: Model, table: Path, tmp_path: Path
) -> None:
    artifact = _job(learned, table, speedup=None, keep_flops="60%").run(tmp_path / "p.safetensors")
    result = PruneResult.model_validate(artifact.manifest.details["prune"])
    assert 0.45 < result.gflops[1] / result.gflops[0] <= 0.6


@pytest.mark.parametrize(
    ("aim", "words"),
    [
        ({"speedup": 50.0}, "--speedup"),
        ({"speedup": None, "max_latency": "0.05us"}, "--max-latency"),
        ({"speedup": None, "keep_flops": "1%"}, "--keep-flops"),
    ],
)
def test_an_aim_out_of_reach_names_one_within(
    aim: dict[str, object], words: str, learned: Model, table: Path
) -> None:
    """The floor does not depend on saliency; the flag that the hint names is accepted."""
    from optimizer.pruning.saliency import Saliency
    from optimizer.pruning.width_choice import choose_widths

    blocks = learned.widths.by_block
    equal = Saliency(
        {f"{name}.conv1": np.ones(16) for name in blocks}, dict.fromkeys(blocks, 1.0), 1
    )
    prunable = check_prunable(learned)
    limits = _job(learned, table, **aim)._limits(1)
    with pytest.raises(UsageError, match="after everything was cut") as caught:
        choose_widths(learned.widths, equal, prunable, limits, 4)
    flag, value, *_ = (caught.value.hint or "").split()
    assert flag == words
    name = flag[2:].replace("-", "_")
    given = float(value) if name == "speedup" else value
    reachable = _job(learned, table, **{"speedup": None, name: given})._limits(1)
    choose_widths(learned.widths, equal, prunable, reachable, 4)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"speedup": None}, "one aim, not no aim"),
        ({"keep_flops": "50%"}, "--speedup and --keep-flops"),
        ({"speedup": 50.0}, "after everything was cut takes"),
        ({"val": "digits:train"}, "are also in digits:train"),
        ({"precision": "fp16"}, "table of precision int8, not fp16"),
        ({"engine": "onnxruntime"}, "table of engine openvino, not onnxruntime"),
        ({"image_size": 64}, "table of image size 32, not 64"),
        ({"batch": "4"}, "no times at batch 4"),
    ],
)
def test_bad_input_is_refused(
    given: dict[str, object], message: str, checkpoint: Path, table: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        optimizer.prune(checkpoint, tmp_path / "p.safetensors", _options(table, **given))
    assert not (tmp_path / "p.safetensors").exists()


def test_data_of_other_classes_is_refused(table: Path, tmp_path: Path) -> None:
    path = save_checkpoint(tiny("resnet18", classes=4), tmp_path / "m.safetensors", details={}).path
    with pytest.raises(DataError, match="has 10 classes, but the model has 4"):
        optimizer.prune(path, tmp_path / "p.safetensors", _options(table))


def test_tables_of_other_networks_are_refused(table: Path, learned: Model) -> None:
    found = read_table(table)
    other = replace(learned, module=tiny("resnet18", inner=24).module)
    with pytest.raises(UsageError, match=r"another network: layer1\.0 is \[16, 16\] there"):
        check_fits(found, other, TableOptions(batch="1"), "t.json")
    raw = json.loads(table.read_text())
    raw["batches"][0]["outside_ms"] = 0.0
    edited = table.with_name("edited.json")
    edited.write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match="was edited"):
        read_table(edited)


def test_graphs_and_names_are_refused(checkpoint: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"m\.onnx is a graph"):
        optimizer.prune(tmp_path / "m.onnx", tmp_path / "p.safetensors", _options(table))
    with pytest.raises(UsageError, match=r"\.safetensors, not as p\.pth"):
        optimizer.prune(checkpoint, tmp_path / "p.pth", _options(table))
    with pytest.raises(CheckpointError, match="is a detector"):
        optimizer.prune(
            "retinanet_resnet18_fpn:random:3", tmp_path / "p.safetensors", _options(table)
        )


# --- the hop -------------------------------------------------------------------------------------


def _pruned(learned: Model, path: Path) -> Model:
    """A pruned network beside its reference, without the work."""
    narrow = replace(tiny("resnet18", inner=8), pruned_from=learned.sha256, source="pruned")
    details = {"weights_sha256": narrow.sha256}
    save_checkpoint(narrow, path, details=details)
    return load_model(path)


@pytest.mark.slow
def test_pruning_is_a_hop_of_its_own(learned: Model, tmp_path: Path) -> None:
    from optimizer.evaluation import validate
    from optimizer.exporting import export_onnx
    from optimizer.results import Gates

    narrow = _pruned(learned, tmp_path / "pruned.safetensors")
    graph = export_onnx(narrow, tmp_path / "pruned.onnx").path
    steps = plan_steps([Chain.of(graph)], open_reference(learned))["pruned.onnx"]
    assert [(s.name, s.kind, s.parent) for s in steps] == [
        ("pruned", "network", "reference"),
        ("onnx fp32", "graph", "pruned"),
    ]
    assert all(step.fault is None and step.remark is None for step in steps)
    data = open_dataset("digits:test", limit=200, workers=0)
    result = validate([Chain.of(graph)], learned, data, Gates(max_drop_pp=1.0))
    assert result.verdict == "fail"  # random weights
    assert result.first_failing_hop == "pruned"
    assert "the loss comes from pruning (pruned), not from the export" in result.finding
    (tmp_path / "pruned.safetensors").unlink()
    (step,) = plan_steps([Chain.of(graph)], open_reference(learned))["pruned.onnx"]
    assert step.place == "pruning or the export"
    own = plan_steps([Chain.of(graph)], open_reference(narrow))["pruned.onnx"]
    assert [s.name for s in own] == ["onnx fp32"]  # against itself nothing was pruned


# --- measured ------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_table_is_measured_in_the_engine(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine is no failure here: how wide intervals may be is tested by itself."""
    monkeypatch.setattr("optimizer.pruning.table_measuring._WIDEST_INTERVAL", math.inf)
    assert get_backend(engine).availability().can_run
    path = save_checkpoint(tiny("resnet50", inner=32), tmp_path / "m.safetensors", details={}).path
    found = optimizer.latency_table(
        path, tmp_path / "t.json", engine=engine, precision="int8", batch="1", duration="300ms"
    )
    assert isinstance(found, LatencyTable)
    assert found.source == "measured"
    (at,) = found.batches
    model = load_model(path)
    assert set(at.blocks) == set(model.widths.by_block)
    assert network_ms(at, model.widths) > at.outside_ms > 0  # how well it predicts is in `check`
    assert all(sum(ms[0]) > 0 for ms in (b.layers_ms for b in at.blocks.values()))
    assert at.check is not None
    assert at.check.measured_ms > 0
    assert not at.blocks["layer1.0"].droppable
    assert at.blocks["layer1.1"].droppable
    check_fits(found, model, TableOptions(engine=engine), "t.json")
