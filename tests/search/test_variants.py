"""Variants: one set of ranges and scales for any kept layers."""

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


def test_the_simulated_sqnr_agrees_with_the_written_graph(variants: Variants) -> None:
    kept = frozenset({HOSTILE, "fc"})
    encodings = variants.encodings(kept)
    assert encodings.keep == variants.in_order(kept)
    model = hostile()
    lower(model, encodings, variants.rules)
    batch = images(64, 1)
    (reference,), (written,) = run(hostile(), batch), run(model, batch)
    (simulated,) = variants.sqnr([kept])
    assert noise_db(reference, written) == pytest.approx(simulated, abs=1.0)


def test_keeping_all_layers_leaves_no_noise(variants: Variants) -> None:
    none_kept, all_kept = variants.sqnr([frozenset(), frozenset(variants.layers)])
    assert none_kept < 25
    assert all_kept > 100


def test_biases_do_not_depend_on_other_variants(variants: Variants) -> None:
    """Variants corrected together get the same SQNR as separately."""
    single = [frozenset({name}) for name in variants.layers]
    together = variants.sqnr(single)
    np.testing.assert_allclose(together, [variants.sqnr([kept])[0] for kept in single], atol=1e-3)


def test_a_tensor_that_can_no_longer_be_shifted_keeps_its_range() -> None:
    shifting = variants_for("tensorrt")
    tensor = "layer1.0.relu_1"
    before = shifting.base.tensors[tensor]
    after = shifting.encodings(frozenset({"layer1.0.conv3"})).tensors[tensor]
    assert before.shifted
    assert not after.shifted
    assert 127 * after.scale == pytest.approx(255 * before.scale)
    lower(hostile(), shifting.encodings(frozenset({"layer1.0.conv3"})), shifting.rules)


def test_options_and_statistics_that_do_not_fit_a_search_are_rejected(variants: Variants) -> None:
    observed = statistics(hostile(), [images(64, 1)])
    with pytest.raises(UsageError, match="needs bias correction on the network"):
        Variants(
            hostile(),
            observed,
            variants.rules,
            "0",
            OPTIONS.model_copy(update={"bias_correction": "statistics"}),
        )
    observed.sample = observed.sample[:0]
    with pytest.raises(DataError, match="no sample images"):
        Variants(hostile(), observed, variants.rules, "0", OPTIONS)
