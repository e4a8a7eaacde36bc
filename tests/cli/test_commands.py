"""The commands: output, exit codes, and one-line errors."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from PIL import Image

from optimizer.artifacts import load_artifact

from .conftest import Command

# --- valid input -------------------------------------------------------------------------------------


def test_export_calibrate_quantize_build_inspect_predict(
    resnet_opt: Command, small_checkpoint: Path, tmp_path: Path
) -> None:
    graph, stats = tmp_path / "m.onnx", tmp_path / "m.stats.npz"
    completed = resnet_opt("export", small_checkpoint, "-o", graph)
    assert completed.code == 0, completed.err
    assert "differs from PyTorch by at most" in completed.out

    completed = resnet_opt(
        "calibrate", graph, "--calib", "digits:train", "--calib-images", 64, "-o", stats
    )
    assert completed.code == 0, completed.err

    completed = resnet_opt(
        "quantize", graph, "--target", "tensorrt", "--stats", stats, "-o", tmp_path / "q.onnx"
    )
    assert completed.code == 0, completed.err
    assert "tensors with Q/DQ" in completed.out

    engine = tmp_path / "m.blob"
    completed = resnet_opt(
        "build", graph, "--int8", "--engine", "openvino", "--stats", stats, "-o", engine, "--json",
        "--save-intermediates", tmp_path / "way",
    )  # fmt: skip
    assert completed.code == 0, completed.err
    manifest = json.loads(completed.out)
    assert manifest["details"]["audit"]["verdict"] == "pass"
    assert manifest["settings"]["precision"] == "int8"
    assert (tmp_path / "m.blob.graph.onnx").is_file()
    assert (tmp_path / "way" / "m.blob.graph.encodings.json").is_file()
    assert not (tmp_path / "m.blob.graph.encodings.json").exists()

    completed = resnet_opt("inspect", engine)
    assert completed.code == 0
    assert "100.0 % of the FLOPs are computed in INT8" in completed.out

    digit = tmp_path / "digit.png"
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(digit)
    completed = resnet_opt("predict", engine, digit, "--json")
    assert completed.code == 0, completed.err
    (prediction,) = json.loads(completed.out)
    assert len(prediction["classes"]) == 5
    assert sum(prediction["probabilities"]) <= 1.0 + 1e-9

    completed = resnet_opt(
        "build", graph, "--int8", "--engine", "openvino", "--stats", stats, "-o", engine
    )
    assert "already up to date" in completed.out


@pytest.mark.long
def test_tensorrt_rtx_engines_are_built_and_compared(
    resnet_opt: Command, small_graph: Path, tmp_path: Path
) -> None:
    """Real builds with TensorRT's own options, and the differences between two engines."""
    from optimizer.engines import get_backend

    availability = get_backend("tensorrt-rtx").availability()
    if not availability.can_build:
        pytest.skip(availability.reason)
    engines = {name: tmp_path / f"{name}.rtx" for name in ("fp16", "fp32")}
    build = ("build", small_graph, "--engine", "tensorrt-rtx", "--target", "sm86,sm89")
    completed = resnet_opt(
        *build, "--fp16", "--profile", "1:1:1", "--profile", "2:8:32", "--workspace", "1GiB",
        "--cuda-graph", "--specialization", "lazy", "--runtime-cache", "kernels.bin", "--sparsity",
        "--memory-limit", "16GiB", "--build-timeout", "5min", "-o", engines["fp16"],
    )  # fmt: skip
    assert completed.code == 0, completed.err
    assert "sparsity: TensorRT-RTX compiles ahead of time without it; ignored" in completed.out
    settings = load_artifact(engines["fp16"]).manifest.settings
    assert settings["profile"] == [1, 1, 1]
    assert settings["options"] == {
        "profiles": [[2, 8, 32]], "sparsity": True, "cuda_graph": True, "specialization": "lazy",
        "runtime_cache": "kernels.bin",
    }  # fmt: skip

    assert resnet_opt(*build, "--profile", "1:8:32", "-o", engines["fp32"]).code == 0
    completed = resnet_opt("inspect", engines["fp16"], "--diff", engines["fp32"])
    assert completed.code == 0, completed.err
    assert "PyTorch layers differ" in completed.out
    lines = [line.split() for line in completed.out.splitlines()]
    assert ["precision", "fp16", "|", "fp32"] in lines
    difference = json.loads(
        resnet_opt("inspect", engines["fp16"], "--diff", engines["fp32"], "--json").out
    )
    differing = {name: pair for pair in difference["layers"] for name in pair["modules"]}
    for name in ("conv1", "layer1.0.conv1", "fc"):
        assert differing[name]["b"]["bytes"] > differing[name]["a"]["bytes"]
    same = resnet_opt("inspect", engines["fp16"], "--diff", engines["fp16"])
    assert "  0 of " in same.out

    completed = resnet_opt(*build, "--fp16", "--memory-limit", "20MiB", "-o", tmp_path / "big.rtx")
    assert completed.code == 1
    assert "the memory limit is 20 MiB" in completed.err
    assert not [path.name for path in tmp_path.iterdir() if "big" in path.name]


