"""How many images score a table, by its size and the network's."""

from __future__ import annotations

import pytest

from trt_layermerge.importance.amounts import (
    STEPS,
    WORK,
    Amounts,
    amounts_for,
    images_an_entry,
)


def test_small_networks_are_scored_on_everything_at_once() -> None:
    assert amounts_for(160, 41e6, 512, "normal") == Amounts(512)  # ResNet-20 at 32x32
    assert amounts_for(10**6, 1e12, 512, "thorough") == Amounts(512)


@pytest.mark.parametrize(
    ("entries", "macs"), [(273, 385e6), (280, 300e6), (145, 4.1e9), (600, 8e9), (30, 2e9)]
)
def test_as_many_images_as_the_work_allows(entries: int, macs: float) -> None:
    """EfficientNet-Lite0, MobileNetV2, ResNet-50 at 224 and others: the next step is too much."""
    for effort in ("quick", "normal"):
        found = amounts_for(entries, macs, 512, effort)
        ladder = [Amounts(512), *STEPS]
        place = ladder.index(found)
        fits = [entries * macs * images_an_entry(step) <= WORK[effort] for step in ladder]
        assert not any(fits[:place])
        assert fits[place] or place == len(ladder) - 1


def test_never_more_images_than_there_are() -> None:
    assert amounts_for(273, 385e6, 48, "quick").score <= 48
    assert amounts_for(273, 385e6, 16, "quick") == Amounts(16)


def test_every_step_is_less_work() -> None:
    work = [images_an_entry(step) for step in (Amounts(512), *STEPS)]
    assert work == sorted(work, reverse=True)
    assert images_an_entry(Amounts(512)) == (3 * 32 + 512) / 2
