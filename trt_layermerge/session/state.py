"""What a session keeps: the network, its settings, and what each verb came to."""

from __future__ import annotations

import copy
import logging
import shutil
import weakref
from collections.abc import Callable, Mapping
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trt_layermerge.backends import Backend, get_backend
from trt_layermerge.backends.registry import int8_fallback
from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.device import Precision
from trt_layermerge.core.graph import LayerGraph, load_graph, save_graph
from trt_layermerge.core.inputs import Several, batch, parts_of
from trt_layermerge.core.outputs import Kinds, described, kinds_of, named
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.core.scratch import scratch_folder
from trt_layermerge.core.tables import ImportanceTable
from trt_layermerge.data import LabelledData
from trt_layermerge.data.loader import Images, SeveralInputs
from trt_layermerge.errors import UsageError
from trt_layermerge.export.onnx import input_names_of, output_names_of
from trt_layermerge.measure.meter import Meter
from trt_layermerge.merge import Certificate, RelaxedNet, collapse
from trt_layermerge.models.weights import fill, untrained_note
from trt_layermerge.session.candidates import load_candidates, write_candidates
from trt_layermerge.session.deployed import MERGED
from trt_layermerge.session.images import calibration_of, in_memory, plain
from trt_layermerge.session.latency import Latencies
from trt_layermerge.session.meters import meter_of
from trt_layermerge.session.networks import Networks
from trt_layermerge.session.settings import Settings
from trt_layermerge.session.starts import Starts
from trt_layermerge.tracing import trace
from trt_layermerge.tracing.prepare import SigmoidsSeen, as_inputs, evaluate, shapes

_T = TypeVar("_T")

log = logging.getLogger(__name__)

RELAXED = "relaxed.safetensors"


