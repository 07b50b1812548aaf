"""Random small networks, planned at random: refused or certified, none wrong."""

from __future__ import annotations

import pytest

from tests.merge.random_networks import check


@pytest.mark.parametrize("ten", range(10))
def test_random_networks_are_refused_or_certified(ten: int) -> None:
    found = {seed: check(seed) for seed in range(10 * ten, 10 * ten + 10)}
    assert {seed: o.wrong for seed, o in found.items() if o.kind == "wrong"} == {}
    assert sum(o.kind == "certified" for o in found.values()) >= 5