@pytest.mark.long
def test_layers_are_kept_by_name_and_by_search(
    resnet_opt: Command, small_graph: Path, small_statistics: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.onnx"
    completed = resnet_opt(
        "quantize", small_graph, "--stats", small_statistics, "--keep", "fc, conv1", "-o", kept
    )
    assert completed.code == 0, completed.err
    listed = json.loads((tmp_path / "kept.encodings.json").read_text())["keep"]
    assert listed == ["conv1", "fc"]

    mixed = tmp_path / "mixed.onnx"
    search = (
        "quantize", small_graph, "--precision", "mixed", "--calib", "digits:train",
        "--calib-images", 32, "--data", "digits:test", "--max-drop",
    )  # fmt: skip
    completed = resnet_opt(*search, "100pp", "-o", mixed, "--json")
    assert completed.code == 0, completed.err
    printed = json.loads(completed.out)["details"]["search"]
    written = json.loads((tmp_path / "mixed.search.json").read_text())
    del written["digest"]
    assert printed == written
    assert printed["front"][0]["kept"] == []
    assert printed["validation"]["dataset"]["name"] == "digits:test"
    assert "already within the budget" in resnet_opt(*search, "100pp", "-o", mixed).out


def test_passes_can_be_switched_off(
    resnet_opt: Command, small_graph: Path, small_statistics: Path, tmp_path: Path
) -> None:
    from optimizer.precision.int8 import Encodings

    off = ["--no-equalize", "--no-shift", "--bias-correction", "none"]
    encodings = {}
    for name, flags in (("on", []), ("off", off)):
        completed = resnet_opt(
            "quantize", small_graph, "--stats", small_statistics, "--target", "tensorrt", *flags,
            "-o", tmp_path / f"{name}.onnx",
        )  # fmt: skip
        assert completed.code == 0
        encodings[name] = Encodings.load(tmp_path / f"{name}.encodings.json")
    assert (encodings["on"].options["shift"], encodings["off"].options["shift"]) == (True, False)
    assert encodings["on"].layers["fc"].bias != encodings["off"].layers["fc"].bias
    assert any(layer.output_factor for layer in encodings["on"].layers.values())
    assert not any(layer.output_factor for layer in encodings["off"].layers.values())


@pytest.mark.parametrize("flag", ["--no-shift", "--no-equalize", "--keep layer1.0.conv1"])
@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--precision", "fp16"], "--precision int8"),
        (["--encodings", "ENCODINGS"], "leave out"),
    ],
)
def test_int8_options_are_refused_where_nothing_is_encoded(
    resnet_opt: Command,
    small_graph: Path,
    small_statistics: Path,
    tmp_path: Path,
    flags: list[str],
    hint: str,
    flag: str,
) -> None:
    plain = tmp_path / "plain.onnx"
    assert resnet_opt("quantize", small_graph, "--stats", small_statistics, "-o", plain).code == 0
    given = [tmp_path / "plain.encodings.json" if f == "ENCODINGS" else f for f in flags]
    output = tmp_path / "again.onnx"
    completed = resnet_opt("quantize", small_graph, *given, *flag.split(), "-o", output)
    assert completed.code == 2
    assert flag.split(maxsplit=1)[0] in completed.err
    assert hint in completed.err
    assert not output.exists()
    # A Q/DQ graph has its own integers.
    for verb in (["quantize"], ["build", "--int8", "--engine", "openvino"]):
        completed = resnet_opt(verb[0], plain, *verb[1:], *flag.split(), "-o", output)
        assert completed.code == 2
        assert "float graph" in completed.err


