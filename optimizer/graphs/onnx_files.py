"""Opens, checks and writes ONNX files.

Engine libraries read files by path themselves; everything else in this package uses `open_onnx`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import check_unchanged, external_data_files
from optimizer.errors import ArtifactError, GraphError
from optimizer.graphs.graph_limits import GraphLimits, check_size
from optimizer.graphs.graph_structure import check_structure

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "OnnxFile",
    "check_opened",
    "checker_error",
    "copy_as_one_file",
    "open_checked",
    "open_onnx",
    "write_checked",
    "write_graph",
    "write_proto",
]

_EXPORT = "copy it again, or export it again, for example with resnet-opt export"


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that was read.

    Attributes:
        path: The file.
        proto: The `onnx.ModelProto`; external tensors only if they were requested.
    """

    path: Path
    proto: Any

    @property
    def files(self) -> list[Path]:
        """The ONNX file and its external data files.

        Raises:
            ArtifactError: A data file is missing or outside the model's folder.
        """
        return [self.path, *external_data_files(self.path)]

    def to_ir(self) -> ir.Model:
        """The model as `onnx_ir.Model`; external tensors are read on first use.

        Raises:
            GraphError: A part of the graph cannot be represented.
        """
        import onnx_ir as ir

        try:
            model: ir.Model = ir.from_proto(self.proto)
        except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise GraphError(f"{self.path.name} is malformed: {reason}", hint=_EXPORT) from error
        ir.external_data.set_base_dir(model.graph, self.path.parent)
        return model


def open_onnx(path: Path, *, weights: bool = True) -> OnnxFile:
    """Read an ONNX file: its size is checked first, then its structure, before anyone works on it.

    The limits are those of `optimizer.graphs.graph_limits`.

    Args:
        path: The file, in binary format regardless of its suffix.
        weights: Whether to read external tensors.

    Raises:
        ArtifactError: It was changed after its manifest was written.
        GraphError: The file does not exist, is not an ONNX file, is truncated, malformed or larger
            than the limits, or its weights cannot be read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise GraphError(f"no such file: {path}", hint="check the path")
    check_unchanged(path)
    state = (*_state(path), weights)
    if state not in _checked:
        check_size(path, _external_bytes(path, weights), GraphLimits.of_environment())
    try:
        # Engines read only the binary format, and artifacts are hashed in it.
        proto = onnx.load(path, format="protobuf", load_external_data=weights)
    except (FileNotFoundError, onnx.checker.ValidationError) as error:
        # The file itself exists, so the external data is missing or rejected.
        raise GraphError(
            f"the weights of {path.name} cannot be read: {str(error).splitlines()[0]}",
            hint="put its data file next to it, or save the model as one file",
        ) from error
    except (DecodeError, ValueError, OSError) as error:
        raise GraphError(
            f"{path.name} is not an ONNX file or is truncated", hint=_EXPORT
        ) from error
    if state not in _checked:
        check_structure(proto, path.name, GraphLimits.of_environment())
        _checked.add(state)
    return OnnxFile(path, proto)


_State = tuple[str, int, int, int, bool]
_checked: set[_State] = set()
"""Files that passed, without or with weights; a command opens the same file several times."""


def _state(path: Path) -> tuple[str, int, int, int]:
    """Changes when the file is replaced or written."""
    status = path.stat()
    return str(path.absolute()), status.st_ino, status.st_size, status.st_mtime_ns


def _external_bytes(path: Path, needed: bool) -> int:
    """Bytes of the external data, of which each file counts once; 0 if it is not needed and missing."""
    try:
        return sum(file.stat().st_size for file in external_data_files(path))
    except ArtifactError as error:
        if not needed:
            return 0
        raise GraphError(
            f"the weights of {path.name} cannot be read: {error.message}", hint=error.hint
        ) from error


def open_checked(path: Path) -> OnnxFile:
    """Read an ONNX file with its weights and check it, as in `check_opened`.

    Every graph is checked here before an engine is built, because TensorRT's parser accepts empty
    files and text files as networks without layers, and operator sets that do not exist yet.

    Raises:
        GraphError: As in `open_onnx`; or the file is empty, invalid, or its opset is too new.
    """
    return check_opened(open_onnx(path))


def check_opened(opened: OnnxFile) -> OnnxFile:
    """Check a file that was read with its weights.

    Raises:
        GraphError: It is empty, invalid, or its opset is too new.
    """
    import onnx

    path = opened.path
    if not opened.proto.graph.node:
        raise GraphError(f"{path.name} holds no graph", hint=_EXPORT)
    newest = onnx.defs.onnx_opset_version()
    for entry in opened.proto.opset_import:
        if entry.domain in {"", "ai.onnx"} and entry.version > newest:
            raise GraphError(
                f"{path.name} has opset {entry.version}, but the installed onnx supports up to {newest}",
                hint="export it with operator set 20, or update onnx: pip install --upgrade onnx",
            )
    complaint = checker_error(opened.proto, full=False)
    if complaint is not None:
        raise GraphError(f"{path.name} is rejected by onnx.checker: {complaint}", hint=_EXPORT)
    return opened


def checker_error(model: Any, *, full: bool = True) -> str | None:
    """The first line of `onnx.checker`'s error for a model; ``None`` if it is valid.

    Args:
        model: An `onnx.ModelProto`, or the path of a file.
        full: Whether to check inferred shapes as well.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).strip().splitlines()[0]
    return None


def write_graph(model: ir.Model, path: Path) -> None:
    """Write a model as one file, including external weights."""
    import onnx_ir as ir

    ir.save(ir.external_data.load_to_model(model), path, format="protobuf")


def write_proto(proto: Any, path: Path) -> None:
    """Write an `onnx.ModelProto` as one file."""
    import onnx

    onnx.save_model(proto, path, format="protobuf")


def write_checked(model: ir.Model, path: Path) -> None:
    """Write a model as one file and check the result.

    Raises:
        GraphError: `onnx.checker` rejects it.
    """
    write_graph(model, path)
    complaint = checker_error(path)
    if complaint is not None:
        raise GraphError(f"the converted graph is not valid: {complaint}")


def copy_as_one_file(source: Path, target: Path) -> None:
    """Copy an ONNX file, embedding external weights.

    Raises:
        ArtifactError: A data file is missing or outside the model's folder.
        GraphError: The file cannot be read.
    """
    if external_data_files(source):
        write_proto(open_onnx(source).proto, target)
    else:
        # Not a hard link: saving the source again in place would change the copy.
        shutil.copyfile(source, target)
