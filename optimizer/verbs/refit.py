"""The verb ``refit``: replace the weights of a TensorRT engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import (
    Artifact,
    Input,
    OutputFile,
    Plan,
    check_outputs,
    load_artifact,
    produce,
    scratch_folder,
)
from optimizer.errors import ArtifactError, UsageError
from optimizer.options import RefitOptions, takes_options
from optimizer.progress import Progress, Silent

if TYPE_CHECKING:
    from optimizer.engines.tensorrt import TensorRt
    from optimizer.graphs.facts import GraphFacts

__all__ = ["refit"]


@takes_options(RefitOptions)
def refit(
    engine: Path | str,
    model: str | Path,
    output: Path | str,
    options: RefitOptions,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Replace the weights of a TensorRT engine without rebuilding it.

    All checks that need no GPU come first. A quantized engine cannot be refitted from a checkpoint:
    its scales, and the biases corrected for them, belong to the weights it was calibrated with, and
    the scales of activations are compiled into its kernels.

    Args:
        engine: An engine built with ``refittable`` or ``strip_weights``; with ``strip_weights``
            alone it takes only the weights it was built with. The file is not changed.
        model: A checkpoint or model name, which is exported as the engine's graph was, or an ONNX
            file of the same network in the engine's precision, with the same scales.
        output: The new engine, including its weights; its graph is written beside it.
        options: See below.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Raises:
        ArtifactError: The file is not an engine, is of another library version, or was not built
            for refitting.
        GraphError, CheckpointError: The weights belong to another network.
        UsageError: The engine is not TensorRT's, or is quantized and ``model`` is a checkpoint.
        MissingLibrary, MissingDevice: TensorRT or a GPU is missing.
    """
    from optimizer.engines.building import copy_graph_beside
    from optimizer.engines.opening import GRAPH_SUFFIX, graph_of
    from optimizer.engines.tensorrt.weight_refit import check_refittable, refit_engine
    from optimizer.graphs.facts import graph_facts

    engine, model, output = Path(engine), str(model), Path(output)
    progress = progress or Silent()
    old = load_artifact(engine)
    beside = output.with_name(output.name + GRAPH_SUFFIX)
    check_outputs(
        [OutputFile(output, "engine"), OutputFile(beside, "graph")],
        [engine, model, graph_of(engine)],
        force=force,
    )
    backend = _backend(old)
    check_refittable(backend.library, engine, old.manifest)
    built_from = graph_of(engine)
    if built_from is None:
        raise ArtifactError(
            f"the graph that {engine.name} was built from is not beside it",
            hint=f"copy {engine.name}.graph.onnx into the same folder",
        )
    facts = graph_facts(built_from)
    with scratch_folder("refit") as folder:
        if model.endswith(".onnx"):
            graph, source = Path(model), Input.of("graph", Path(model))
        else:
            _check_not_quantized(facts, engine, old, model)
            graph, source = _export_like(model, options, facts, folder, progress)
        plan = _plan(old, built_from, graph, source)

        def write(path: Path) -> dict[str, Any]:
            progress.start("refit", total=1)
            refit_engine(
                backend.library, engine, graph, path, manifest=old.manifest, device=options.device
            )
            progress.advance()
            progress.finish()
            return old.manifest.details

        artifact = produce(plan, output, write)
        copy_graph_beside(graph, output)
    return artifact


def _plan(old: Artifact, built_from: Path, graph: Path, source: Input) -> Plan:
    """Check that the weights fit, and plan the new engine."""
    from optimizer.engines.tensorrt.same_network import check_same_network, check_same_weights
    from optimizer.engines.tensorrt.weight_refit import stays_refittable
    from optimizer.graphs.facts import graph_facts

    facts = graph_facts(graph)
    check_same_network(built_from, graph)
    built_with = dict(old.manifest.settings.get("options") or {})
    if not built_with.get("refittable"):
        check_same_weights(built_from, graph)
    # A refitted engine contains its weights.
    built_with |= {
        "strip_weights": False,
        "refittable": stays_refittable(_backend(old).library, old.manifest),
    }
    return Plan(
        kind="engine",
        settings={**old.manifest.settings, "options": built_with, "refitted": True},
        inputs=[old.as_input("engine"), source],
        libraries=old.manifest.libraries,
        device=old.manifest.device,
        preprocessing=facts.preprocessing,
        classes=facts.classes,
    )


def _backend(engine: Artifact) -> TensorRt:
    from optimizer.engines import get_backend
    from optimizer.engines.tensorrt import TensorRt

    if engine.manifest.kind != "engine":
        raise ArtifactError(
            f"{engine.path.name} is a {engine.manifest.kind}, not an engine",
            hint="resnet-opt build makes engines",
        )
    name = str(engine.manifest.settings.get("backend"))
    backend = get_backend(name)
    if not isinstance(backend, TensorRt):
        raise UsageError(
            f"{engine.path.name} is an engine of {name}; only TensorRT engines can be refitted",
            hint="export the new checkpoint and build an engine from it",
        )
    return backend


def _check_not_quantized(facts: GraphFacts, engine: Path, old: Artifact, model: str) -> None:
    precision = facts.precision
    if precision in {"int8", "fp8", "mixed"}:
        raise UsageError(
            f"{engine.name} is {precision.upper()}: its scales belong to the weights it was "
            f"calibrated with and do not fit those of {model}",
            hint=f"resnet-opt export {model} -o new.onnx, then resnet-opt build new.onnx "
            f"--precision {precision} --engine {old.manifest.settings['backend']} --calib DATA",
        )


def _export_like(
    model: str,
    options: RefitOptions,
    facts: GraphFacts,
    folder: Path,
    progress: Progress,
) -> tuple[Path, Input]:
    """Export a checkpoint as the engine's graph was; return the graph and the checkpoint's input."""
    from optimizer.exporting import export_onnx
    from optimizer.models import load_model
    from optimizer.precision import quantize

    loaded = load_model(
        model, arch=options.arch, image_size=facts.image_size, weights=options.weights
    )
    if facts.arch and loaded.arch != facts.arch:
        raise UsageError(
            f"{model} is a {loaded.arch}, but the engine is a {facts.arch}",
            hint="build a new engine; a refit needs the same architecture",
        )
    graph = export_onnx(
        loaded,
        folder / "new.onnx",
        batch=facts.input_shape[0],
        input="uint8-nhwc" if facts.input_dtype == "uint8" else "float32-nchw",
        opset=facts.opset,
        progress=progress,
    ).path
    if facts.precision != "fp32":
        graph = quantize(
            graph, folder / f"new.{facts.precision}.onnx", precision=facts.precision,
            target="tensorrt", progress=progress,
        ).path  # fmt: skip
    return graph, Input(role="checkpoint", file=Path(model).name, sha256=loaded.sha256)
