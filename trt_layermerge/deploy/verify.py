"""``verify.json``: torch, ONNX and engine on the same images, and what nobody could check."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, TypeAlias

from trt_layermerge.backends.base import Array
from trt_layermerge.core.agreement import (
    Judge,
    agreements,
    agreements_of,
    check_labels,
    distances,
    right,
)
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.outputs import Kinds, judged_by
from trt_layermerge.deploy.changes import Change, Changes
from trt_layermerge.deploy.comparison import (
    Comparison,
    Subject,
    Trial,
    share,
)
from trt_layermerge.errors import AccuracyGateError, UsageError

Answer: TypeAlias = Callable[[Any], Mapping[str, Array]]
"""Network inputs ``(n, C, H, W)``, or several, to outputs by name."""

Batch: TypeAlias = tuple[Any, Array | None]
"""Network inputs, float32 ``(n, C, H, W)`` or several (``core.inputs``), and the right classes
``(n,)``, of every pixel ``(n, H, W)``, or None."""


@dataclass(frozen=True)
class Verification:
    """Every comparison of a run.

    Attributes:
        images: Number of images.
        accuracies: Accuracy of every torch network by name, or None without labels.
        metrics: What the task's own figure says of each, or None without one.
        agreement: Share of images with the same answer of original and merged torch network.
        fidelity: The same of each output by its name, with how far it is from the original's:
            ``kl`` in nats of classes, ``relative_error`` of others; None where it is not finite.
        classes: Those classes that lost most (``deploy.changes``); none of other answers.
        changed: Images whose class changed, those that the original was surest of.
        comparisons: One for each subject.
        unverified: What was not checked, one sentence each.
        advice: What to type about a subject outside its tolerance, by its name.
    """

    images: int
    accuracies: Mapping[str, float | None]
    metrics: Mapping[str, float | None]
    agreement: float
    fidelity: Mapping[str, Json]
    classes: Sequence[Json]
    changed: Sequence[Change]
    comparisons: tuple[Comparison, ...]
    unverified: tuple[str, ...]
    advice: Mapping[str, str]

    @property
    def accuracy_drop(self) -> float | None:
        """Accuracy of the original less the worst of anything merged, or None without labels."""
        return self._drop(self.accuracies, [c.accuracy for c in self.comparisons_of_merged])

    @property
    def least_agreement(self) -> float:
        """The smallest share of images that anything merged answers as the original does."""
        built = (c.kept for c in self.comparisons if c.kept is not None)
        return min([self.agreement, *built])

    @property
    def metric_drop(self) -> float | None:
        """The same of the task's own figure, or None without one."""
        return self._drop(self.metrics, [c.metric for c in self.comparisons_of_merged])

    @property
    def comparisons_of_merged(self) -> tuple[Comparison, ...]:
        """Those of everything that was built of the merged network."""
        return tuple(c for c in self.comparisons if c.network == "merged")

    @staticmethod
    def _drop(torch: Mapping[str, float | None], built: Sequence[float | None]) -> float | None:
        original, merged = torch["original"], torch["merged"]
        if original is None or merged is None:
            return None
        return original - min([merged, *(figure for figure in built if figure is not None)])

    def to_json(self) -> Json:
        """Returns the body of ``verify.json``."""
        both = ("original", "merged")
        return {
            "images": self.images,
            "accuracy": {**{n: self.accuracies[n] for n in both}, "drop": self.accuracy_drop},
            "agreement": self.agreement,
            "least_agreement": self.least_agreement,
            "fidelity": dict(self.fidelity),
            "classes": list(self.classes),
            "comparisons": [c.to_json() for c in self.comparisons],
            "unverified": list(self.unverified),
        }


