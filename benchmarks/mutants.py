"""Changes of the code that a test has to notice: each is made in a copy, and its tests are run.

Run as ``python -m benchmarks.mutants [NAME …]``. First the tests run on an unchanged copy, where
they pass; then on a copy for each change, where one of them has to fail. Prints a table; exit code
1 if a change goes unnoticed, 2 if the tests do not pass without it, or a change cannot be made: its
snippet has to stand in exactly one file of the package, wherever that file is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "trt_layermerge"
COPIED = (PACKAGE, "tests", "examples", "benchmarks")
PASSED, FAILED = 0, 1  # exit codes of pytest


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change that makes the code wrong.

    Attributes:
        name: What is wrong then.
        old: A snippet that one file of the package contains, once.
        new: What stands in its place.
        tests: What to give to pytest; one of these tests has to fail.
    """

    name: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "budget-always-met",
        "if took_ms <= budget_ms:",
        "if True:",
        (
            "tests/pipeline/test_budget.py::test_no_plan_is_handed_on_that_is_too_slow"
            "_when_measured_again",
        ),
    ),
    Mutant(
        "headroom-ignored",
        "return self.budget_ms * (1 - self.headroom)",
        "return self.budget_ms",
        ("tests/pipeline/test_budget.py::test_headroom_is_left_where_it_can_be",),
    ),
    Mutant(
        "slower-by-the-wrong-end",
        'if pair["high"] < 1:',
        'if pair["low"] < 1:',
        ("tests/pipeline/test_bench.py::test_slower_means_that_the_whole_spread_of_the_rounds_is",),
    ),
    Mutant(
        "code-not-hashed",
        'sha256_json({"code": code_hash(), **decisive})',
        "sha256_json(decisive)",
        ("tests/pipeline/test_stage.py::test_what_other_code_made_is_made_again",),
    ),
    Mutant(
        "speed-up-by-mean-of-rounds",
        "return Ratio(median(ratios),",
        "return Ratio(mean(ratios),",
        ("tests/measure/test_timing.py::test_one_disturbed_round_leaves_the_speed_up_alone",),
    ),
    Mutant(
        "speed-up-by-mean-of-builds",
        "return median(self.ratios)",
        "return sum(self.ratios) / len(self.ratios)",
        (
            "tests/measure/test_meter.py::test_one_unlucky_build_decides_neither_latency_nor"
            "_speed_up",
        ),
    ),
    Mutant(
        "fit-without-floor",
        "return max(cost, LEAST_SHARE * alone_ms)",
        "return max(cost, 1e-9)",
        (
            "tests/measure/test_fit.py::test_no_block_is_taken_to_cost_less_than_a_tenth_of_what_it"
            "_costs_alone",
        ),
    ),
    Mutant(
        "reach-too-far",
        "REACH = 1.08",
        "REACH = 1.8",
        ("tests/search/test_closing.py::test_what_is_predicted_far_beyond_the_limit_is_not_built",),
    ),
    Mutant(
        "first-activation-moves",
        "activation = graph.units[last - 1].activation",
        "activation = next((u.activation for u in graph.units[block.start : last]"
        " if u.activation), None)",
        (
            "tests/kinds/test_candidates.py::test_of_several_inner_activations_the_last_moves_to"
            "_the_end_of_a_block",
        ),
    ),
    Mutant(
        "shortcut-overruns-its-branch",
        "if offset[axis] < 0 or offset[axis] + path.extent[axis] > branch.extent[axis]:",
        "if offset[axis] < 0:",
        (
            "tests/core/test_geometry.py::test_a_shortcut_that_begins_with_its_branch_may_still_end"
            "_beyond_it",
        ),
    ),
    Mutant(
        "bundle-does-not-wait",
        "        cuda.wait()\n        for array, place in zip(outputs",
        "        for array, place in zip(outputs",
        ("tests/deploy/test_bundle_verify.py::test_the_engine_runs_on_every_version",),
    ),
    Mutant(
        "one-weight-clipped-to-half",
        "(np.abs(values) <= FP16_MAX).all()",
        "(np.abs(values) <= FP16_MAX).any()",
        ("tests/export/test_fp16.py::test_one_weight_out_of_range_is_enough",),
    ),
    Mutant(
        "weights-clipped-to-half",
        "if not (saturate or (np.abs(values)",
        "if False and not (saturate or (np.abs(values)",
        ("tests/export/test_fp16.py::test_one_weight_out_of_range_is_enough",),
    ),
    Mutant(
        "decay-of-bn-and-biases",
        "flat = parameter.ndim <= 1 and not recipe.decay_bn_bias",
        "flat = False",
        ("tests/finetune/test_optimiser.py::test_bn_and_biases_do_not_decay_unless_asked_for",),
    ),
    Mutant(
        "half-may-be-anything",
        '"fp16": 5e-2, "int8": None}',
        '"fp16": 5.0, "int8": None}',
        ("tests/pipeline/test_stages.py::test_half_precision_that_is_far_off_fails",),
    ),
    Mutant(
        "upload-not-waited-for",
        'self._call("cudaDeviceSynchronize")',
        "pass",
        ("tests/backends/test_cuda.py::test_what_is_uploaded_is_there_for_whatever_runs_next",),
    ),
    Mutant(
        "run-not-waited-for",
        "            self._cuda.wait(self._stream)\n\n    def _launch_group",
        "            pass\n\n    def _launch_group",
        ("tests/backends/test_tensorrt_runner.py::test_outputs_come_back_from_the_device",),
    ),
    Mutant(
        "burst-not-waited-for",
        "            self._cuda.wait(self._stream)\n        spans",
        "            pass\n        spans",
        ("tests/backends/test_tensorrt_runner.py::test_short_runs_are_timed_by_the_graph",),
    ),
    # Lines that decide whether the product tells the truth, and were always tested.
    Mutant(
        "padding-of-a-composition",
        "top + sh * second.padding[0]",
        "top + second.padding[0]",
        ("tests/core/test_conv.py",),
    ),
    Mutant(
        "eps-of-a-normalisation",
        "(variance.double() + eps).rsqrt()",
        "(variance.double() + 1e-5).rsqrt()",
        ("tests/blocks/test_algebra.py::test_folding_equals_convolution_then_batch_norm",),
    ),
    Mutant(
        "budget-not-inclusive",
        'budget_ms, side="right"',
        'budget_ms, side="left"',
        ("tests/search/test_chain.py",),
    ),
    Mutant(
        "dominated-plans-kept",
        "last_of_equal = np.append(np.diff(latency[order]) > 0, True)",
        "last_of_equal = np.ones(len(order), bool)",
        ("tests/search/test_chain.py",),
    ),
    Mutant(
        "certificate-always-good",
        "return self.max_rel_error <= self.tolerance",
        "return True",
        ("tests/merge/test_certify.py::test_one_changed_weight_fails_and_its_block_is_named",),
    ),
    Mutant(
        "foreign-engine-loaded",
        "if sidecar.plan_sha256 != sha256_bytes(data):",
        "if False:",
        ("tests/deploy/test_sidecar.py",),
    ),
    Mutant(
        "latencies-of-another-way-taken",
        '            "protocol": self.protocol,\n',
        "",
        ("tests/measure/test_store.py",),
    ),
    Mutant(
        "latency-of-the-worst-round",
        "return min(self.round_ms)",
        "return max(self.round_ms)",
        ("tests/measure/test_timing.py",),
    ),
    Mutant(
        "pickles-read-by-a-bundle",
        "allow_pickle=False) as arrays:\n            return (",
        "allow_pickle=True) as arrays:\n            return (",
        ("tests/deploy/test_bundle_verify.py::test_pickles_are_not_read",),
    ),
    Mutant(
        "code-of-a-checkpoint-run",
        'map_location="cpu", weights_only=True',
        'map_location="cpu", weights_only=False',
        ("tests/models",),
    ),
    Mutant(
        "one-level-too-many",
        "LEVELS = 127",
        "LEVELS = 128",
        ("tests/quantize/test_qdq.py",),
    ),
)


