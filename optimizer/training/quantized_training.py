"""Trains an INT8 network from finished encodings (quantization-aware training, QAT).

The result is a file of learned weights, biases and scales, from which `write_float_graph` and
`write_encodings` make an FP32 graph and encodings of that graph. `optimizer.precision` lowers these
like any others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import Artifact, Cache, Input, Plan, library_versions, produce
from optimizer.data import ImageDataset, Preprocessing
from optimizer.errors import GraphError, UsageError
from optimizer.options import ImageReading, QuantizedTraining, TrainOptions, flag
from optimizer.progress import Progress, Silent
from optimizer.targets.rules import TargetRules
from optimizer.training.devices import device_of
from optimizer.training.distillation_task import Distillation
from optimizer.training.distribution import World, world_of_environment
from optimizer.training.labelled_reading import LabelledReading
from optimizer.training.loop import Fit, Work
from optimizer.training.trainer import compute_threads, continue_fit
from optimizer.training.training_images import TrainingImages
from optimizer.training.training_recipe import complete
from optimizer.training.training_state import StateFile, claim_folder

if TYPE_CHECKING:
    import torch
    from torch import nn

    from optimizer.precision.int8.trainable import Quantization

__all__ = [
    "QuantizedJob",
    "check_quantized_options",
    "quantized_settings",
    "train_quantized",
    "write_encodings",
    "write_float_graph",
]

_UNUSED = (
    "hidden_layers", "freeze_backbone", "sync_batchnorm", "amp", "compile", "mixup", "cutmix", "loss",
    "label_smoothing", "sparsity", "elastic", "find_batch_size", "effective_batch", "backbone_rate", "track",
)  # fmt: skip
"""Options of other trainings."""
_DEFAULT_LABEL_SHARE = 0.0


@dataclass(frozen=True, kw_only=True)
class QuantizedJob:
    """Everything that the training of a quantized network needs.

    Attributes:
        settings: Complete options.
        rules: The target's rules.
        graph: The FP32 graph, as `resnet-opt export` writes it.
        encodings: Finished encodings of that graph.
        data: The training images.
        held_out: Labelled images.
        preprocessing: That of the graph.
        folder: Folder of checkpoints and history.
    """

    settings: TrainOptions
    rules: TargetRules
    graph: Path
    encodings: Path
    data: ImageDataset
    held_out: ImageDataset
    preprocessing: Preprocessing
    folder: Path

    @property
    def plan(self) -> Plan:
        """What determines the learned values."""
        used = self.settings.model_dump(mode="json", exclude=set(QuantizedTraining.model_fields))
        return Plan(
            kind="quantized-network",
            settings={
                **{name: value for name, value in used.items() if name in _DECIDING},
                "label_share": self.label_share,
                "target": self.rules.name,
                "rules": asdict(self.rules),
            },
            inputs=[
                Input(role="data", file=self.data.name, sha256=self.data.sha256),
                Input(role="held_out", file=self.held_out.name, sha256=self.held_out.sha256),
                Input.of("model", self.graph),
                Input.of("encodings", self.encodings),
            ],
            libraries=library_versions("torch", "torchvision", "numpy", "pillow"),
        )

    @property
    def label_share(self) -> float:
        """Share of the loss that comes from labels."""
        share = self.settings.label_share
        return _DEFAULT_LABEL_SHARE if share is None else share


_DECIDING = {
    "epochs", "batch_size", "accumulate", "lr", "lr_batch", "weight_decay", "scheduler", "warmup",
    "lr_decay_rate", "lr_step", "clip_grad", "augment", "random_erasing", "ema", "seed",
}  # fmt: skip
"""Options of every training that affect the learned values."""


def check_quantized_options(options: TrainOptions) -> None:
    """Refuse options that do not go together, before anything is read.

    Raises:
        UsageError: An INT8 option without ``--qat``; an option that ``--qat`` does not use; no model
            to start from; several processes.
    """
    if options.qat is None:
        # How images are read is for every training.
        names = (
            options.of_kind(QuantizedTraining).as_given().keys() - ImageReading.model_fields.keys()
        )
        if names:
            flags = ", ".join(flag(name) for name in sorted(names))
            raise UsageError(
                f"{flags}: only for training an INT8 network",
                hint=f"add --qat int8, or leave out {flags}",
            )
        return
    if options.init in (None, "random"):
        raise UsageError(
            "--qat int8 trains an INT8 network from a trained one",
            hint="--init model.safetensors; resnet-opt train writes one",
        )
    given = options.as_given()
    if unused := [flag(name) for name in _UNUSED if name in given]:
        raise UsageError(
            f"{', '.join(unused)}: not used with --qat", hint=f"leave out {', '.join(unused)}"
        )
    if options.optimizer not in (None, "adamw"):
        raise UsageError(
            f"--qat trains with AdamW, not with {options.optimizer}",
            hint="leave out --optimizer, or --optimizer adamw",
        )
    if world_of_environment().size > 1:
        raise UsageError("--qat trains in one process", hint="start it without torchrun")


def quantized_settings(options: TrainOptions, *, files: bool, image_size: int) -> TrainOptions:
    """The options, completed from the recipe ``qat``.

    Args:
        options: The options as given.
        files: Whether the images are files.
        image_size: Side of the graph's input.

    Raises:
        UsageError: The recipe has an option that is not used.
    """
    settings = complete(options, default="qat", image_size=image_size, files=files)
    if settings.optimizer != "adamw":
        raise UsageError(
            f"--qat trains with AdamW, and the recipe {settings.recipe} uses {settings.optimizer}",
            hint="leave out --recipe, or write one with base: qat",
        )
    if settings.image_size != image_size:
        raise UsageError(
            f"the network to start from takes images of {image_size} px, not {settings.image_size}",
            hint="leave out --image-size",
        )
    return settings


def train_quantized(
    job: QuantizedJob, path: Path, *, cache: Cache | None = None, progress: Progress | None = None
) -> Artifact:
    """Train the network, unless the result exists or is cached.

    Args:
        job: Network, images, settings.
        path: File of the learned values (``.safetensors``).
        cache: Artifact cache.
        progress: Receives progress updates, one per step.

    Raises:
        GraphError: A node of the graph cannot be simulated.
        UsageError: The loss became NaN or infinite.
        Stopped: SIGTERM asked to stop; a checkpoint was written.
    """

    def write(temporary: Path) -> Mapping[str, Any]:
        from safetensors.torch import save_file

        module, details = _trained(job, progress or Silent())
        save_file(dict(module.state_dict()), temporary)
        StateFile(job.folder).remove()
        return details

    return produce(job.plan, path, write, cache=cache)


def _trained(job: QuantizedJob, progress: Progress) -> tuple[nn.Module, dict[str, Any]]:
    import torch

    settings, device = job.settings, device_of(job.settings)
    claim_folder(job.folder)
    world = World()
    work = Work(
        settings=settings,
        world=world,
        device=device,
        progress=progress,
        label=f"training INT8 for {job.rules.name} on {job.data.name}",
        folder=job.folder,
        identity=_identity(job.plan),
        name_of=job.data.image_id,
    )
    torch.set_num_threads(compute_threads())
    with torch.random.fork_rng():
        quantization = _quantization(job.graph, job.encodings, job.rules)
        module = _module(quantization).to(device)
        teacher = Teacher(quantization, device)
        task = Distillation(teacher, job.label_share, job.preprocessing, job.held_out)
        reading = LabelledReading(job.data, job.preprocessing, settings)
        batches = TrainingImages(job.data, job.preprocessing, settings, world, reading)
        fit = Fit(module, task, batches, work)
        notes = continue_fit(fit, work)
        fit.run()
    progress.finish(f"top-1 {fit.rows[-1]['top1']:.2%}")
    (job.folder / "best.pth").unlink(missing_ok=True)  # the result is the last epoch
    notes = [*notes, *(fit.file.notes if fit.file is not None else ())]
    result = fit.result.eval().to("cpu")
    return result, {"history": [dict(row) for row in fit.rows], "notes": notes}


class Teacher:
    """The FP32 network: maps images on a device to logits."""

    def __init__(self, quantization: Quantization, device: torch.device) -> None:
        self._simulation = quantization.simulation
        self._parameters = {
            name: (weight.to(device), bias.to(device))
            for name, (weight, bias) in quantization.exact.items()
        }

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, N x classes."""
        computed = self._simulation.compute(images, self._parameters, None)
        return computed[self._simulation.topology.output]


