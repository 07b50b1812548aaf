from __future__ import annotations

from studies.tuning import Try, choice, tries

RATES, SEEDS = (0.3, 0.1, 0.2), (4, 5)
FIRST: dict[Try, float] = {(0.3, 4): 0.9, (0.1, 4): 0.7, (0.2, 4): 0.8}


def test_the_first_seed_tries_every_rate() -> None:
    assert tries(RATES, SEEDS, {}) == [(0.3, 4), (0.1, 4), (0.2, 4)]
    assert tries(RATES, SEEDS, {(0.3, 4): 0.9}) == [(0.3, 4), (0.1, 4), (0.2, 4)]


def test_the_best_two_are_tried_with_every_seed_and_the_best_mean_is_chosen() -> None:
    assert tries(RATES, SEEDS, FIRST) == [*FIRST, (0.2, 5), (0.3, 5)]
    assert choice(RATES, SEEDS, FIRST) is None
    assert choice(RATES, SEEDS, FIRST | {(0.2, 5): 0.9}) is None
    assert choice(RATES, SEEDS, FIRST | {(0.2, 5): 0.9, (0.3, 5): 0.85}) == 0.3
    assert choice(RATES, SEEDS, FIRST | {(0.2, 5): 0.9, (0.3, 5): 0.75}) == 0.2


def test_what_did_not_go_on_is_not_chosen_for_one_lucky_seed_elsewhere() -> None:
    found = FIRST | {(0.1, 5): 1.0, (0.2, 5): 0.8, (0.3, 5): 0.6}
    assert choice(RATES, SEEDS, found) == 0.2


def test_of_equal_rates_the_lowest_is_chosen() -> None:
    assert choice(RATES, (4,), {(rate, 4): 0.7 for rate in RATES}) == 0.1


def test_a_single_rate_is_tried_with_every_seed_and_without_rates_there_is_no_choice() -> None:
    assert tries((0.1,), SEEDS, {(0.1, 4): 0.5}) == [(0.1, 4), (0.1, 5)]
    assert choice((0.1,), SEEDS, {(0.1, 4): 0.5, (0.1, 5): 0.5}) == 0.1
    assert choice((), SEEDS, {}) is None