def test_a_mixed_graph_that_cannot_be_judged_is_inconclusive(
    resnet_opt: Command, tmp_path: Path
) -> None:
    """64 images cannot rule out a drop of 0.01 pp; all files are still written."""
    from tests.search.networks import data, graph_file

    graph, output = graph_file(tmp_path / "n.onnx"), tmp_path / "m.onnx"
    completed = resnet_opt(
        "quantize", graph, "--precision", "mixed", "--calib", data(tmp_path / "c.npz", 64, 1),
        "--data", data(tmp_path / "d.npz", 64, 2), "--max-drop", "0.01pp", "-o", output,
    )  # fmt: skip
    assert completed.code == 6, completed
    assert "validate on about" in completed.err
    assert output.is_file()
    search = json.loads((tmp_path / "m.search.json").read_text())
    assert search["validation"]["verdict"] == "inconclusive"
    assert search["front"][search["chosen"]]["flips"] == 0


def test_validate_prints_what_it_writes(
    resnet_opt: Command, small_checkpoint: Path, small_graph: Path, tmp_path: Path
) -> None:
    engine, result = tmp_path / "m.blob", tmp_path / "v.json"
    assert resnet_opt("build", small_graph, "--engine", "openvino", "-o", engine).code == 0
    completed = resnet_opt(
        "validate", engine, "--reference", small_checkpoint, "--data", "digits:test", "--limit", 50,
        "--max-drop", "10pp", "-o", result, "--json",
    )  # fmt: skip
    assert completed.code == 0, completed.err
    written = json.loads(result.read_text())
    del written["digest"]
    assert json.loads(completed.out) == written
    assert json.loads(completed.out)["verdict"] == "pass"
    too_few = resnet_opt(
        "validate", engine, "--reference", small_checkpoint, "--data", "digits:test", "--limit", 50,
        "--max-drop", "1pp", "-o", result,
    )  # fmt: skip
    assert too_few.code == 6
    assert "more images will not help" in too_few.err  # its weights are random
    assert resnet_opt("compare", result, result, "--max-drop", "10pp").code == 0
    assert resnet_opt("compare", result, result, "--max-drop", "1pp").code == 6


