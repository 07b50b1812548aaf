"""How much of a search is affordable, by what a network costs."""

from __future__ import annotations

from typing import Any

from trt_layermerge.session.effort import Affordable, affordable, race_steps
from trt_layermerge.session.settings import Settings


def settings(**importance: Any) -> Settings:
    return Settings.model_validate({"importance": importance})


def test_a_small_network_is_searched_in_full() -> None:
    assert affordable(41e6, settings()) == Affordable(512, 512, 16)  # ResNet-20 at 32x32
    assert race_steps(41e6, 128, 15, settings()) == 31  # 1e13 / (41e6 · 4 · 128 · 15)
    assert race_steps(41e6, 128, 15, settings(effort="thorough")) == 100


def test_a_large_one_on_fewer_images_with_fewer_plans_and_no_race() -> None:
    lite0 = affordable(385e6, settings())
    assert lite0 == Affordable(128, 64, 16)
    assert affordable(4.1e9, settings()) == Affordable(128, 64, 0)
    assert affordable(4.1e9, settings(fit_images=40, score_images=20)).fit == 40
    assert affordable(4.1e9, settings(effort="thorough")) == Affordable(512, 512, 16)
    assert race_steps(385e6, 64, 15, settings()) == 0  # 6 would tell nothing, and take minutes
    assert race_steps(4.1e9, 64, 15, settings()) == 0
    gpu = settings().model_copy(update={"device": "cuda"})
    assert race_steps(4.1e9, 64, 15, gpu) == 31


def test_a_race_that_is_wanted_short_is_no_race_too_few() -> None:
    short = Settings.model_validate({"search": {"race_steps": 2}})
    assert race_steps(41e6, 128, 15, short) == 2
    assert race_steps(41e6, 128, 15, Settings.model_validate({"search": {"race_steps": 0}})) == 0
