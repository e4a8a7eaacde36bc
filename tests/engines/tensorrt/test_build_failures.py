"""The library's texts and ours. Those of TensorRT are as others reported them, with their spelling."""

from __future__ import annotations

import pytest

from optimizer.engines.tensorrt.failures import Build, explain
from optimizer.engines.tensorrt.log import BuildLog
from optimizer.errors import (
    BuildError,
    GraphError,
    MissingDevice,
    MissingLibrary,
    ResnetOptError,
    UnsupportedPrecision,
    UsageError,
)

GAVE_UP = (
    "ERROR",
    (
        "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any "
        "implementation for node conv1 + relu. In computeCosts at /_src/optimizer.cpp:4215)"
    ),
)
OLD_SIZE = (
    "WARNING",
    (
        "Skipping tactic 3 due to insuficient memory on requested size of 449 detected for tactic 4.\n"
        "Try decreasing the workspace size with IBuilderConfig::setMaxWorkspaceSize()."
    ),
)
NEW_SIZE = (
    "WARNING",
    (
        "UNSUPPORTED_STATESkipping tactic 4 due to insufficient memory on requested size of 2097152 "
        "detected for tactic 0x000000000000001f."
    ),
)
FULL = (
    "WARNING",
    "Tactic Device request: 9385MB Available: 7649MB. Device memory is insufficient to use tactic.",
)
CASES = [
    # messages, whether a workspace limit is set, error, text in its message, text in its hint
    ([OLD_SIZE, GAVE_UP], True, UsageError, "a kernel needs 449 MiB", "--workspace 449MiB"),
    ([NEW_SIZE, GAVE_UP], True, UsageError, "a kernel needs 2 MiB", "--workspace 2MiB"),
    (
        [("ERROR", "Error Code 2: OutOfMemory (Requested size was 103170464 bytes.)")],
        True, UsageError, "a workspace of 1,048,576 bytes is too small: a kernel needs 99 MiB",
        "--workspace 99MiB",
    ),
    (
        [("WARNING", "Some tactics do not have sufficient workspace memory to run."), GAVE_UP],
        True, UsageError, "no kernel fits into it", "--workspace 4GiB",
    ),
    ([GAVE_UP], True, UsageError, "layer conv1 that fits into a workspace", "--workspace"),
    ([GAVE_UP], False, BuildError, "has no kernel for layer conv1", "another --precision"),
    ([FULL, OLD_SIZE, GAVE_UP], True, BuildError, "needs 9385 MiB, 7649 MiB are free", "free"),
    ([FULL, GAVE_UP], False, BuildError, "too little free memory to build m.onnx", "nvidia-smi"),
    ([NEW_SIZE, GAVE_UP], False, BuildError, "too little free memory", "nvidia-smi"),
    (
        [("ERROR", "Error Code 1: Cuda Runtime (out of memory)")],
        False, BuildError, "too little free memory", "nvidia-smi",
    ),
    (
        [("ERROR", ("Error Code 4: API Usage Error (Network has dynamic or shape inputs, but no "
                   "optimization profile has been defined.)"))],
        False, UsageError, "no optimization profile covers it", "--profile",
    ),
    (
        [("ERROR", "Dynamic input tensor images is missing dimensions in profile 0.")],
        False, UsageError, "no optimization profile covers it", "--profile",
    ),
    (
        [("ERROR", "No importer registered for op: Det. Attempting to import as plugin."),
         ("ERROR", ('creator && "Plugin not found, are the plugin name, version, and namespace '
                   'correct?"'))],
        False, GraphError, "does not support the operator Det", "replace it",
    ),
    (
        [("ERROR", ("IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:1500: "
                   "run_passes] Cannot compile for target(s) sm75, because the model contains "
                   "HW-specific datatypes: b16. In compileGraph at /_src/x.cpp:1)"))],
        False, UnsupportedPrecision, "does not support the type b16", "other targets",
    ),
    (
        [("ERROR", ("Error Code 9: Internal Error (Target GPU SM 61 is not supported by this "
                   "TensorRT release.)"))],
        False, MissingDevice, "Target GPU SM 61 is not supported", "a version",
    ),
    (
        [("ERROR", ("createInferBuilder: Error Code 6: API Usage Error (CUDA initialization failure "
                   "with error: 35)"))],
        False, MissingDevice, "CUDA initialization failure with error: 35", "resnet-opt doctor",
    ),
    (
        [("ERROR", ("IBuilder::buildSerializedNetwork: Error Code 6: API Usage Error (Unable to load "
                   "library: libnvinfer_builder_resource_sm86.so.11.4.0: cannot open shared object "
                   "file: No such file or directory)"))],
        False, MissingLibrary, "libnvinfer_builder_resource_sm86.so.11.4.0", "same version",
    ),
    (
        [("ERROR", "Error Code 6: API Usage Error (Unable to load library: libnvinfer_lean.so.11)")],
        False, MissingLibrary, "libnvinfer_lean.so.11", "tensorrt-lean",
    ),
    ([("ERROR", "something new. In x at /_src/y.cpp:1")], False, BuildError, "something new", "report"),
    ([], False, BuildError, "no reason given", "report"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "limited", "kind", "message", "hint"), CASES)
def test_the_reason_of_a_failed_build(
    messages: list[tuple[str, str]],
    limited: bool,
    kind: type[ResnetOptError],
    message: str,
    hint: str,
) -> None:
    log = BuildLog()
    for severity, text in messages:
        log.add(severity, text)
    build = Build(title="TensorRT", graph="m.onnx", workspace=1 << 20 if limited else None)
    error = explain(build, log)
    assert type(error) is kind
    assert message in error.message
    assert hint in str(error.hint)
    assert "\n" not in error.message
    assert "_src" not in error.message