def _identity(plan: Plan) -> dict[str, Any]:
    """What must be equal for a training to be continued, with readable names."""
    return {
        **plan.settings,
        **{given.role: f"{given.file} ({given.sha256[:12]})" for given in plan.inputs},
        **{f"version of {name}": version for name, version in plan.libraries.items()},
    }


def _quantization(graph: Path, encodings: Path, rules: TargetRules) -> Quantization:
    from optimizer.graphs.importing import load_graph
    from optimizer.graphs.topology import analyse
    from optimizer.precision.int8 import Encodings
    from optimizer.precision.int8.simulation import Simulation
    from optimizer.precision.int8.trainable import Quantization

    topology = analyse(load_graph(graph))
    if unsupported := Simulation.unsupported(topology):
        first = unsupported[0]
        raise GraphError(
            f"{first.name} ({first.op_type}) cannot be trained with simulated INT8",
            hint="resnet-opt quantize converts the network without training",
        )
    return Quantization(topology, Encodings.load(encodings), rules)


def _module(quantization: Quantization) -> nn.Module:
    from optimizer.precision.int8.trainable import trainable_network

    return trainable_network(quantization)


def _learned(job: QuantizedJob, learned: Path) -> nn.Module:
    from safetensors.torch import load_file

    module = _module(_quantization(job.graph, job.encodings, job.rules))
    module.load_state_dict(load_file(learned))
    return module


