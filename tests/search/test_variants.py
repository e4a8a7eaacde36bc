"""Variants: one set of ranges and scales, whatever is kept."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.errors import DataError, UsageError
from optimizer.precision.int8 import lower
from optimizer.search.variants import Variants
from tests.precision.networks import images
from tests.precision.test_int8_graphs import noise_db, run
from tests.search.conftest import variants_for
from tests.search.networks import HOSTILE, OPTIONS, hostile, statistics


def test_what_is_measured_is_what_is_written(variants: Variants) -> None:
    kept = frozenset({HOSTILE, "fc"})
    encodings = variants.encodings(kept)
    assert encodings.keep == variants.in_order(kept)
    model = hostile()
    lower(model, encodings, variants.rules)
    batch = images(64, 1)
    (reference,), (written,) = run(hostile(), batch), run(model, batch)
    (simulated,) = variants.sqnr([kept])
    assert noise_db(reference, written) == pytest.approx(simulated, abs=1.0)


def test_keeping_everything_leaves_no_noise(variants: Variants) -> None:
    none, everything = variants.sqnr([frozenset(), frozenset(variants.layers)])
    assert none < 25
    assert everything > 100


def test_biases_do_not_depend_on_what_was_corrected_before(variants: Variants) -> None:
    """Correcting in company gives what correcting alone gives."""
    some = [frozenset({name}) for name in variants.layers]
    together = variants.sqnr(some)
    np.testing.assert_allclose(together, [variants.sqnr([one])[0] for one in some], atol=1e-3)


def test_a_tensor_that_may_no_longer_be_shifted_keeps_its_range() -> None:
    shifting = variants_for("tensorrt")
    tensor = "layer1.0.relu_1"
    before = shifting.base.tensors[tensor]
    after = shifting.encodings(frozenset({"layer1.0.conv3"})).tensors[tensor]
    assert before.shifted
    assert not after.shifted
    assert 127 * after.scale == pytest.approx(255 * before.scale)
    lower(hostile(), shifting.encodings(frozenset({"layer1.0.conv3"})), shifting.rules)


def test_what_a_search_cannot_use_is_refused(variants: Variants) -> None:
    seen = statistics(hostile(), [images(64, 1)])
    with pytest.raises(UsageError, match="corrects biases on the network"):
        Variants(
            hostile(),
            seen,
            variants.rules,
            "0",
            OPTIONS.model_copy(update={"bias_correction": "statistics"}),
        )
    seen.sample = seen.sample[:0]
    with pytest.raises(DataError, match="no sample"):
        Variants(hostile(), seen, variants.rules, "0", OPTIONS)
