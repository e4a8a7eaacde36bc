"""The choice of widths against all choices, and the tables behind it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from optimizer.errors import UsageError
from optimizer.models import Widths
from optimizer.models.architectures import full_widths
from optimizer.options import TableOptions
from optimizer.pruning import check_prunable
from optimizer.pruning.latency_model import block_ms, network_ms
from optimizer.pruning.prunable import Prunable
from optimizer.pruning.saliency import Saliency
from optimizer.pruning.table_networks import inner_channels, scaled_inner, table_widths
from optimizer.pruning.table_roofline import operations_table, roofline_table
from optimizer.pruning.width_choice import Limits, choose_widths
from optimizer.results import BlockTimes, TimesAtBatch
from optimizer.search.cost import GPU
from tests.pruning.networks import tiny

WIDTHS = [64, 48, 32, 16]


def _network(blocks: int) -> tuple[Widths, Saliency, Prunable, TimesAtBatch]:
    rng = np.random.default_rng(3)
    names = [f"layer1.{i}" for i in range(blocks)]
    widths = Widths(64, tuple((name, (64, 64, 256)) for name in names))
    channels = {f"{n}.conv{i}": rng.exponential(size=64) for n in names for i in (1, 2)}
    saliency = Saliency(channels, dict.fromkeys(names, 40.0), 8)
    prunable = Prunable(dict.fromkeys(names, 1), frozenset(names[1:]))
    times = {
        name: BlockTimes(
            inner=[[w, w] for w in WIDTHS],
            layers_ms=[list(rng.uniform(0.5, 1.5, 3) * w / 64) for w in WIDTHS],
            rest_ms=0.1,
            droppable=name in prunable.droppable,
        )
        for name in names
    }
    whole = 2.0 + sum(block_ms(block, (64, 64)) for block in times.values())
    at = TimesAtBatch(batch=1, whole_ms=[whole], whole_ci95_ms=[None], outside_ms=2.0, blocks=times)
    return widths, saliency, prunable, at


def _limits(times: list[TimesAtBatch], values: list[float]) -> Limits:
    whole = [at.whole_ms[0] for at in times]
    return Limits(times, values, "ms", lambda i, least: f"--speedup {whole[i] / least - 5e-3:.2f}")


def test_the_choice_is_the_best_of_all() -> None:
    widths, saliency, prunable, at = _network(2)
    limit = 2.0 + 0.55 * (at.whole_ms[0] - 2.0)
    choice = choose_widths(widths, saliency, prunable, _limits([at], [limit]), 16)

    def value(name: str, inner: tuple[int, int] | None) -> tuple[float, float]:
        if inner is None:
            most = sum(saliency.channels[f"{name}.conv{i}"].sum() for i in (1, 2))
            return most - max(saliency.blocks[name], most), 0.0
        kept = [
            np.sort(saliency.channels[f"{name}.conv{i}"])[::-1][:w].sum()
            for i, w in enumerate(inner, start=1)
        ]
        return float(sum(kept)), block_ms(at.blocks[name], inner)

    pairs: list[tuple[int, int] | None] = list(itertools.product(WIDTHS, WIDTHS))
    best = max(
        saved
        for first in pairs
        for second in [*pairs, None]
        for saved, ms in [
            tuple(map(sum, zip(value("layer1.0", first), value("layer1.1", second), strict=True)))
        ]
        if ms + 2.0 <= limit
    )
    chosen = choice.widths.by_block
    kept = sum(
        value(name, chosen[name][:2] if name in chosen else None)[0]  # type: ignore[arg-type]
        for name in widths.by_block
    )
    assert kept == pytest.approx(best)
    assert choice.predicted_ms[0] <= limit + 1e-9
    assert choice.predicted_ms[0] == pytest.approx(network_ms(at, choice.widths))


def test_a_block_goes_if_time_is_short_enough() -> None:
    widths, saliency, prunable, at = _network(3)
    least = 2.0 + block_ms(at.blocks["layer1.0"], (16, 16))
    choice = choose_widths(widths, saliency, prunable, _limits([at], [least]), 16)
    assert list(choice.widths.by_block) == ["layer1.0"]


def test_every_batch_size_is_within_its_limit() -> None:
    widths, saliency, prunable, at = _network(3)
    slow = at.model_copy(
        update={
            "batch": 8,
            "blocks": {
                n: b.model_copy(update={"layers_ms": [ms[::-1] for ms in b.layers_ms]})
                for n, b in at.blocks.items()
            },
        }
    )
    limits = [0.6 * network_ms(one, widths) for one in (at, slow)]
    choice = choose_widths(widths, saliency, prunable, _limits([at, slow], limits), 16)
    assert [network_ms(one, choice.widths) for one in (at, slow)] == pytest.approx(
        list(choice.predicted_ms)
    )
    assert all(ms <= limit for ms, limit in zip(choice.predicted_ms, limits, strict=True))


def test_the_floor_is_named() -> None:
    widths, saliency, prunable, at = _network(3)
    floor = 2.0 + min(block_ms(at.blocks["layer1.0"], p) for p in itertools.product(WIDTHS, WIDTHS))
    with pytest.raises(UsageError, match=f"takes {floor:.3g} ms") as caught:
        choose_widths(widths, saliency, prunable, _limits([at], [1.0]), 16)
    hint = caught.value.hint or ""
    reachable = float(hint.split()[1])  # the hint works when it is followed
    limits = [at.whole_ms[0] / reachable]
    assert (
        choose_widths(widths, saliency, prunable, _limits([at], limits), 16).predicted_ms[0]
        <= limits[0]
    )


def test_equal_widths_are_predicted_as_measured_and_others_between() -> None:
    *_, at = _network(1)
    block = at.blocks["layer1.0"]
    assert block_ms(block, (32, 32)) == pytest.approx(sum(block.layers_ms[2]) + 0.1)
    mixed = block_ms(block, (64, 32))
    first, second = block.layers_ms[0], block.layers_ms[2]
    assert mixed == pytest.approx(0.1 + first[0] + (first[1] * second[1]) ** 0.5 + second[2])


def test_networks_of_a_table_are_eighths_of_the_channels() -> None:
    widths = full_widths("resnet50")
    networks = table_widths(widths, dict.fromkeys(widths.by_block, 1))
    assert [n.by_block["layer3.0"][:2] for n in networks] == [
        (w, w) for w in (256, 224, 192, 160, 128, 96, 64, 32)
    ]
    assert networks[-1].by_block["layer1.0"] == (8, 8, 256)
    changed = inner_channels(widths, networks[4])
    assert changed["layer3.1.conv1"] == (1024, 128)
    assert changed["layer3.1.conv2"] == (128, 128)
    assert changed["layer3.1.conv3"] == (128, 1024)
    assert "layer3.0.downsample.0" not in changed
    assert scaled_inner((128, 128), (0.5,), 4) == (64, 64)


def test_operations_are_exact_for_any_widths() -> None:
    """The geometric mean is exact where time is proportional to operations."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from optimizer.models import build_module

    model = tiny("resnet50", inner=32)
    table = operations_table(model, check_prunable(model), TableOptions(), "any")
    widths = model.widths.replaced({"layer1.1": (8, 24, 16), "layer3.2": None})
    module = build_module("resnet50", 10, widths=widths)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module.eval()(torch.zeros(1, 3, 32, 32))
    head = 2 * 40 * 10
    counted = (counter.get_total_flops() - head) / 1e9
    assert network_ms(table.batches[0], widths) == pytest.approx(counted, rel=1e-6)


def test_a_roofline_says_that_it_was_not_measured() -> None:
    model = tiny("resnet18")
    table = roofline_table(
        model, check_prunable(model), TableOptions(batch="1,8"), "tensorrt", GPU, "no GPU"
    )
    assert table.source == "model"
    assert table.reason.startswith("not measured (no GPU): a roofline with the rates of NVIDIA A10")
    one, eight = table.batches
    assert one.whole_ms == sorted(one.whole_ms, reverse=True)
    assert eight.whole_ms[0] > one.whole_ms[0]