def verify(
    batches: Iterable[Batch],
    networks: Mapping[str, Answer],
    subjects: Sequence[Subject],
    kinds: Kinds,
    judge: Judge | None = None,
) -> Verification:
    """Returns how far everything that was built is from torch; raises no gate (``gate`` does).

    One pass over the images: every batch goes through all networks before the next is asked for.

    Args:
        batches: The images; all with labels, or all without.
        networks: The torch networks ``original`` and ``merged``, and any others whose accuracy is
            to be told.
        subjects: What to compare; one that cannot be run here is listed as unverified.
        kinds: What the outputs are (``core.outputs``).
        judge: Begins to count the task's own figure; None where there is none.

    Raises:
        UsageError: If there are no images.
        CorruptInputError: If a label is beyond the classes, which would count as a wrong answer.
        UntrustedInputError: If an engine is not to be trusted.
    """
    hits: dict[str, list[Array]] = {name: [] for name in networks}
    tallies = {} if judge is None else {name: judge() for name in networks}
    given = False
    same: list[Array] = []
    alike: dict[str, list[Array]] = {name: [] for name in kinds}
    far: dict[str, list[Array]] = {name: [] for name in kinds}
    changes = Changes()
    with ExitStack() as stack:
        trials = [
            stack.enter_context(closing(Trial(subject, kinds, judge() if judge else None)))
            for subject in subjects
        ]
        for images, labels in batches:
            answers = {name: answer(images) for name, answer in networks.items()}
            told = None if labels is None else judged_by(labels, answers["original"], kinds)
            same.append(agreements_of(answers["original"], answers["merged"], kinds))
            for trial in trials:
                trial.add(images, labels, answers, told)
            for name, kind in kinds.items():
                before, after = (answers[each][name] for each in ("original", "merged"))
                alike[name].append(agreements(before, after, kind))
                far[name].append(distances(before, after, kind))
                if list(kinds.values()) == ["classes"] and before.ndim == 2:
                    changes.add(images, before, after, labels if told else None)
            for name, tally in tallies.items():
                tally.update(answers[name], labels)
            given = given or labels is not None
            if labels is not None and told is not None:
                check_labels(labels, answers["original"][told].shape[1])
                for name, outputs in answers.items():
                    hits[name].append(right(outputs[told], labels))
    agreement = share(same)
    if agreement is None:
        raise UsageError("there are no images to verify on; give at least one (data.test)")
    comparisons = tuple(trial.result() for trial in trials)
    unverified = [*not_run(comparisons)]
    if not hits["original"]:
        why = "no output is logits of the classes that the labels tell (task)"
        unverified.append(f"accuracy was not measured: {why if given else 'there are no labels'}")
    return Verification(
        images=sum(map(len, same)),
        accuracies={name: share(found) for name, found in hits.items()},
        metrics={name: tallies[name].compute() if tallies else None for name in networks},
        agreement=agreement,
        fidelity={
            name: _fidelity(kind, share(alike[name]), share(far[name]))
            for name, kind in kinds.items()
        },
        classes=changes.classes(),
        changed=changes.images(),
        comparisons=comparisons,
        unverified=tuple(unverified),
        advice={subject.name: subject.advice for subject in subjects},
    )


def _fidelity(kind: str, agreement: float | None, distance: float | None) -> Json:
    measure = "kl" if kind in ("classes", "probabilities") else "relative_error"
    finite = distance is not None and math.isfinite(distance)
    return {"kind": kind, "agreement": agreement, measure: distance if finite else None}


def gate(
    result: Verification,
    max_accuracy_drop: float | None,
    max_metric_drop: float | None = None,
    min_agreement: float | None = None,
) -> None:
    """Passes silently, or says which limit is exceeded.

    Args:
        result: What was found.
        max_accuracy_drop: Largest loss of accuracy, as a fraction; None for no limit.
        max_metric_drop: The same of the task's own figure, in its own units.
        min_agreement: Smallest share of answers that are the original's; None for no limit.

    Raises:
        AccuracyGateError: If a subject is outside its tolerance or not finite, accuracy or the
            task's own figure drops by more than allowed, also if it was never measured, or too few
            answers are the original's.
    """
    for c in result.comparisons:
        if not c.ok:
            raise AccuracyGateError(
                f"{c.name} differs from the {c.network} torch network by {c.max_rel:.2e} of its "
                f"largest output, {_allowed(c)}; {result.advice[c.name]}, and see verify.json for "
                "the figures"
            )
    kept = result.least_agreement
    if min_agreement is not None and kept < min_agreement:
        raise AccuracyGateError(
            f"only {kept:.2%} of {result.images} images get the answer of the original network, "
            f"{min_agreement:.2%} is asked for (verify.min_agreement); choose a smaller speed-up "
            "(--speedup) or a longer fine-tuning"
        )
    loss = result.metric_drop
    if max_metric_drop is not None and (loss is None or loss > max_metric_drop):
        told = "was not measured (data.metric)" if loss is None else f"dropped by {loss:.4g}"
        raise AccuracyGateError(
            f"the task's metric {told} on {result.images} images, {max_metric_drop:.4g} is "
            "allowed; choose a smaller speed-up (--speedup) or a longer fine-tuning"
        )
    if max_accuracy_drop is None:
        return
    drop = result.accuracy_drop
    if drop is None:
        raise AccuracyGateError(
            "accuracy may drop by a limited amount, but was not measured, because there are no "
            "labels; name test images (data.test) or remove the gate (verify.max_accuracy_drop)"
        )
    if drop > max_accuracy_drop:
        raise AccuracyGateError(
            f"accuracy dropped by {drop:.2%} on {result.images} images, {max_accuracy_drop:.2%} "
            "is allowed; choose a smaller speed-up (--speedup) or a longer fine-tuning"
        )


def not_run(comparisons: Iterable[Comparison]) -> Iterator[str]:
    """Yields a sentence for every reason that kept subjects from being run."""
    reasons: dict[str, list[str]] = {}
    for comparison in comparisons:
        if comparison.reason is not None:
            reasons.setdefault(comparison.reason, []).append(comparison.name)
    for reason, names in reasons.items():
        yield f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} not run: {reason}"


def _allowed(found: Comparison) -> str:
    if found.tolerance is None:
        return "which is not finite"
    return f"{found.tolerance:.0e} is allowed"
