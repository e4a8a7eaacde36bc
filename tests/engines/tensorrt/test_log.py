from __future__ import annotations

from typing import Any

import pytest

from optimizer.engines.tensorrt.library import TENSORRT, TENSORRT_RTX
from optimizer.engines.tensorrt.log import BuildLog, make_logger, one_line, start
from optimizer.errors import MissingDevice

from .conftest import TensorRtRtx

SPURIOUS = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at "
    "/_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient "
    "for CUDA runtime version))"
)


MESSAGES = {
    "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:1500: run_passes] Cannot "
    "compile for target(s) sm75, because the model contains HW-specific datatypes: b16. In "
    "compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)": (
        "Cannot compile for target(s) sm75, because the model contains HW-specific datatypes: b16"
    ),
    "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network must have at "
    "least one output. In validate at /_src/optimizer/api/network.cpp:3810)": (
        "Network must have at least one output"
    ),
    "[optimizer.cpp::computeCosts::4215] Error Code 10: Internal Error (Could not find any "
    "implementation for node\nconv1. In computeCosts at /_src/optimizer.cpp:4215)": (
        "Could not find any implementation for node conv1"
    ),
    "nothing special.": "nothing special",
}


@pytest.mark.parametrize(("text", "line"), MESSAGES.items())
def test_a_message_in_one_line(text: str, line: str) -> None:
    assert one_line(text) == line


def test_missing_driver_is_ignored_where_none_is_needed() -> None:
    for ignored, reason in ((True, "why it failed"), (False, "CUDA driver version")):
        log = BuildLog(ignore_missing_driver=ignored)
        log.add("ERROR", SPURIOUS)
        log.add("WARNING", "twice")
        log.add("WARNING", "twice")
        log.add("ERROR", "why it failed")
        assert reason in log.reason("")
        assert log.warnings == ["twice"]
    assert BuildLog().reason("no reason given") == "no reason given"


def test_library_messages_reach_the_log(rtx: TensorRtRtx) -> None:
    from optimizer.engines.tensorrt.library import load

    trt = load(rtx.library)
    log = BuildLog()
    builder = start(TENSORRT_RTX, trt.Builder, make_logger(trt, log), log)
    network = builder.create_network(0)
    assert builder.build_serialized_network(network, builder.create_builder_config()) is None
    assert "Network must have at least one output" in log.reason("")


def test_a_library_that_cannot_start() -> None:
    log = BuildLog()
    log.add("ERROR", SPURIOUS)

    def constructor(_: Any) -> Any:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(
        MissingDevice, match=r"^TensorRT could not start: .*driver version"
    ) as caught:
        start(TENSORRT, constructor, None, log)
    assert "nvidia-smi" in str(caught.value.hint)