def test_a_saved_recipe_can_be_read(resnet_opt: Command, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    completed = resnet_opt("demo", "--arch", "resnet18", "--save-recipe", recipe)
    assert completed.code == 0, completed.err
    assert "resnet18" in recipe.read_text()
    again = tmp_path / "again.yaml"
    assert resnet_opt("run", recipe, "--save-recipe", again).code == 0
    assert again.read_text() == recipe.read_text()


def test_target_is_set_only_for_engines_that_take_it(resnet_opt: Command, tmp_path: Path) -> None:
    saved, bare = tmp_path / "r.yaml", tmp_path / "bare.yaml"
    command = (
        "run",
        "resnet18:random",
        "--data",
        "digits:test",
        "--target",
        "sm86",
        "--save-recipe",
    )
    assert resnet_opt(*command, saved).code == 0
    builds = yaml.safe_load(saved.read_text())["build"]
    targets = {section["engine"][0]: section.get("target") for section in builds}
    assert targets.pop("tensorrt-rtx") == ["sm86"]
    assert {"onnxruntime", "openvino"} <= set(targets)
    assert not any(targets.values())
    bare.write_text("model: resnet18:random\nvalidate: {data: 'digits:test'}\n")
    assert resnet_opt("run", bare, "--target", "sm86", "--save-recipe", saved).code == 0
    (build,) = yaml.safe_load(saved.read_text())["build"]
    assert (build["engine"], build["target"]) == (["auto"], ["sm86"])
    bare.write_text(bare.read_text() + "build: {engine: openvino}\n")
    completed = resnet_opt("run", bare, "--target", "sm86", "--save-recipe", saved)
    assert completed.code == 2
    assert "--target is for TensorRT-RTX" in completed.err


def test_flags_are_saved_in_the_recipe(resnet_opt: Command, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    resnet_opt(
        "run", "resnet50:IMAGENET1K_V2", "--data", "/images", "--precision", "fp32,int8",
        "--engine", "openvino", "--limit", 100, "--max-drop", "0.5pp", "--workers", 3,
        "--save-recipe", recipe,
    )  # fmt: skip
    import yaml

    raw = yaml.safe_load(recipe.read_text())
    assert raw["model"] == "resnet50:IMAGENET1K_V2"
    assert raw["build"][0]["precision"] == ["fp32", "int8"]
    assert raw["build"][0]["engine"] == ["openvino"]
    given = {"data": "/images", "limit": 100, "max_drop": "0.5pp", "workers": 3}
    assert raw["validate"].items() >= given.items()


def test_a_damaged_calibration_image_is_named_and_can_be_skipped(
    resnet_opt: Command, small_graph: Path, tmp_path: Path
) -> None:
    for index in range(24):
        path = tmp_path / "images" / f"c{index % 2}" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 10 * index, np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:50])
    command = [
        "calibrate", small_graph, "--calib", tmp_path / "images", "--workers", 2, "--no-cache",
        "-o", tmp_path / "stats.npz",
    ]  # fmt: skip
    completed = resnet_opt(*command)
    assert completed.code == 2
    assert "c1/23.png" in completed.err
    assert "--skip-bad-images" in completed.err
    completed = resnet_opt(*command, "--skip-bad-images")
    assert completed.code == 0, completed.err
    assert "1 unreadable images were skipped, the first is c1/23.png" in completed.out


@pytest.mark.long
def test_a_third_party_graph_is_built_in_one_step(
    resnet_opt: Command, small_graph: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    proto = onnx.load(small_graph)
    del proto.metadata_props[:]
    bare, engine = tmp_path / "bare.onnx", tmp_path / "bare.blob"
    onnx.save(proto, bare)
    command = ("build", bare, "--int8", "--engine", "openvino", "--calib", "digits:train",
               "--calib-images", 8, "-o", engine)  # fmt: skip
    completed = resnet_opt(*command)
    assert completed.code == 2
    assert "--preprocessing-from" in completed.err
    assert not engine.exists()
    assert resnet_opt(*command, "--preprocessing-from", small_checkpoint).code == 0
    actual = json.loads(resnet_opt("inspect", engine, "--json").out)["preprocessing"]
    expected = json.loads(resnet_opt("inspect", small_graph, "--json").out)["preprocessing"]
    assert actual == expected
    graph = engine.with_name("bare.blob.graph.onnx")
    completed = resnet_opt("build", graph, "--int8", "--preprocessing-from", small_checkpoint,
                      "-o", tmp_path / "again.blob")  # fmt: skip
    assert completed.code == 2
    assert "resnet-opt quantize" in completed.err


def test_folders_and_links_are_followed(
    resnet_opt: Command, small_checkpoint: Path, tmp_path: Path
) -> None:
    """A link to a checkpoint, and a folder of images."""
    (tmp_path / "deployed").mkdir()
    link = tmp_path / "deployed" / "current.safetensors"
    link.symlink_to(small_checkpoint)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number,) * 3).save(pictures / f"{number}.png")
    rows = json.loads(resnet_opt("predict", link, pictures, "--json").out)
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    assert rows[0]["classes"]
    completed = resnet_opt("predict", link, pictures / "3.png")
    assert (completed.code, completed.errors) == (2, [f"error: no such file: {pictures / '3.png'}"])


