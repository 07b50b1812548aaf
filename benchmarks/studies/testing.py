"""The last step of a study: each finished network meets the test images, once."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.studies.arms import COURSES
from benchmarks.studies.journal import Journal
from benchmarks.studies.packed import pack
from benchmarks.studies.settings import Network, Settings, run_of
from benchmarks.studies.training import (
    Training,
    chosen_rate,
    done_trainings,
    start_of,
    training_run,
    trainings_of,
    weights_of,
)
from benchmarks.studies.workers import Clock
from trt_layermerge.data import LabelledData, pairs
from trt_layermerge.errors import UsageError
from trt_layermerge.finetune.evaluate import BATCH, NotANumberError, outputs_for
from trt_layermerge.merge import collapse
from trt_layermerge.models.weights import fill


def finished(settings: Settings, network: Network, journal: Journal) -> list[Training]:
    """Returns the trainings of a network that are to be tested.

    Raises:
        UsageError: If one is not done yet, since what is tested may decide nothing.
    """
    done, plans = done_trainings(journal.rows), journal.of("plan")
    found: dict[Training, None] = {}
    for arm in settings.arms:
        rate = chosen_rate(settings, network.name, arm, plans, done)
        wanted = trainings_of(settings, network.name, arm, plans, rate or 0.0)
        if rate is None or any(job not in done for job in wanted.values()):
            raise UsageError(
                f"{network.name} {arm.name} is not trained yet, and test images are opened last; "
                "train it first (without --until)"
            )
        found |= dict.fromkeys(wanted.values())
    return list(found)


def make_tests(settings: Settings, network: Network, journal: Journal, clock: Clock) -> None:
    """Writes what every finished network of a study makes of each test image.

    The merged network answers, trained and, for each plan and start, as it was before training
    (with the first seed).
    """
    jobs, trainings = finished(settings, network, journal), done_trainings(journal.rows)
    data = _images(settings, network, journal)
    before = {(j.network, j.plan, COURSES[j.course].start): None for j in jobs}
    done = {_key(row) for row in journal.of("test")}
    if (network.name, None, None, None, None) not in done:
        original = run_of(settings, network, "full").session.model
        _test(journal, original, data, network.name)
    for name, plan, start in before:
        if (name, plan, start, None, None) not in done:
            job = Training(name, plan, start, 1.0, settings.seeds[0])
            run = training_run(settings, job)
            model = collapse(start_of(settings, run, job))
            _test(journal, model, data, name, plan, start)
    for job in jobs:
        if (job.network, job.plan, job.course, job.rate, job.seed) not in done:
            clock.check()
            lost = trainings[job].get("diverged", False)
            merged = None if lost else trained(settings, job)
            _test(journal, merged, data, job.network, job.plan, job.course, job.rate, job.seed)


def trained(settings: Settings, job: Training) -> nn.Module:
    """Returns the merged network of a training."""
    network = start_of(settings, training_run(settings, job), job, filled=False)
    fill(network, weights_of(settings, job))
    return collapse(network.eval())


def _test(
    journal: Journal,
    model: nn.Module | None,
    data: LabelledData,
    network: str,
    plan: str | None = None,
    course: str | None = None,
    rate: float | None = None,
    seed: int | None = None,
) -> None:
    """Adds one row with the class of every image; a network that diverged is right nowhere."""
    classes = np.full(len(data), -1)
    if model is not None:
        with suppress(NotANumberError):
            classes = np.concatenate([_classes(model, images) for images, _ in pairs(data, BATCH)])
    journal.add(
        kind="test",
        network=network,
        plan=plan,
        course=course,
        rate=rate,
        seed=seed,
        accuracy=float((classes == labels_of(data)).mean()),
        classes=pack(classes),
    )


def _classes(model: nn.Module, images: Any) -> NDArray[np.int64]:
    (logits,) = outputs_for(model, images).values()
    return np.asarray(logits.argmax(1).numpy(), np.int64)


def _key(row: dict[str, object]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("network", "plan", "course", "rate", "seed"))


def _images(settings: Settings, network: Network, journal: Journal) -> LabelledData:
    """Returns the test images; their labels and fonts are in the journal afterwards."""
    run = run_of(settings, network, "full")
    data = run.data("test")
    assert data is not None
    if not any(row["network"] == network.name for row in journal.of("images")):
        groups = groups_of(Path(str(run.recipe.data.test).partition(":")[2]), len(data))
        row = {"labels": pack(labels_of(data)), "groups": pack(groups[0]), "by": groups[1]}
        journal.add(kind="images", network=network.name, **row)
    return data


def labels_of(data: LabelledData) -> NDArray[np.int64]:
    """Returns the label of every image, ``(N,)``."""
    labels = data.batch(torch.arange(len(data)))[1]
    assert labels is not None  # test images have labels
    return np.asarray(labels.numpy(), np.int64)


def groups_of(path: Path, count: int) -> tuple[NDArray[np.int64], str]:
    """Returns which images are not independent, ``(N,)``, and what joins them: ``font`` or none."""
    with np.load(path, allow_pickle=False) as arrays:
        if "font_id" in arrays:
            return np.asarray(arrays["font_id"], np.int64), "font"
    return np.arange(count), "image"
