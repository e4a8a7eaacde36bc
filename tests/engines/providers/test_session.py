"""Sessions with bound host memory, and providers that really cannot start here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from optimizer.engines import Bound
from optimizer.engines.onnxruntime import as_written
from optimizer.engines.providers import PROVIDERS, read_choice
from optimizer.engines.providers.session import ProviderSession, open_with_provider
from optimizer.engines.providers.status import library_of, provider_status
from optimizer.errors import BuildError, UsageError


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def opened(small_graph: Path) -> ProviderSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(small_graph, options, providers=["CPUExecutionProvider"])
    return ProviderSession(session, [], ("cpu", 0), (2, 4))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
def test_batches_are_split_and_padded(
    opened: ProviderSession, small_graph: Path, count: int
) -> None:
    batch = images(count)
    outputs = opened.run(batch)
    assert outputs.shape == (count, 10)
    expected = as_written(small_graph, threads=1).run(batch)
    np.testing.assert_allclose(outputs, expected, atol=1e-4 * np.abs(expected).max())


def test_memory_is_reused_but_outputs_are_not_overwritten(opened: ProviderSession) -> None:
    first = opened.run(images(4, 1))
    kept = first.copy()
    second = opened.run(images(4, 2))
    np.testing.assert_array_equal(first, kept)
    assert np.abs(second - first).max() > 0


def test_a_bound_batch_copies_only_on_request(opened: ProviderSession) -> None:
    batch = images(3)
    bound = opened.bind(batch)
    assert isinstance(bound, Bound)
    for _ in range(2):
        bound.upload()
        bound.enqueue()
        bound.wait()
        bound.download()
    np.testing.assert_array_equal(bound.output(), opened.run(batch))
    # New data takes effect only after `upload`, and outputs change only after `download`.
    before = bound.output().copy()
    bound.fill(images(3, 5))
    bound.enqueue()
    bound.wait()
    bound.download()
    np.testing.assert_array_equal(bound.output(), before)
    bound.upload()
    bound.enqueue()
    np.testing.assert_array_equal(bound.output(), before)
    bound.download()
    np.testing.assert_array_equal(bound.output(), opened.run(images(3, 5)))


@pytest.mark.parametrize("count", [1, 5])
def test_a_batch_outside_the_compiled_sizes_cannot_be_bound(
    opened: ProviderSession, count: int
) -> None:
    with pytest.raises(UsageError, match=f"batches of 2 to 4, not {count}"):
        opened.bind(images(count))


def test_a_batch_of_another_size_is_refused(opened: ProviderSession) -> None:
    with pytest.raises(UsageError, match="the engine takes N x 3 x 32 x 32 float32"):
        opened.run(np.zeros((2, 3, 16, 16), np.float32))


def test_an_unreadable_graph_is_not_a_missing_library(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("no graph", encoding="ascii")
    with pytest.raises(BuildError, match=r"provider cpu failed: .*text\.onnx"):
        open_with_provider(path, ort.SessionOptions(), read_choice({}), 0)


def test_an_available_provider_opens(small_graph: Path) -> None:
    session = open_with_provider(small_graph, ort.SessionOptions(), read_choice({}), 0)
    assert session.get_providers() == ["CPUExecutionProvider"]


START = """
import sys
from pathlib import Path
import onnxruntime as ort
from optimizer.engines.providers import read_choice
from optimizer.engines.providers.session import open_with_provider
from optimizer.errors import MissingLibrary
try:
    open_with_provider(Path(sys.argv[1]), ort.SessionOptions(), read_choice({"provider": sys.argv[2]}), 0)
except MissingLibrary as error:
    print(error.message)
"""


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        ("cuda", "cannot open shared object file"),
        ("tensorrt", "cannot open shared object file"),
        ("nv-tensorrt-rtx", "libcuda.so.1"),
    ],
)
def test_a_provider_that_cannot_start_is_an_error_with_its_message(
    provider: str, reason: str, small_graph: Path
) -> None:
    """ONNX Runtime itself falls back to the CPU and reports it only on standard error."""
    if library_of(PROVIDERS[provider]) is None:
        pytest.skip(f"{PROVIDERS[provider].shared_object} is not installed")
    if provider_status(PROVIDERS[provider]).usable:
        pytest.skip(f"provider {provider} works here")
    done = subprocess.run(
        [sys.executable, "-c", START, str(small_graph), provider],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.startswith(f"ONNX Runtime could not start its provider {provider}: ")
    assert reason in done.stdout
    assert "onnxruntime_src" not in done.stdout
    assert "Falling back" not in done.stdout + done.stderr
