"""``importance``: candidates worth their latency → ``importance.jsonl``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.jsonio import Json, read_lines, sha256_file, sha256_json
from trt_layermerge.core.tables import ImportanceTable
from trt_layermerge.finetune.recipe import FinetuneRecipe, preset
from trt_layermerge.pipeline.context import Context, data_inputs, images_of
from trt_layermerge.pipeline.models import network_inputs
from trt_layermerge.pipeline.networks import useful
from trt_layermerge.pipeline.stage import Stage

if TYPE_CHECKING:
    from trt_layermerge.importance import Scorer
    from trt_layermerge.importance.table import Scores


def _settings(context: Context) -> Json:
    return {
        "model": network_inputs(context.recipe.model),
        "importance": context.recipe.importance.model_dump(mode="json"),
        "train": data_inputs(context.recipe.data.train),
        "preprocess": context.recipe.data.preprocess.model_dump(mode="json"),
        "seed": context.seed,
    }


def _run(context: Context) -> tuple[str, ...]:
    from trt_layermerge.importance.table import fill_table

    # The latencies only decide what is scored, not how, so entries outlive a new latency table.
    notes = {
        "settings": sha256_json(_settings(context)),
        "graph": sha256_file(context.folder / "graph.json"),
        "method": context.recipe.importance.method,
    }
    path = context.folder / "importance.jsonl"
    _set_aside(path, notes)
    fill_table(
        to_score(context),
        lambda missing: _scores(context, missing),
        path,
        notes,
        on_progress=lambda done, total: context.reporter.progress("scoring", done, total),
    )
    return ("importance.jsonl",)


def to_score(context: Context) -> list[Candidate]:
    """Returns the candidates worth their latency; under the paper's protocol untouched units too.

    There every entry is trained anew, and a unit that is not would count as free.
    """
    measure, candidates = context.recipe.measure, context.candidates
    faster = useful(context.graph, candidates, context.latency, measure.precision, measure.batch)
    if context.recipe.importance.method == "calibrate":
        return faster
    return [*faster, *(c for c in candidates if c.original)]


def _set_aside(path: Path, notes: Json) -> None:
    """Renames a table that other settings made; it may have taken days."""
    if not path.exists():
        return
    header, _ = read_lines(path, "importance")
    if header.get("notes") != notes:
        path.rename(path.with_suffix(f".{sha256_json(header)[:8]}.jsonl"))


def scoring_recipe(context: Context) -> FinetuneRecipe:
    """Returns how to train for one entry under the paper's protocol."""
    changes = context.recipe.importance.finetune
    return FinetuneRecipe.from_json(
        {**preset("importance").to_json(), "seed": context.seed, **changes}
    )


def _scores(context: Context, candidates: Sequence[Candidate]) -> Scores:
    """Yields every candidate with its score, from this process or from several workers."""
    scale, section = context.recipe.scale, context.recipe.importance
    if scale.workers > 1 or scale.ray is not None:
        from trt_layermerge.importance.parallel import Workers, score_in_parallel

        trains_on_gpu = section.method == "finetune" and context.recipe.device != "cpu"
        workers = Workers(scale.workers, scale.ray, scale.threads, gpus=int(trains_on_gpu))
        yield from score_in_parallel(candidates, scorer_of(context), workers)
    elif candidates:
        scorer = scorer_of(context)()
        yield from ((candidate, scorer.entry(candidate)) for candidate in candidates)


def scorer_of(context: Context) -> Callable[..., Scorer]:
    """Returns what makes the scorer of the recipe's method; all that it needs is loaded."""
    section = context.recipe.importance
    if section.method == "finetune":
        from trt_layermerge.data import split
        from trt_layermerge.importance.finetune import FinetuneScorer

        held_out, train = split(context.train, section.score_images, context.seed)
        return partial(
            FinetuneScorer,
            context.model,
            context.graph,
            train,
            held_out,
            scoring_recipe(context),
            device=context.recipe.device,
        )
    from trt_layermerge.importance.calibrate import CalibrateScorer

    fit, score = context.calibration
    return partial(
        CalibrateScorer,
        context.model,
        context.graph,
        images_of(fit),
        images_of(score),
        seed=context.seed,
    )


def _result(context: Context) -> Json:
    table = ImportanceTable.load(context.folder / "importance.jsonl")
    deltas = sorted(entry.delta for entry in table.entries.values())
    return {
        "method": context.recipe.importance.method,
        "entries": len(table.entries),
        "worst_delta": deltas[0] if deltas else None,
        "best_delta": deltas[-1] if deltas else None,
        "repairs": dict(Counter(str(entry.repair) for entry in table.entries.values())),
    }


STAGE = Stage(
    "importance", ("graph.json", "candidates.jsonl", "latency.jsonl"), _settings, _run, _result
)