def test_negative_workers_are_refused(resnet_opt: Command) -> None:
    completed = resnet_opt("run", "resnet50:random", "--data", "digits:test", "--workers", -1)
    assert completed.code == 2
    assert "workers: -1 is too small" in completed.err


def test_doctor_lists_every_engine(resnet_opt: Command) -> None:
    completed = resnet_opt("doctor", "--json")
    assert completed.code == 0
    environment = json.loads(completed.out)
    assert environment["backends"]["openvino"]["can_run"]
    assert environment["libraries"]["openvino"]
    text = resnet_opt("doctor").out
    for name in environment["backends"]:
        assert name in text


def test_doctor_lists_every_onnxruntime_provider(resnet_opt: Command) -> None:
    providers = json.loads(resnet_opt("doctor", "--json").out)["providers"]
    text = resnet_opt("doctor").out
    assert providers["cpu"]["usable"]
    for name, provider in providers.items():
        assert f"  {name} " in text
        for library in provider["missing"]:
            assert f"missing {provider['missing'][0]}" in text
            assert library in text


def test_doctor_reports_a_tensorrt_that_is_too_old(
    resnet_opt: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JetPack 6 installs it in the system's Python without distribution metadata."""
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text("__version__ = '10.3.0'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    completed = resnet_opt("doctor")
    sys.modules.pop("tensorrt", None)
    assert completed.code == 0
    (line,) = (line for line in completed.out.splitlines() if "older than" in line)
    assert line.split()[:2] == ["tensorrt", "missing"]
    assert "TensorRT 10.3.0 is older than 10.12: strong typing is complete from 10.12 on" in line


# --- providers of ONNX Runtime ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cuda_engine(small_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine as built for the CUDA provider on a machine that has it."""
    from optimizer.artifacts import Input, Plan, library_versions, produce
    from optimizer.engines.onnxruntime import OnnxRuntime

    card = load_artifact(small_graph).manifest
    plan = Plan(
        kind="engine",
        settings={
            "backend": "onnxruntime", "precision": "fp32", "batch": None,
            "options": {"provider": "cuda"},
        },
        inputs=[Input.of("graph", small_graph)],
        libraries=library_versions(*OnnxRuntime.libraries),
        preprocessing=card.preprocessing,
        classes=card.classes,
    )  # fmt: skip

    def write(path: Path) -> dict[str, object]:
        path.write_bytes(small_graph.read_bytes())
        return {"layers": [], "image_size": 32}

    return produce(plan, tmp_path_factory.mktemp("cuda") / "m.ort.onnx", write).path


@pytest.fixture
def _no_cuda() -> None:
    from optimizer.engines.providers import PROVIDERS
    from optimizer.engines.providers.status import provider_status

    if provider_status(PROVIDERS["cuda"]).usable:
        pytest.skip("ONNX Runtime's CUDA provider works on this machine")


@pytest.mark.usefixtures("_no_cuda")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "nv-tensorrt-rtx"])
def test_an_unavailable_provider_stops_the_build(
    resnet_opt: Command, small_graph: Path, tmp_path: Path, provider: str
) -> None:
    completed = resnet_opt(
        "build", small_graph, "--engine", "onnxruntime", "--provider", provider,
        "-o", tmp_path / "m.ort.onnx",
    )  # fmt: skip
    assert completed.code == 3
    (line,) = completed.errors
    assert f"ONNX Runtime's provider {provider} cannot be used here: " in line
    assert "hint: " in completed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_cuda")
