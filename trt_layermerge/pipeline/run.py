"""A run: a recipe, the folder it writes to, and the session that its stages are calls of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from trt_layermerge.core.graph import LayerGraph, load_graph
from trt_layermerge.core.inputs import parts_of
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.errors import CorruptInputError, UsageError
from trt_layermerge.pipeline.folder import RunFolder
from trt_layermerge.pipeline.options import Reporter
from trt_layermerge.pipeline.pretrained import preprocess_note
from trt_layermerge.pipeline.recipe import Recipe, dump_recipe

if TYPE_CHECKING:
    from torch import nn

    from trt_layermerge.data import LabelledData
    from trt_layermerge.pipeline.launched import Launched
    from trt_layermerge.session.judging import TaskMetric
    from trt_layermerge.session.session import Session


@dataclass(frozen=True)
class Run:
    """What is asked for, where it goes, and everything derived from both.

    Attributes:
        recipe: What to do.
        folder: Where the files are.
        reporter: What is called meanwhile.
        trust_engine: Whether engines that do not match their sidecars are loaded.
        launched: The processes that train together; None where this one is alone.
    """

    recipe: Recipe
    folder: RunFolder
    reporter: Reporter
    trust_engine: bool = False
    launched: Launched | None = None

    @cached_property
    def session(self) -> Session:
        """The network on its way; what earlier stages came to is read from the run's folder."""
        from trt_layermerge.models.networks import weight_note
        from trt_layermerge.models.weights import untrained_note
        from trt_layermerge.session.session import Session

        recipe = self.recipe
        told: list[str] = []
        model = recipe.model.build(told.append)
        weights = weight_note(recipe.model.name, recipe.model.weights) or untrained_note(model)
        found = (*told, weights, preprocess_note(recipe))
        notes = tuple(note for note in found if note is not None)
        for note in notes:
            self.reporter.note(note)
        session = Session(
            model,
            recipe.model.example(recipe.measure.batch),
            folder=self.folder.root,
            progress=self.reporter.progress,
            note=self.reporter.note,
            settings=recipe,
            preprocess=recipe.data.preprocess.build(),
            trust_engine=self.trust_engine,
            stored=True,
        )
        session.recipe_text, session.notes = dump_recipe(recipe), notes
        return session

    @cached_property
    def graph(self) -> LayerGraph:
        """What ``inspect`` found."""
        return load_graph(self.folder / "graph.json")

    @cached_property
    def latency(self) -> LatencyTable:
        """The latency table, fitted to measured networks."""
        return LatencyTable.load(self.folder / "latency.jsonl")

    @cached_property
    def plan(self) -> MergePlan:
        """The plan that ``search`` chose."""
        return MergePlan.load(self.folder / "plan.json")

    def data(self, split: str) -> LabelledData | None:
        """Returns the images of ``train``, ``val`` or ``test``, or None where there are none.

        Raises:
            CorruptInputError: If they are not of the shape that is measured.
            UsageError: If they have a class that the training images, or the list, do not have.
        """
        import torch

        from trt_layermerge.data import aligned, class_list, open_data, order_note

        section = self.recipe.data
        source: str | None = getattr(section, split)
        if source is None:
            return None
        channels, rows, columns = self.recipe.model.input[1:]
        framing = section.preprocess.framing(rows, columns)
        more = self.recipe.model.more_inputs
        inputs = self.session.input_names if more else ("input",)
        data = open_data(source, section.preprocess.build(), framing=framing, inputs=inputs)
        parts = parts_of(data.batch(torch.arange(1))[0])
        expected = [(channels, rows, columns), *(part.shape[1:] for part in more)]
        for found, wanted in zip((tuple(p.shape[1:]) for p in parts), expected, strict=True):
            if found != wanted:
                raise CorruptInputError(
                    f"the images of {source} are inputs of shape {found}, but the network is "
                    f"traced and measured at {wanted}; set model.input (--input), and "
                    "model.more_inputs, to the shapes of the data, or give data of that shape"
                )
        if split != "train" and section.train is not None:
            return aligned(data, self.train.class_names)
        if section.classes is not None:
            return aligned(data, class_list(Path(section.classes)))
        if split == "train" and (note := order_note(data.class_names)) is not None:
            self.reporter.note(note)
        return data

    @cached_property
    def train(self) -> LabelledData:
        """The training images. Raises ``UsageError`` where the recipe names none."""
        self.refuse_no_images()
        data = self.data("train")
        assert data is not None
        return data

    def refuse_no_images(self) -> None:
        """Checks that the recipe names training images. Raises ``UsageError``."""
        if self.recipe.data.train is None:
            raise UsageError(
                "the recipe names no training images, and repairing, scoring and fine-tuning need "
                "some; set data.train (--train npz:FILE, imagefolder:DIR or images:DIR)"
            )

    @cached_property
    def image_notes(self) -> tuple[str, ...]:
        """What a user must hear of the training images: too few, or foreign to the network."""
        from trt_layermerge.session.suitable import image_notes

        data = None if self.recipe.data.train is None else self.train
        return () if data is None else tuple(image_notes(self.session.model, data))

    @cached_property
    def metric(self) -> TaskMetric | None:
        """The task's own figure, or None. Raises ``UsageError`` where it cannot be begun."""
        from trt_layermerge.session.judging import TaskMetric

        if self.recipe.data.metric is None:
            return None
        found = TaskMetric(self.recipe.data.metric)
        found.begin()
        return found

    def judge(self, val: LabelledData | None) -> Callable[[nn.Module], float] | None:
        """Returns what tells by that figure how good a network is on images, or None."""
        metric = self.metric
        if metric is None or val is None:
            return None
        return partial(metric.of, images=val)

    @property
    def seed(self) -> int:
        """The seed of everything random."""
        return self.recipe.seed

    @property
    def preprocessing(self) -> Json:
        """From pixels to the network's input, as a part of what decides a stage's outcome."""
        return self.recipe.data.preprocess.model_dump(mode="json", exclude={"assumed"})
