from __future__ import annotations

from typing import Any

import pytest

from optimizer.engines.protocol import BuildSettings
from optimizer.engines.tensorrt.library import TENSORRT, TENSORRT_RTX
from optimizer.engines.tensorrt.options import Options, check_version, read_options
from optimizer.errors import UsageError


def test_defaults() -> None:
    options = read_options(TENSORRT, BuildSettings(precision="fp32"))
    assert not options.tf32
    assert options.hardware_compatibility == "none"


@pytest.mark.parametrize(
    ("given", "wrong", "hint"),
    [
        ({"fp16": True}, "no option 'fp16'", "tf32"),
        ({"tf32": "yes"}, "'yes'", "true or false"),
        ({"hardware_compatibility": "all"}, "'all'", "ampere-plus"),
        ({"profiles": [(1, 8)]}, r"\(1, 8\)", "1:8:32"),
        ({"profiles": [(1, 8, "32")]}, "'32'", "1:8:32"),
        ({"specialization": "fast"}, "specialization 'fast'", "eager, lazy, none"),
        ({"runtime_cache": "../kernels.bin"}, "is not a file name", "beside the engine"),
        ({"runtime_cache": ".."}, "is not a file name", "beside the engine"),
        ({"cuda_graph": 1}, "option cuda_graph is 1", "true or false"),
    ],
)
def test_invalid_option_is_rejected(given: dict[str, Any], wrong: str, hint: str) -> None:
    with pytest.raises(UsageError, match=wrong) as caught:
        read_options(TENSORRT, BuildSettings(precision="fp32", options=given))
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("given", [{"opt_level": 6}, {"opt_level": -1}, {"workspace_bytes": 0}])
def test_value_out_of_range_is_rejected(given: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        read_options(TENSORRT, BuildSettings(precision="fp32", **given))  # type: ignore[arg-type]


def test_rtx_has_no_version_compatible_engines() -> None:
    settings = BuildSettings(precision="fp32", options={"version_compatible": True})
    assert read_options(TENSORRT, settings).version_compatible
    with pytest.raises(UsageError, match="no version-compatible engines"):
        read_options(TENSORRT_RTX, settings)


@pytest.mark.parametrize("given", [{"specialization": "eager"}, {"runtime_cache": "kernels.bin"}])
def test_only_rtx_compiles_at_run_time(given: dict[str, Any]) -> None:
    settings = BuildSettings(precision="fp32", options=given)
    options = read_options(TENSORRT_RTX, settings)
    assert given.items() <= vars(options).items()
    with pytest.raises(
        UsageError, match="compiles all kernels during a build: it has no"
    ) as caught:
        read_options(TENSORRT, settings)
    assert "--engine tensorrt-rtx" in str(caught.value.hint)


def test_version_that_drops_a_bias_rejects_refittable() -> None:
    """According to TensorRT 11.3's page on refitting; other versions and RTX are not affected."""
    refittable_options, stripped_options = Options(refittable=True), Options(strip_weights=True)
    with pytest.raises(UsageError, match=r"TensorRT 11\.3\.0\.9 may drop the classifier's bias"):
        check_version(TENSORRT, refittable_options, "11.3.0.9")
    check_version(TENSORRT, stripped_options, "11.3.0.9")
    for library, version in ((TENSORRT, "11.4.0"), (TENSORRT, None), (TENSORRT_RTX, "11.3.0")):
        check_version(library, refittable_options, version)