class State:
    """A network, its settings and folder, and what the verbs came to; arguments are ``Session``'s.

    Attributes:
        model: A copy of the network in eval mode, on the CPU.
        example: The input.
        settings: Everything that decides what the verbs do.
        folder: Where the files are.
        tell: What is called meanwhile.
        notes: What was taken for lack of better, such as random weights, a sentence each.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Tensor | tuple[Tensor, ...],
        *,
        backend: str = "onnxruntime",
        precision: Precision = "fp32",
        folder: str | Path | None = None,
        seed: int = 0,
        progress: Callable[[str, int, int], None] | None = None,
        note: Callable[[str], None] | None = None,
        settings: Settings | Mapping[str, Any] | None = None,
        preprocess: Preprocess | None = None,
        class_names: tuple[str, ...] = (),
        trust_engine: bool = False,
        stored: bool = False,
    ) -> None:
        inputs = as_inputs(example_inputs)
        if inputs[0].ndim != 4 or any(not x.ndim or len(x) != len(inputs[0]) for x in inputs):
            raise UsageError(
                f"the example inputs are of the shapes {shapes(inputs)}, and a session needs "
                "images (N, C, H, W) first and, of every other input, N rows; wrap the network in "
                "a module whose forward takes them so"
            )
        self.example = batch(tuple(map(plain, inputs)))
        self.model = model if stored else copy.deepcopy(model).cpu().eval()
        if isinstance(settings, Settings):
            self.settings = settings
        else:
            measure = {"backend": backend, "precision": precision, "batch": len(self.example)}
            self.settings = _settings_of(settings or {}, measure, seed)
        self.folder = scratch_folder() if folder is None else Path(folder)
        if folder is None:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        silent = Callbacks()
        self.tell = Callbacks(progress or silent.progress, note or silent.note)
        channels = inputs[0].shape[1]
        self.preprocess = preprocess or Preprocess(1.0, (0.0,) * channels, (1.0,) * channels)
        self.class_names, self.trust_engine, self.stored = class_names, trust_engine, stored
        self.recipe_text, self.keep_frontier = "", False
        self.notes: tuple[str, ...] = ()
        if not stored and (untrained := untrained_note(self.model)) is not None:
            self.notes = (untrained,)
            (note or log.warning)(untrained)
        self._made: dict[str, Any] = {}
        self._images: dict[str, Images | None] = {}

    def _have(self, name: str, verb: str, load: Callable[[], _T]) -> _T:
        """Returns what a verb came to; read from the folder where another process left it."""
        if name not in self._made:
            if not self.stored:
                raise UsageError(f"there is no {name} yet; call session.{verb}() first")
            self._made[name] = load()
        return cast(_T, self._made[name])

    def _given(self, name: str, images: Images | None) -> Images | None:
        """Returns images that a verb was given, or else those of an earlier one."""
        if images is not None:
            if isinstance(self.example, Several) and not isinstance(images, LabelledData):
                images = SeveralInputs(images, self.input_names)
            self._images[name] = images
        return self._images.get(name)

    def _training_images(self, images: Images | None) -> Images:
        found = self._given("train", images)
        if found is None:
            raise UsageError(
                "no training images were given, and repairing, scoring and training need some; "
                "pass a loader (train)"
            )
        return found

    # What is measured with, made when it is first needed.

    @cached_property
    def backend(self) -> Backend:
        """What runs networks in this process; torch runs them where torch computes."""
        return get_backend(self.settings.measure.backend, **self._backend_options)

    @property
    def _backend_options(self) -> dict[str, Any]:
        by_torch = self.settings.measure.backend == "torch"
        return {"device": self.settings.device} if by_torch else {}

    @property
    def elsewhere(self) -> bool:
        """Whether another device, or a file of its answers, tells latencies."""
        return self.settings.measure.recorded or self.settings.measure.host is not None

    @cached_property
    def meter(self) -> Meter:
        """What measures latency."""
        measure = self.settings.measure
        backend = None if self.elsewhere or measure.engines else self.backend
        return meter_of(measure, backend, self._backend_options, self.folder, self.tell)

    @cached_property
    def networks(self) -> Networks:
        """Builds the networks of plans, and times them."""
        measure = self.settings.measure
        return Networks(
            self.model,
            self.graph,
            self.example,
            measure.precision,
            int8_fallback(measure.backend),
            self.meter,
            self.tell,
        )

    @cached_property
    def macs(self) -> float:
        """Multiply-accumulates of the network for one image."""
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.model(*parts_of(self.example))
        return float(counter.get_total_flops()) / 2 / len(self.example)

    @cached_property
    def answers(self) -> dict[str, Tensor]:
        """What the network puts out for the example, by name."""
        return self._answered[0]

    @cached_property
    def _answered(self) -> tuple[dict[str, Tensor], list[str]]:
        """The answers, and the names of those that a sigmoid gave."""
        with SigmoidsSeen() as seen:
            output = evaluate(self.model, parts_of(self.example))
        answers = named(output, output_names_of(self.model, output, self.input_names))
        return answers, [name for name, value in answers.items() if seen.gave(value)]

    @cached_property
    def outputs(self) -> Kinds:
        """What the network puts out, by name, and what kind of answer each is (``core.outputs``).

        Raises:
            UsageError: If ``task`` names an output that there is not.
            UnsupportedModelError: If the network gives no tensors, or some not image by image.
        """
        (tensors, sigmoids), image = self._answered, parts_of(self.example)[0].shape
        kinds = kinds_of(tensors, image, self.settings.task, sigmoids)
        if [(kinds[name], value.ndim) for name, value in tensors.items()] != [("classes", 2)]:
            self.tell.note(
                f"outputs are compared by what they are: {described(tensors, kinds)}; say what "
                "they are for where that is not right (task)"
            )
        return kinds

    @property
    def input_names(self) -> tuple[str, ...]:
        """What the network's inputs are called, in order."""
        return input_names_of(self.model, len(parts_of(self.example)))

    # What the verbs came to.

    @property
    def graph(self) -> LayerGraph:
        """What was traced: units, residuals, and barriers with their reasons."""
        if "graph" not in self._made and not self.stored:
            self.inspect()
        return self._have("graph", "inspect", lambda: load_graph(self.folder / "graph.json"))

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """What may stand in the place of the network's blocks."""
        if "candidates" not in self._made and not self.stored:
            self.inspect()
        return self._have("candidates", "inspect", lambda: load_candidates(self.folder))

    def inspect(self) -> LayerGraph:
        """Traces the network, and writes ``graph.json`` and ``candidates.jsonl``.

        Returns:
            Units, segments, residuals, and barriers with their reasons.

        Raises:
            UnsupportedModelError: If the network cannot be traced.
            CorruptInputError: If a weight is not finite.
        """
        graph = trace(self.model, parts_of(self.example))
        _ = self.outputs  # refused before anything is measured
        save_graph(graph, self.folder / "graph.json")
        self._made["graph"] = graph
        self._made["candidates"] = write_candidates(self.folder, graph, self.settings.search)
        if not any(not c.original for c in self.candidates):
            self.tell.note("nothing in this network can merge; see the barriers of inspect")
        return graph

    @property
    def latencies(self) -> Latencies:
        """What ``measure`` came to."""
        return self._have("latencies", "measure", lambda: Latencies.load(self.folder))

    @property
    def importance(self) -> ImportanceTable:
        """What ``score`` came to."""
        path = self.folder / "importance.jsonl"
        return self._have("importance", "score", lambda: ImportanceTable.load(path))

    @property
    def plan(self) -> MergePlan:
        """What ``search`` chose, or what ``use`` set."""
        return self._have("plan", "search", lambda: MergePlan.load(self.folder / "plan.json"))

    @property
    def relaxed(self) -> RelaxedNet:
        """The network of the plan that is trained, its blocks not merged yet."""
        return self._have("relaxed", "relax", lambda: self.filled(RELAXED))

    @property
    def merged(self) -> nn.Module:
        """The merged network, in eval mode."""

        def load() -> nn.Module:
            network = collapse(self._starts().unfilled(self.plan).eval())
            fill(network, self.folder / MERGED)
            return network.eval()

        return self._have("merged", "merge", load)

    @property
    def certificate(self) -> Certificate:
        """How far the merged network is from the trained one."""

        def load() -> Certificate:
            raise UsageError("another process merged the network; certificate.json has its figures")

        return self._have("certificate", "merge", load)

    def filled(self, weights: str) -> RelaxedNet:
        """Returns the network that is trained, with the weights of a file of the folder."""
        network = self._starts().unfilled(self.plan)
        fill(network, self.folder / weights)
        return network.eval()

    def _forget(self, *names: str) -> None:
        for name in names:
            self._made.pop(name, None)

    def _calibration(self, train: Images) -> tuple[LabelledData, LabelledData]:
        section = self.settings.importance
        return calibration_of(train, section.fit_images, section.score_images, self.settings.seed)

    def _starts(self, train: Images | None = None) -> Starts:
        """Returns what makes networks as training finds them; without images none is repaired."""
        section = self.settings.finetune.reconstruct
        return Starts(
            self.model,
            self.graph,
            self.importance if train is not None else ImportanceTable({}),
            None if train is None else self._calibration(train)[0],
            None if train is None or not section.steps else in_memory(train, section.images),
            self.settings,
            self.tell,
            tuple(self.outputs.values()),
        )