@pytest.mark.parametrize("device", [None, "cuda:9"])
def test_a_cuda_provider_engine_does_not_fall_back_to_the_cpu(
    resnet_opt: Command,
    cuda_engine: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    device: str | None,
) -> None:
    more = ["--device", device] if device else []
    digit = tmp_path / "digit.png"
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(digit)
    completed = resnet_opt("predict", cuda_engine, digit, *more)
    assert completed.code == 3
    assert "provider cuda cannot be used here" in completed.err
    completed = resnet_opt(
        "bench", cuda_engine, "-o", tmp_path / "b.json", "--duration", "1s", *more
    )
    assert completed.code == 3
    assert "provider cuda cannot be used here" in completed.err
    completed = resnet_opt(
        "validate", cuda_engine, "--reference", small_checkpoint, "--data", "digits:test",
        "--limit", 20, "-o", tmp_path / "v.json", *more,
    )  # fmt: skip
    assert completed.code != 0
    (hop,) = (
        hop for hop in json.loads((tmp_path / "v.json").read_text())["hops"]
        if hop["name"] == "m.ort.onnx"
    )  # fmt: skip
    assert hop["status"] in {"unavailable", "built-not-run"}
    assert "provider cuda cannot be used here" in hop["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "onnxruntime", "--provider", "rocm"], "has no provider 'rocm'"),
        (["--engine", "openvino", "--provider", "cuda"], "--provider is for onnxruntime, not for"),
        (["--provider", "cuda", "--provider-option", "x=1"], "provider cuda has no option 'x'"),
        (
            ["--provider", "cuda", "--provider-option", "x"],
            "provider_options: 'x' is not key=value",
        ),
        (["--provider-option", "use_tf32=1"], "--provider-option without a provider"),
        (["--provider", "cuda", "--opt-level", "3"], "provider cuda has no --opt-level"),
    ],
)
def test_an_invalid_provider_or_option_is_refused(
    resnet_opt: Command, small_graph: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    completed = resnet_opt("build", small_graph, *arguments, "-o", tmp_path / "m.ort.onnx")
    assert completed.code == 2
    assert message in completed.errors[0]
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_is_refused_for_cpu_engines(resnet_opt: Command, small_checkpoint: Path) -> None:
    completed = resnet_opt("bench", small_checkpoint, "--device", "cuda:9")
    assert completed.code == 2
    assert "--device cuda:9 is a GPU, but all engines run on the CPU" in completed.errors[0]


@pytest.mark.long
def test_profile_prints_blocks_and_layers(
    resnet_opt: Command, small_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.profiling.layer_rounds.ROUNDS", 6)
    engine, result = tmp_path / "m.ort.onnx", tmp_path / "profile.json"
    assert resnet_opt("build", small_graph, "--engine", "onnxruntime", "-o", engine).code == 0
    command = (
        "profile",
        engine,
        "--no-ceilings",
        "--threads",
        1,
        "--duration",
        "50ms",
        "-o",
        result,
    )
    completed = resnet_opt(*command)
    assert completed.code == 0, completed.err
    blocks = [line.split()[0] for line in completed.out.splitlines() if line.startswith("layer")]
    assert blocks[:8] == [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert "whole call without profiling" in completed.out
    assert "not in any layer" in completed.out
    assert "ceilings: not measured, as requested" in completed.out
    completed = resnet_opt(*command, "--layers")
    assert sum("fp32" in line for line in completed.out.splitlines()) > 20
    completed = resnet_opt(*command, "--json")
    written = json.loads(result.read_text())
    del written["digest"]
    assert json.loads(completed.out) == written
    assert written["kind"] == "profile"


def test_clean_empties_the_cache(
    resnet_opt: Command, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNET_OPT_CACHE", str(tmp_path / "cache"))
    assert resnet_opt("export", small_checkpoint, "-o", tmp_path / "m.onnx").code == 0
    completed = resnet_opt("clean")
    assert completed.code == 0
    assert "graph       m.onnx\n1 artifacts" in completed.out
    load_artifact(tmp_path / "m.onnx")


def test_version(resnet_opt: Command) -> None:
    from optimizer import __version__

    for words in (["--version"], ["-v", "--version"], ["build", "--version"]):
        shown = resnet_opt(*words).out.strip()
        assert re.fullmatch(
            rf"resnet-opt {re.escape(__version__)}( \([0-9a-f]+(-modified)?\))?", shown
        )
    raw = json.loads(resnet_opt("--version", "--json").out)
    assert raw["version"] == __version__
    assert (f"({raw['commit']})" in shown) == (raw["commit"] is not None)
    assert raw["libraries"]["onnx"] == onnx.__version__
    assert resnet_opt("--version", "--jsn").code == 2


def test_help_shows_defaults(resnet_opt: Command) -> None:
    """Also 0 and 1, which are equal to False and True."""
    text = resnet_opt("profile", "--help").out
    assert "Images per call. [default: 1]" in text
    assert "Time per engine. [default: 5s]" in text
    assert "[default: 0]" in text
    assert "[default: True]" not in text


# --- bad input ---------------------------------------------------------------------------------------


def _bad(
    tmp_path: Path, small_checkpoint: Path, small_graph: Path
) -> dict[str, tuple[list, int, str]]:
    (tmp_path / "text.onnx").write_text("not a network")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "cut.onnx").write_bytes(small_graph.read_bytes()[:5000])
    (tmp_path / "empty").mkdir()
    (tmp_path / "recipe.yaml").write_text("model: resnet18:random\nbuidl: {}\n")
    out = ["-o", tmp_path / "out.x"]
    return {
        "no such model": (["export", tmp_path / "none.safetensors", "-o", tmp_path / "o.onnx"], 2, "none"),
        "unknown name": (["export", "resnet51:random", "-o", tmp_path / "o.onnx"], 2, "resnet51"),
        "no such graph": (["build", tmp_path / "none.onnx", *out], 2, "no such file"),
        "text": (["build", tmp_path / "text.onnx", *out], 2, r"text.onnx"),
        "empty": (["build", tmp_path / "empty.onnx", *out], 2, "holds no graph"),
        "truncated": (["build", tmp_path / "cut.onnx", *out], 2, "truncated"),
        "int8 without data": (
            ["build", small_graph, "--int8", "--engine", "openvino", *out], 2, "needs calibration data",
        ),
        "fp16 on a CPU": (
            ["build", small_graph, "--fp16", "--engine", "openvino", *out], 2, "would compute in FP32",
        ),
        "unknown bias correction": (
            ["build", small_graph, "--int8", "--calib", "digits:train", "--bias-correction", "mean", *out],
            2, "bias_correction: 'mean' is not a choice",
        ),
        "unknown layer": (
            ["build", small_graph, "--int8", "--calib", "digits:train", "--keep", "layer1.0.cov1",
             "--engine", "openvino", *out], 2, "did you mean layer1.0.conv1",
        ),
        "kept in FP16": (
            ["quantize", small_graph, "--precision", "fp16", "--keep", "fc", *out], 2, "INT8 layers",
        ),
        "mixed without data": (
            ["build", small_graph, "--precision", "mixed", "--engine", "openvino", "--calib",
             "digits:train", *out], 2, "--data",
        ),
        "mixed without calib": (
            ["quantize", small_graph, "--precision", "mixed", "--data", "digits:test", *out], 2,
            "--calib",
        ),
        "mixed on its own images": (
            ["quantize", small_graph, "--precision", "mixed", "--calib", "digits:train", "--data",
             "digits", *out], 2, "256 of the 1797 images",
        ),
        "mixed with statistics": (
            ["quantize", small_graph, "--precision", "mixed", "--calib", "digits:train", "--data",
             "digits:test", "--stats", tmp_path / "s.npz", *out], 2, "leave it out",
        ),
        "mixed without a unit": (
            ["quantize", small_graph, "--precision", "mixed", "--calib", "digits:train", "--data",
             "digits:test", "--max-drop", "1", *out], 2, "pp",
        ),
        "profile out of order": (
            ["build", small_graph, "--engine", "tensorrt-rtx", "--profile", "8:4:32", *out], 2, "not ordered",
        ),
        "an option of TensorRT": (
            ["build", small_graph, "--engine", "openvino", "--tf32", *out], 2, "--tf32 is for tensorrt",
        ),
        "an option of OpenVINO": (
            ["build", small_graph, "--engine", "onnxruntime", "--fixed-batch", "1", *out], 2,
            "--fixed-batch is for openvino",
        ),
        "not a batch size": (
            ["build", small_graph, "--engine", "openvino", "--fixed-batch", "all", *out], 2,
            "'all' is not a batch size",
        ),
        "no version-compatible RTX": (
            ["build", small_graph, "--engine", "tensorrt-rtx", "--version-compatible", *out], 2,
            "no version-compatible engines",
        ),
        "a runtime cache in another folder": (
            ["build", small_graph, "--engine", "tensorrt-rtx", "--runtime-cache", "/tmp/k.bin", *out], 2,
            "is not a file name",
        ),
        "a limit without a unit": (
            ["build", small_graph, "--memory-limit", "8", *out], 2, "no unit of bytes",
        ),
        "a timeout without a unit": (
            ["build", small_graph, "--build-timeout", "8", *out], 2, "no unit of time",
        ),
        "a graph to refit": (["refit", small_graph, small_checkpoint, *out], 2, "is a graph, not an engine"),
        "no such engine": (["refit", tmp_path / "none.plan", small_checkpoint, *out], 2, "no such file"),
        "both aliases": (["build", small_graph, "--fp16", "--int8", *out], 2, "together"),
        "unknown engine": (["build", small_graph, "--engine", "tensorflow", *out], 2, "unknown engine"),
        "unknown precision": (
            ["quantize", small_graph, "--precision", "int3", *out], 2, "is not a choice",
        ),
        "few images": (
            ["calibrate", small_graph, "--calib", "digits:train", "--calib-images", 3, *out], 2, "",
        ),
        "empty folder": (["calibrate", small_graph, "--calib", tmp_path / "empty", *out], 2, "empty"),
        "a drop without unit": (
            ["validate", small_graph, "--reference", small_checkpoint, "--data", "digits:test",
             "--max-drop", "1"], 2, "pp",
        ),
        "a graph to profile": (["profile", small_graph], 2, "is a graph, not an engine|not an engine"),
        "ceilings off but remeasured": (
            ["profile", small_checkpoint, "--no-ceilings", "--remeasure"], 2,
            "--remeasure and --no-ceilings together",
        ),
        "bad batches": (["bench", small_graph, "--batch", "1,x"], 2, "'x' is not a positive whole number"),
        "recipe key": (["run", tmp_path / "recipe.yaml"], 2, "buidl"),
        "no result": (["compare", tmp_path / "a.json", tmp_path / "b.json"], 2, "no such file"),
        "no run": (["report", tmp_path / "empty", "-o", tmp_path / "r.html"], 2, "results.json"),
        "unknown option": (["build", small_graph, "--presicion", "int8", *out], 2, "presicion"),
    }  # fmt: skip


def test_bad_input_is_one_clear_line(
    resnet_opt: Command, tmp_path: Path, small_checkpoint: Path, small_graph: Path
) -> None:
    import re

    cases = _bad(tmp_path, small_checkpoint, small_graph)
    before = sorted(tmp_path.rglob("*"))
    for name, (arguments, code, pattern) in cases.items():
        completed = resnet_opt(*arguments)
        assert completed.code == code, (name, completed)
        assert re.search(pattern, completed.err), (name, completed.err)
        assert "Traceback" not in completed.err, (name, completed.err)
        assert completed.out == "", (name, completed.out)
        assert sorted(tmp_path.rglob("*")) == before, name


def test_tensorrt_without_its_library_says_how_to_get_it(
    resnet_opt: Command, small_graph: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    from optimizer.engines import get_backend

    if get_backend("tensorrt").availability().can_build:
        pytest.skip("TensorRT is installed on this machine")
    completed = resnet_opt(
        "build", small_graph, "--fp16", "--engine", "tensorrt", "-o", tmp_path / "m.plan"
    )
    assert completed.code == 3
    assert "pip install" in completed.err
    assert list(tmp_path.iterdir()) == []


def test_a_bug_is_reported_as_an_internal_error(
    resnet_opt: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("optimizer.environment.describe", broken)
    completed = resnet_opt("doctor")
    assert completed.code == 1
    assert "internal error: ZeroDivisionError: oops" in completed.err
