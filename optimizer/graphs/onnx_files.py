"""ONNX files: the one place that opens, checks and writes them.

Engine libraries read a file by its path with readers of their own; everything else of this package
works on what `open_onnx` gives.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import external_data_files
from optimizer.errors import GraphError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "OnnxFile",
    "checker_complaint",
    "copy_as_one_file",
    "open_checked",
    "open_onnx",
    "write_checked",
    "write_graph",
]

_EXPORT = "export it again with resnet-opt export"


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that was read.

    Attributes:
        path: The file.
        proto: The `onnx.ModelProto`; without the tensors of other files unless they were asked for.
    """

    path: Path
    proto: Any

    @property
    def files(self) -> list[Path]:
        """All that the model is made of: the file itself, and the files that hold its weights.

        Raises:
            ArtifactError: One is missing, or outside the model's own folder.
        """
        return [self.path, *external_data_files(self.path)]

    def to_ir(self) -> ir.Model:
        """The model as `onnx_ir` holds it; tensors of other files are read when they are used."""
        import onnx_ir as ir

        model: ir.Model = ir.from_proto(self.proto)
        ir.external_data.set_base_dir(model.graph, self.path.parent)
        return model


def open_onnx(path: Path, *, weights: bool = True) -> OnnxFile:
    """Read an ONNX file.

    Args:
        path: The file, binary whatever its suffix.
        weights: Read tensors that are kept in other files, too.

    Raises:
        GraphError: No such file, no ONNX file, a truncated one, or weights that cannot be read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise GraphError(f"no such file: {path}", hint="check the path")
    try:
        # Engines know the binary format alone, and artifacts are hashed by it.
        proto = onnx.load(path, format="protobuf", load_external_data=weights)
    except (FileNotFoundError, onnx.checker.ValidationError) as error:
        # The file itself is there: what is missing, or refused, is its external data.
        raise GraphError(
            f"the weights of {path.name} cannot be read: {str(error).splitlines()[0]}",
            hint="keep its data file beside it, or save the model as one file",
        ) from error
    except (DecodeError, ValueError, OSError) as error:
        raise GraphError(f"{path.name} is no ONNX file or is truncated", hint=_EXPORT) from error
    return OnnxFile(path, proto)


def open_checked(path: Path) -> OnnxFile:
    """Read an ONNX file with its weights and refuse what `onnx.checker` refuses.

    TensorRT's parser accepts an empty file and a text file as a network of no layers, and an
    operator set that does not exist yet; so every graph passes here before an engine is built.

    Raises:
        GraphError: As in `open_onnx`; or no graph in it, an operator set of the future, not valid.
    """
    import onnx

    opened = open_onnx(path)
    if not opened.proto.graph.node:
        raise GraphError(f"{path.name} holds no graph", hint=_EXPORT)
    newest = onnx.defs.onnx_opset_version()
    for entry in opened.proto.opset_import:
        if entry.domain in {"", "ai.onnx"} and entry.version > newest:
            raise GraphError(
                f"{path.name} asks for opset {entry.version}; the newest known here is {newest}",
                hint="export it with --opset 20, or update onnx",
            )
    complaint = checker_complaint(opened.proto, full=False)
    if complaint is not None:
        raise GraphError(f"{path.name} is refused by onnx.checker: {complaint}", hint=_EXPORT)
    return opened


def checker_complaint(model: Any, *, full: bool = True) -> str | None:
    """What `onnx.checker` has against a model, in one line; ``None`` if nothing.

    Args:
        model: An `onnx.ModelProto`, or the path of a file.
        full: Infer all shapes, too.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).strip().splitlines()[0]
    return None


def write_graph(model: ir.Model, path: Path) -> None:
    """Write a model as one file, with the weights that it was read with from others."""
    import onnx_ir as ir

    ir.save(ir.external_data.load_to_model(model), path, format="protobuf")


def write_checked(model: ir.Model, path: Path) -> None:
    """Write a model as one file, and check what was written.

    Raises:
        GraphError: `onnx.checker` refuses it.
    """
    write_graph(model, path)
    complaint = checker_complaint(path)
    if complaint is not None:
        raise GraphError(f"the converted graph is not valid: {complaint}")


def copy_as_one_file(source: Path, target: Path) -> None:
    """Copy an ONNX file; weights that it keeps in other files become part of it.

    Raises:
        ArtifactError: Such a file is missing, or outside the model's own folder.
        GraphError: It cannot be read.
    """
    import onnx

    if external_data_files(source):
        onnx.save_model(open_onnx(source).proto, target, format="protobuf")
    else:
        # No hard link: who saves the graph again in place would change this one with it.
        shutil.copyfile(source, target)
