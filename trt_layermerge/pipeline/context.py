"""What the stages of one run share, each part made when it is first needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from trt_layermerge.backends import Backend, get_backend
from trt_layermerge.backends.registry import int8_fallback
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.device import Precision
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.graph_file import load_graph
from trt_layermerge.core.jsonio import damage, read_lines
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceTable, LatencyTable
from trt_layermerge.errors import CorruptInputError, UsageError
from trt_layermerge.pipeline.data_files import data_inputs as data_inputs
from trt_layermerge.pipeline.folder import RunFolder
from trt_layermerge.pipeline.options import Reporter
from trt_layermerge.pipeline.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trt_layermerge.data import LabelledData, Part
    from trt_layermerge.measure.meter import Meter
    from trt_layermerge.merge import RelaxedNet
    from trt_layermerge.pipeline.together import Together

ISOLATED = ("tensorrt", "tensorrt_rtx")
"""Backends that run in processes of their own: a network that crashes them costs one entry."""


@dataclass(frozen=True)
class Context:
    """A recipe, the folder it writes to, who listens, and everything derived from them.

    Attributes:
        recipe: What to do.
        folder: Where the files are.
        reporter: Who listens.
        trust_engine: Whether engines that do not match their sidecars are loaded.
        together: The processes that train together; None where this one is alone.
    """

    recipe: Recipe
    folder: RunFolder
    reporter: Reporter
    trust_engine: bool = False
    together: Together | None = None

    @cached_property
    def model(self) -> nn.Module:
        """The original network in eval mode."""
        from trt_layermerge.pipeline.models import load_network

        return load_network(self.recipe.model)

    @cached_property
    def example(self) -> Tensor:
        """An input of zeros, ``(N, C, H, W)`` with the measured batch."""
        import torch

        return torch.zeros(self.recipe.measure.batch, *self.recipe.model.input[1:])

    @cached_property
    def graph(self) -> LayerGraph:
        """What ``inspect`` found."""
        return load_graph(self.folder / "graph.json")

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """What ``inspect`` offered to the search."""
        path = self.folder / "candidates.jsonl"
        _, rows = read_lines(path, "candidates")
        with damage(path):
            return tuple(Candidate.from_json(row) for row in rows)

    @cached_property
    def latency(self) -> LatencyTable:
        """The latency table, fitted to measured networks."""
        return LatencyTable.load(self.folder / "latency.jsonl")

    @cached_property
    def importance(self) -> ImportanceTable:
        """The importance table."""
        return ImportanceTable.load(self.folder / "importance.jsonl")

    @cached_property
    def plan(self) -> MergePlan:
        """The plan that ``search`` chose."""
        return MergePlan.load(self.folder / "plan.json")

    @cached_property
    def backend(self) -> Backend:
        """Where latency is measured; torch measures on the device that torch computes on."""
        name = self.recipe.measure.backend
        return get_backend(name, **({"device": self.recipe.device} if name == "torch" else {}))

    @property
    def fallback(self) -> Precision:
        """The float type of what int8 does not quantise where latency is measured."""
        return int8_fallback(self.recipe.measure.backend)

    @property
    def engines(self) -> bool:
        """Whether what is measured are engines, whose speed differs from build to build."""
        return self.recipe.measure.backend in ISOLATED

    @cached_property
    def meter(self) -> Meter:
        """Who measures latency: this process, a child of it, another device, or imported files."""
        from trt_layermerge.measure.isolated import AgentMeter, run_here
        from trt_layermerge.measure.meter import BackendMeter
        from trt_layermerge.pipeline.recorded import Recorded, RecordedMeter

        measure, note = self.recipe.measure, self.reporter.note
        if measure.recorded:
            return RecordedMeter(Recorded.of(self))
        if measure.host is None and not self.engines:
            return BackendMeter(self.backend)
        agent = run_here
        if measure.host is not None:
            from trt_layermerge.measure.agent.zipapp import write_zipapp
            from trt_layermerge.measure.ssh import SshAgent

            agent = SshAgent(measure.host, write_zipapp, note)
        work = self.folder / "jobs"
        return AgentMeter(measure.backend, work, agent, self.fallback, note)

    @property
    def store(self) -> Path:
        """Where block measurements are kept between runs."""
        store = self.recipe.measure.store
        return Path(store) if store else self.folder / "latency.sqlite"

    def data(self, split: str) -> LabelledData | None:
        """Returns the images of ``train``, ``val`` or ``test``, or None where there are none.

        Raises:
            CorruptInputError: If they are not of the shape that is measured.
        """
        import torch

        from trt_layermerge.data import open_data

        section = self.recipe.data
        source: str | None = getattr(section, split)
        if source is None:
            return None
        channels, rows, columns = self.recipe.model.input[1:]
        framing = section.preprocess.framing(rows, columns)
        data = open_data(source, section.preprocess.build(), framing=framing)
        found = tuple(data.batch(torch.arange(1))[0].shape[1:])
        if found != (channels, rows, columns):
            raise CorruptInputError(
                f"the images of {source} are inputs of shape {found}, but the network is traced "
                f"and measured at {(channels, rows, columns)}; set model.input (--input) to the "
                "shape of the images, or give images of that shape"
            )
        return data

    @cached_property
    def train(self) -> LabelledData:
        """The training images. Raises ``UsageError`` where the recipe names none."""
        data = self.data("train")
        if data is None:
            raise UsageError(
                "the recipe names no training images, and repairing, scoring and fine-tuning need "
                "some; set data.train (--train npz:FILE, imagefolder:DIR or images:DIR)"
            )
        return data

    @cached_property
    def calibration(self) -> tuple[Part, Part]:
        """Disjoint training images: to fit repairs on, and to score on."""
        from trt_layermerge.data import split

        wanted = self.recipe.importance
        if len(self.train) < 2:
            raise UsageError(
                f"{self.recipe.data.train} holds a single image, and repairs are fitted on some "
                "images and scored on others; give more (data.train)"
            )
        fit, rest = split(self.train, min(wanted.fit_images, len(self.train) // 2), self.seed)
        score, _ = (
            split(rest, wanted.score_images, self.seed)
            if wanted.score_images < len(rest)
            else (rest, None)
        )
        return fit, score

    @property
    def seed(self) -> int:
        """The seed of everything random."""
        return self.recipe.seed

    def relaxed(self, weights: str | None) -> RelaxedNet:
        """Returns the network that is trained, with the weights of a file of the run."""
        from trt_layermerge.pipeline.models import fill
        from trt_layermerge.pipeline.starts import unfilled

        network = unfilled(self, self.plan)
        if weights is not None:
            fill(network, self.folder / weights)
        return network.eval()

    @cached_property
    def merged(self) -> nn.Module:
        """The merged network with the weights that ``merge`` wrote."""
        from trt_layermerge.merge import collapse
        from trt_layermerge.pipeline.models import fill

        network = collapse(self.relaxed(None))
        fill(network, self.folder / "merged.safetensors")
        return network.eval()


def images_of(data: LabelledData, count: int | None = None) -> Tensor:
    """Returns the first images of a set, or all, as one tensor ``(N, C, H, W)``."""
    import torch

    return data.batch(torch.arange(len(data) if count is None else min(count, len(data))))[0]