def _settings_of(given: Mapping[str, Any], measure: Mapping[str, Any], seed: int) -> Settings:
    """Returns settings of a mapping like a recipe's; what it does not say is as given besides.

    Raises:
        UsageError: If a key is unknown, or a value cannot be used.
    """
    body = {"seed": seed, **given, "measure": {**measure, **given.get("measure", {})}}
    try:
        return Settings.model_validate(body)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        ]
        raise UsageError(f"the settings cannot be used: {'; '.join(faults[:5])}") from error


def with_goal(settings: Settings, speedup: float | None, budget_ms: float | None) -> Settings:
    """Returns settings with another budget; a latency comes before a speed-up.

    Args:
        settings: Left untouched.
        speedup: Latency of the original divided by the budget, above 1; None keeps the settings'.
        budget_ms: Largest latency, above 0; None takes away the settings'.

    Raises:
        UsageError: If it is no budget.
    """
    given = [budget for budget in (budget_ms, speedup and speedup - 1) if budget is not None]
    if not given or not all(0 < budget < inf for budget in given):
        raise UsageError(
            f"speedup {speedup} and budget_ms {budget_ms} name no budget; give a speed-up above 1, "
            "or a latency above 0 ms"
        )
    found = {"budget_ms": budget_ms, **({"speedup": speedup} if speedup is not None else {})}
    return settings.model_copy(update={"search": settings.search.model_copy(update=found)})
