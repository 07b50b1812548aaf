"""Both tables come back from their files, join by key, and refuse damage."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.samples import ADD, CONV, DEVICE, importance_table, latency_table
from tests.search.graphs import Chain
from trt_layermerge.core.candidate import original_candidate
from trt_layermerge.core.tables import ImportanceTable, LatencyEntry, LatencyTable
from trt_layermerge.errors import CorruptInputError, UsageError


def test_latency_comes_back_whole(tmp_path: Path) -> None:
    table = latency_table()
    table.save(tmp_path / "latency.jsonl")
    assert LatencyTable.load(tmp_path / "latency.jsonl") == table


def test_importance_comes_back_whole(tmp_path: Path) -> None:
    table = importance_table()
    table.save(tmp_path / "importance.jsonl")
    assert ImportanceTable.load(tmp_path / "importance.jsonl") == table


def test_a_failed_measurement_costs_infinity_and_keeps_its_cause(tmp_path: Path) -> None:
    table = latency_table()
    table.save(tmp_path / "latency.jsonl")
    back = LatencyTable.load(tmp_path / "latency.jsonl")
    assert math.isinf(back[ADD, "fp16", 8])
    assert back.entries[ADD, "fp16", 8].error == "out of memory"


def test_precision_batch_and_activation_are_part_of_the_key() -> None:
    table = latency_table()
    assert table[CONV, "fp32", 1] == 0.25
    others = [(CONV, "fp16", 1), (CONV, "fp32", 2), (replace(CONV, activation=None), "fp32", 1)]
    for key in others:
        with pytest.raises(UsageError, match="no latency of"):
            table[key]  # type: ignore[index]


def test_missing_specs_are_listed_once_in_order() -> None:
    other = replace(CONV, height=5)
    wanted = [other, CONV, ADD, other]
    assert latency_table().missing(wanted, "fp32", 1) == [other, ADD]


def test_cost_of_a_candidate_is_the_sum_of_all_it_runs() -> None:
    graph = Chain(8, 16).conv(16, 3).conv(16, 3).residual(0).graph()
    candidate = original_candidate(graph, 1)
    assert len(candidate.costs) == 2  # the convolution, and the projection of the open residual
    entries = {(s, "fp32", 1): LatencyEntry(float(i + 1)) for i, s in enumerate(candidate.costs)}
    table = LatencyTable(DEVICE, entries)  # type: ignore[arg-type]
    assert table.cost_ms(candidate, "fp32", 1) == 3.0


def test_other_costs_keep_spread_and_error() -> None:
    key = (CONV, "fp32", 1)
    fitted = latency_table().with_costs({key: 9.0}, 0.5, {"fit": 1})  # type: ignore[dict-item]
    assert fitted.overhead_ms == 0.5
    assert fitted[CONV, "fp32", 1] == 9.0
    assert fitted.entries[CONV, "fp32", 1].p10_ms == 0.2
    assert fitted.entries[ADD, "fp16", 8].error == "out of memory"


def test_untouched_units_are_free_and_others_must_be_scored() -> None:
    graph = Chain(8, 16).conv(8, 3).conv(8, 3).graph()
    empty, original = ImportanceTable({}), original_candidate(graph, 0)
    assert empty[original].score == 1.0
    assert original in empty
    changed = replace(original, original=False)
    assert changed not in empty
    with pytest.raises(UsageError, match="no importance of compose 0:1"):
        empty[changed]


def test_score_is_the_exponential_of_delta() -> None:
    (entry,) = importance_table().entries.values()
    assert entry.score == pytest.approx(math.exp(-0.125), abs=0, rel=1e-15)


@pytest.mark.parametrize(
    ("save", "load"),
    [(latency_table().save, LatencyTable.load), (importance_table().save, ImportanceTable.load)],
)
def test_mutated_files_are_read_or_refused(
    tmp_path: Path, save: Callable[[Path], None], load: Callable[[Path], object]
) -> None:
    path = tmp_path / "table.jsonl"
    save(path)
    whole = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            load(path)
        except CorruptInputError as error:
            assert "table.jsonl" in str(error)
            refused += 1
    assert refused > 500


@pytest.mark.parametrize("field", ["spec", "precision", "batch", "ms", "samples", "error"])
def test_a_missing_field_is_refused(tmp_path: Path, field: str) -> None:
    path = tmp_path / "latency.jsonl"
    latency_table().save(path)
    path.write_text(path.read_text().replace(f'"{field}"', '"renamed"'))
    with pytest.raises(CorruptInputError, match="malformed"):
        LatencyTable.load(path)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "latency.jsonl"
    latency_table().save(path)
    path.write_text(path.read_text().replace('"ms": 0.25', '"ms": NaN'))
    with pytest.raises(CorruptInputError, match="finite"):
        LatencyTable.load(path)