@contextmanager
def copy_of_the_project() -> Iterator[Path]:
    """Yields a folder with a copy of the code and links to everything else."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for entry in ROOT.iterdir():
            if entry.name in COPIED:
                skipped = shutil.ignore_patterns("__pycache__")
                shutil.copytree(entry, folder / entry.name, ignore=skipped)
            elif not entry.name.startswith("."):
                (folder / entry.name).symlink_to(entry)
        yield folder


def mutate(folder: Path, mutant: Mutant) -> Path:
    """Changes a copy of the project; returns the file.

    Raises:
        LookupError: If the snippet does not stand exactly once in exactly one file.
    """
    files = {path: path.read_text() for path in sorted((folder / PACKAGE).rglob("*.py"))}
    found = [path for path, text in files.items() if mutant.old in text]
    if len(found) != 1 or files[found[0]].count(mutant.old) != 1:
        places = ", ".join(str(path.relative_to(folder)) for path in found) or "no file"
        raise LookupError(f"the snippet of {mutant.name} has to stand once, found in: {places}")
    found[0].write_text(files[found[0]].replace(mutant.old, mutant.new))
    return found[0].relative_to(folder)


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Returns pytest's exit code, and what it printed, for tests of a copy of the project."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def status_of(mutant: Mutant) -> str:
    """Returns ``killed``, ``survived``, or why it is not known."""
    with copy_of_the_project() as folder:
        try:
            place = mutate(folder, mutant)
        except LookupError as error:
            return f"broken: {error}"
        code, text = run_tests(folder, mutant.tests)
    if code not in (PASSED, FAILED):
        return f"broken: pytest ended with {code}: {text.strip().splitlines()[-1]}"
    return f"{'killed' if code == FAILED else 'survived'} ({place})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Tries the mutants that are named, or all, prints a table and returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    names = [mutant.name for mutant in MUTANTS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    wanted = parser.parse_args(arguments).names or names
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"there is no mutant {unknown[0]!r}")
    chosen = [mutant for mutant in MUTANTS if mutant.name in wanted]
    with copy_of_the_project() as folder:
        code, text = run_tests(folder, sorted({test for m in chosen for test in m.tests}))
    if code != PASSED:
        print(f"{text}\nthe tests do not pass on the unchanged code", file=sys.stderr)
        return 2
    found = []
    for mutant in chosen:
        started = time.perf_counter()
        found.append(status_of(mutant))
        print(f"{mutant.name:34} {time.perf_counter() - started:5.0f} s  {found[-1]}", flush=True)
    words = [text.partition(" ")[0] for text in found]
    print(f"{words.count('killed')} of {len(words)} killed")
    return 2 if "broken:" in words else 1 if "survived" in words else 0


if __name__ == "__main__":
    sys.exit(main())