# --- what was learned, as files -------------------------------------------------------------------


def write_float_graph(
    job: QuantizedJob, learned: Path, output: Path, *, cache: Cache | None = None
) -> Artifact:
    """Write the FP32 graph with the learned weights and biases.

    Args:
        job: As for `train_quantized`.
        learned: The file it wrote.
        output: The graph (``.onnx``).
        cache: Artifact cache.
    """
    from optimizer.graphs.metadata import preprocessed_metadata

    metadata = preprocessed_metadata(job.graph)

    def write(path: Path) -> Mapping[str, Any]:
        from optimizer.graphs.importing import load_graph
        from optimizer.graphs.metadata import write_metadata
        from optimizer.graphs.onnx_files import write_checked
        from optimizer.precision.int8.trainable import write_learned

        model = load_graph(job.graph)
        write_learned(_learned(job, learned), model)
        write_metadata(model, notes=[f"weights were trained as INT8 for {job.rules.name}"])
        write_checked(model, path)
        return {"nodes": len(model.graph)}

    plan = Plan(
        kind="graph",
        settings={"precision": "fp32", "target": job.rules.name},
        inputs=[Input.of("model", job.graph), Input.of("learned", learned)],
        libraries=library_versions("onnx", "onnx-ir", "numpy"),
        preprocessing=metadata.preprocessing,
        classes=metadata.classes,
    )
    return produce(plan, output, write, cache=cache)


def write_encodings(
    job: QuantizedJob, learned: Path, graph: Path, output: Path, *, cache: Cache | None = None
) -> Artifact:
    """Write the learned encodings, for the graph of `write_float_graph`.

    Args:
        job: As for `train_quantized`.
        learned: The file it wrote.
        graph: The FP32 graph with the learned weights.
        output: The encodings (``.encodings.json``).
        cache: Artifact cache.
    """
    source = Input.of("model", graph)

    def write(path: Path) -> Mapping[str, Any]:
        from optimizer.precision.int8.trainable import learned_encodings

        encodings = learned_encodings(_learned(job, learned), source.sha256)
        encodings.save(path)
        return {"tensors": len(encodings.tensors), "layers": len(encodings.layers)}

    plan = Plan(
        kind="encodings",
        settings={"target": job.rules.name, "rules": asdict(job.rules)},
        inputs=[source, Input.of("learned", learned)],
        libraries=library_versions("onnx", "onnx-ir", "numpy"),
    )
    return produce(plan, output, write, cache=cache)
