"""The whole way on live objects, verb by verb: from a trained model to a verified network.

A session keeps what each verb came to, in memory and in its folder. The stages of a run are thin
calls of these verbs; what another process left in the folder is read from there (``stored``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.inputs import Several, parse, parts_of
from trt_layermerge.core.jsonio import Json, sha256_bytes, sha256_file, write_json
from trt_layermerge.core.memory import release
from trt_layermerge.core.outputs import judged_by
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.scratch import scratch
from trt_layermerge.core.streams import width_alone
from trt_layermerge.core.tables import ImportanceTable, LatencyTable
from trt_layermerge.data import Part
from trt_layermerge.data.loader import Images
from trt_layermerge.errors import InfeasibleBudgetError, UnsupportedModelError
from trt_layermerge.export.onnx import ExportReport, export_onnx
from trt_layermerge.finetune.evaluate import known_accuracy
from trt_layermerge.finetune.loop import FinetuneResult
from trt_layermerge.finetune.processes import ProcessGroup
from trt_layermerge.importance.amounts import Amounts
from trt_layermerge.importance.table import fill_table
from trt_layermerge.measure.kept import KeptMeter
from trt_layermerge.measure.meter import BackendMeter
from trt_layermerge.merge import RelaxedNet, certify, collapse
from trt_layermerge.search.choosing import Choice, Goal, choose, choose_imported
from trt_layermerge.search.closing import BudgetMissedError
from trt_layermerge.search.lazy import refine
from trt_layermerge.search.problem import Problem, decides_alone
from trt_layermerge.session.benching import Benching
from trt_layermerge.session.building import About, build_engines
from trt_layermerge.session.deployed import MERGED
from trt_layermerge.session.effort import affordable
from trt_layermerge.session.images import images_of, in_memory, random_like
from trt_layermerge.session.judging import TaskMetric
from trt_layermerge.session.latency import measure_latency
from trt_layermerge.session.quantizing import quantize_networks, save_weights
from trt_layermerge.session.recorded import Recorded
from trt_layermerge.session.scoring import (
    Scoring,
    amounts_of,
    scorer_of,
    set_aside,
    stream_scores,
    to_score,
)
from trt_layermerge.session.searching import (
    BUILDS,
    WholeNetworks,
    goal_of,
    imported_of,
    loop_tools,
    problem_of,
    refuse_hopeless,
    save_choice,
    save_frontier,
)
from trt_layermerge.session.settings import Settings
from trt_layermerge.session.showing import Showing, shown_by
from trt_layermerge.session.state import State, with_goal
from trt_layermerge.session.training import Metric, Racers, Teaching, first_labels
from trt_layermerge.session.verifying import UNLABELLED_IMAGES, image_batches, verify_networks

REPAIRED = "repaired.safetensors"
STATE = "finetune.state.safetensors"
CERTIFIED_IMAGES, COMPARED_IMAGES = 8, 16


class Session(State):
    """A network on its way to a faster one.

    The verbs, in their order: ``measure``, ``score``, ``search``, ``relax``, ``repair``, ``train``
    (or a loop of one's own over the network that ``relax`` returned), ``merge``, ``export``,
    ``quantize``, ``build``, ``bench``, ``verify``. Each takes what the ones before it came to.
    Images may be any iterable of batches that can be passed over again: tensors ``(N, C, H, W)``,
    or tuples of images and labels: ``(N,)``, or of every pixel ``(N, H, W)``, where 255 is none.
    For a network of several inputs, a batch is a tuple of them, a dict of them by the names of
    ``forward``'s parameters, or a tuple of either and labels. A verb without images takes those of
    an earlier one. Outputs may be nested (``outputs`` tells their names and kinds).

    Args:
        model: The trained network; left untouched.
        example_inputs: An input ``(N, C, H, W)``, or a tuple of all inputs of a network that takes
            several, images first; latency is measured at their shapes, N included.
        backend: What measures: ``onnxruntime``, ``torch``, ``tensorrt``, ``tensorrt_rtx``.
        precision: ``fp32``, ``fp16`` or ``int8``: what is measured and deployed.
        folder: Where tables, weights and engines go, and from where an interrupted session
            continues; None for a folder that goes with the session.
        seed: Of everything random.
        progress: Called with the name of the work, and how many of how many steps are done.
        note: Called with whatever is worth a line.
        settings: What else decides the outcome, as the sections of a recipe (``measure``,
            ``search``, ``importance``, ``finetune``, ``calibrate``, ``build``, ``scale``), with
            ``task`` (what the outputs are for), ``device`` and ``seed``; what they say comes before
            ``backend``, ``precision`` and ``seed``, and a ``Settings`` object says all.
        preprocess: How an image becomes an input, for the files beside an engine; None where
            pixels are inputs as they are.
        class_names: Names of the classes, for the same.
        trust_engine: Whether engines that do not match their sidecars are loaded.
        stored: Whether what is missing is read from the folder, as another process left it; the
            model is used itself then, not a copy.

    Raises:
        UsageError: If a setting cannot be used, or the example is no ``(N, C, H, W)``; in a verb,
            if one before it that it needs was not called.

    Attributes:
        model: A copy of the network in eval mode, on the CPU.
        example: The input, or several (``core.inputs``).
        outputs: What the network puts out, by name, and of which kind it is (``core.outputs``).
        settings: Everything that decides what the verbs do.
        folder: Where the files are.
        notes: What was taken for lack of better, such as random weights, a sentence each.
    """

    def measure(self) -> LatencyTable:
        """Measures candidates and some whole networks on the device.

        Returns:
            Latency of everything that a candidate runs, in ms, fitted to whole networks.

        Raises:
            DeviceError: If the device is not there, or no network could be built and run.
            UsageError: If precision or batch cannot be measured.
            UnsupportedModelError: If the network cannot be traced.
            CorruptInputError: If a weight is not finite, or the store is damaged.
        """
        measure = self.settings.measure
        store = Path(measure.store) if measure.store else self.folder / "latency.sqlite"
        recorded = Recorded.of(self.folder, measure) if measure.recorded else None
        found = measure_latency(
            self.networks, self.candidates, measure, store, self.settings.seed, recorded
        )
        found.save(self.folder)
        self._made["latencies"] = found
        return found.table

    def check_goal(
        self,
        *,
        speedup: float | None = None,
        budget_ms: float | None = None,
        limit_ms: float | None = None,
    ) -> None:
        """Refuses a budget that is far out of reach before anything is scored.

        Args:
            speedup: Latency of the original divided by the budget; by default the settings'.
            budget_ms: Latency that the measured network must meet, in place of a speed-up.
            limit_ms: Latency that it is held to besides, in the end; None for none.

        Raises:
            UsageError: If the budget is none.
            InfeasibleBudgetError: If even the fastest plan is predicted to take twice as long.
        """
        if speedup is not None or budget_ms is not None:
            self.settings = with_goal(self.settings, speedup, budget_ms)
        refuse_hopeless(self.graph, self.candidates, self.latencies, self.settings, limit_ms)

    def score(
        self, train: Images | None = None, *, notes: Mapping[str, Any] | None = None
    ) -> ImportanceTable:
        """Estimates what each candidate that saves latency would cost in quality.

        Args:
            train: Training images, of which 1024 serve by default; labels are not needed unless
                ``importance.method`` is ``finetune``, which takes all.
            notes: What the scores depend on, JSON-ready; entries of other notes are set aside.

        Returns:
            Importance by candidate.

        Raises:
            UsageError: If there are no images.
        """
        images, settings = self._training_images(train), self.settings
        wanted = to_score(self.graph, self.candidates, self.latencies.table, settings)
        path, told = self.folder / "importance.jsonl", dict(notes or self._score_notes())
        amounts = amounts_of(self.macs, len(wanted), settings)
        if amounts.first is not None:  # scores on other numbers of images do not mix
            told["amounts"] = asdict(amounts)
        set_aside(path, told)
        self._fill(images, wanted, amounts, path, told)
        release()  # recorded values are gone; whole networks need the memory next
        return self.importance

    def _fill(
        self,
        images: Images,
        wanted: Sequence[Candidate],
        amounts: Amounts,
        path: Path,
        notes: Mapping[str, Any],
    ) -> None:
        """Scores candidates into the table of a file.

        Args:
            images: Training images.
            wanted: What to score.
            amounts: On how many images, and whether a first look is enough for some.
            path: The table's file.
            notes: What the scores depend on.
        """
        settings = self.settings
        kinds = tuple(self.outputs.values())
        gpus = int(settings.device != "cpu")
        scoring = Scoring(
            lambda: scorer_of(self.model, self.graph, images, settings, kinds, amounts),
            settings.scale,
            gpus,
        )

        def filled(candidates: Sequence[Candidate], label: str, first: bool) -> ImportanceTable:
            self._made["importance"] = fill_table(
                candidates,
                lambda missing: scoring.scores(missing, first),
                path,
                notes,
                on_progress=lambda done, total: self.tell.progress(label, done, total),
                first=first,
            )
            return self.importance

        filled(wanted, "scoring", amounts.first is not None)
        self._score_streams(images, path, notes)
        if amounts.first is not None:
            exactly = partial(filled, label="scoring what may be chosen", first=False)
            refine(self.problem, self.latencies.table, exactly)

    def _score_streams(self, images: Images, path: Path, notes: Mapping[str, Any]) -> None:
        """Scores the narrower streams, where candidates may use them, into the table of a file."""
        offered: dict[str, set[int]] = {}
        for name, width in (pair for c in self.candidates for pair in c.widths):
            offered.setdefault(name, set()).add(width)
        if not offered or self.settings.importance.method != "calibrate":
            return
        widths = {name: sorted(found, reverse=True) for name, found in offered.items()}
        streams = {s.name: s for s in self.graph.streams}
        whole = self.whole_networks(images, None, None, self.folder)
        self._made["importance"] = fill_table(
            [width_alone(self.graph, streams[n], w) for n, found in widths.items() for w in found],
            stream_scores(whole.starts, widths, whole.joint_delta),
            path,
            notes,
            on_progress=lambda done, total: self.tell.progress("scoring streams", done, total),
        )

    def _score_notes(self) -> Json:
        """Returns what tells the scores of this network and these settings from others."""
        weights = b"".join(
            v.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            for v in self.model.state_dict().values()
        )
        return {
            "settings": self.settings.importance.model_dump(mode="json"),
            "seed": self.settings.seed,
            "model": sha256_bytes(weights),
            "graph": sha256_file(self.folder / "graph.json"),
            "method": self.settings.importance.method,
            "task": self.settings.task,
        }

    def search(
        self,
        train: Images | None = None,
        *,
        speedup: float | None = None,
        budget_ms: float | None = None,
        val: Images | None = None,
        metric: Metric | None = None,
        notes: Mapping[str, object] | None = None,
    ) -> MergePlan:
        """Chooses what to replace: the best plan whose built network was measured in the budget.

        Args:
            train: Training images, by which whole networks are repaired and trained a little.
            speedup: Latency of the original divided by the budget; by default the settings'.
            budget_ms: Latency that the measured network must meet, in place of a speed-up.
            val: Images to judge the racing networks by; without labels, their answers are compared
                with the original's.
            metric: How good a network is, in place of accuracy on ``val``; higher is better.
            notes: What else ``plan.json`` tells.

        Returns:
            The plan, with its predicted latency in ms; ``frontier.json`` has all the others.

        Raises:
            UsageError: If there are no training images, or the budget is none.
            InfeasibleBudgetError: If no plan meets the budget; says by how much it is missed.
            DeviceError: If no network could be built and run.
        """
        if speedup is not None or budget_ms is not None:
            self.settings = with_goal(self.settings, speedup, budget_ms)
        if not self.settings.measure.recorded:
            self.latencies.refuse_other(self.meter.device(), self.folder)
        images, judges = self._training_images(train), self._given("val", val)
        effort = affordable(self.macs, self.settings)
        problem = self.problem
        goal = goal_of(self.settings, self.latencies.original_ms, effort.samples)
        networks = self.networks
        kept = KeptMeter(networks.meter, self.folder / "search.part.jsonl")
        if isinstance(networks.meter, BackendMeter):  # an agent keeps its own answers
            networks = replace(networks, meter=kept)
        try:
            with scratch() as racing:
                whole = self.whole_networks(images, judges, metric, racing)
                choice = self._choose(problem, goal, replace(whole, networks=networks))
        except BudgetMissedError as missed:
            kept.forget()
            if not self.keep_frontier:
                save_frontier(self.folder, missed.closed, problem)
            raise
        told = {"seed": self.settings.seed, **(notes or {})}
        self._made["plan"] = save_choice(self.folder, choice, problem, goal, told)
        if not self.stored:  # a run forgets once the stage is noted (``pipeline.folder``)
            kept.forget()
        self._forget("relaxed", "merged", "certificate")
        return self.plan

    def search_each(
        self, speedups: Iterable[float], train: Images | None = None, **options: Any
    ) -> dict[float, MergePlan]:
        """Chooses a plan for each of several speed-ups, from the same tables.

        The session goes on with the last one found; with another after ``use(plan)``.

        Args:
            speedups: Latency of the original divided by each budget, above 1.
            train: Training images.
            **options: The other arguments of ``search``.

        Returns:
            Plans by speed-up; of one that is not reached, a note says by how much.

        Raises:
            InfeasibleBudgetError: If none is reached. What ``search`` raises besides.
        """
        plans: dict[float, MergePlan] = {}
        missed: InfeasibleBudgetError | None = None
        for speedup in dict.fromkeys(speedups):
            try:
                plans[speedup] = self.search(train, speedup=speedup, **options)
            except InfeasibleBudgetError as error:
                self.tell.note(f"{speedup:g}x: {error}")
                missed = error
        if missed is not None and not plans:
            raise missed
        return plans

    def whole_networks(
        self, train: Images, val: Images | None, metric: Metric | None, racing: Path
    ) -> WholeNetworks:
        """Returns what measures, scores and trains the networks of plans, for a search.

        Args:
            train: Training images.
            val: Images to judge racing networks by.
            metric: What judges them instead.
            racing: Folder of their unfinished trainings.
        """
        fit, score = self._calibration(train)
        # The same images, so that a loader's are in memory once.
        starts = replace(self._starts(train), fit=fit)
        effort = affordable(self.macs, self.settings)
        judges = score if val is None else in_memory(val, 1 << 20)
        teaching = self._teaching(train, val, metric, self.settings)
        return WholeNetworks(
            self.networks,
            replace(starts, fit=Part(fit, torch.arange(min(effort.fit, len(fit))))),
            Racers(starts, teaching, judges, racing, self.macs),
            images_of(score, effort.score),
            self.latencies.original_ms,
            BUILDS if self.settings.measure.engines else 1,
            decides_alone(self.importance),
        )

    @property
    def problem(self) -> Problem:
        """What is searched: candidates, their worth, and what the settings maximise."""
        return problem_of(self.graph, self.candidates, self.importance, self.settings)

    def _choose(self, problem: Problem, goal: Goal, whole: WholeNetworks) -> Choice:
        measure = self.settings.measure
        tools = loop_tools(problem, self.latencies, self.settings, whole)
        if not measure.recorded:
            return choose(problem, tools, whole, goal, self.tell)
        recorded = Recorded.of(self.folder, measure)
        imported = imported_of(recorded, problem, self.latencies)
        return choose_imported(problem, tools, whole, goal, imported, self.tell)

    def use(self, plan: MergePlan) -> None:
        """Goes on with a plan of one's own (``MergePlan.of``) in place of a searched one."""
        plan.save(self.folder / "plan.json")
        self._made["plan"] = plan
        self._made.setdefault("importance", ImportanceTable({}, {"method": "none"}))
        self._forget("relaxed", "merged", "certificate")

    def relax(self) -> RelaxedNet:
        """Builds the network of the plan, trainable, its blocks not merged yet.

        Returns:
            A plain ``nn.Module`` in eval mode with the original weights: train it with ``train`` or
            with any loop, then ``merge``.
        """
        self._made["relaxed"] = self._starts().bare(self.plan)
        self._forget("merged", "certificate")
        return self.relaxed

    def repair(self, train: Images | None = None) -> Json | None:
        """Fits the plan's blocks in closed form, in place, as the settings say.

        Args:
            train: Training images.

        Returns:
            What a reconstruction came to, or None without one.
        """
        if "relaxed" not in self._made:
            self.relax()
        return self._starts(self._training_images(train)).prepare(self.relaxed)

    def train(
        self,
        train: Images | None = None,
        *,
        val: Images | None = None,
        metric: Metric | None = None,
        **options: Any,
    ) -> FinetuneResult | None:
        """Trains the relaxed network in place, taught by labels and by the original network.

        Args:
            train: Training images; without labels, the original network alone teaches.
            val: Images to report accuracy on after every epoch.
            metric: What to report in place of accuracy.
            **options: Values that replace those of the preset, such as ``epochs=20``
                (``finetune.recipe.FinetuneRecipe``).

        Returns:
            The history, one row an epoch; None where the settings' preset is ``none``.

        Raises:
            UsageError: If there are no training images, or an option cannot be used.
            DivergedError: If the loss is no longer finite.
            CorruptInputError: If the very first loss is not.
        """
        teaching = self.teaching(train, val, metric, options)
        return None if teaching.recipe is None else self.teach(teaching)

    def teaching(
        self,
        train: Images | None = None,
        val: Images | None = None,
        metric: Metric | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Teaching:
        """Returns what ``train`` trains with.

        Args:
            train: Training images; None for those of an earlier verb.
            val: Images to report accuracy on; None likewise, if there are any.
            metric: What to report in place of accuracy.
            options: Values that replace those of the preset, in these settings only.

        Raises:
            UsageError: If there are no training images.
        """
        images, settings = self._training_images(train), self.settings
        if options:
            section = settings.finetune
            merged = section.model_copy(update={"options": {**section.options, **options}})
            settings = settings.model_copy(update={"finetune": merged})
        judges = self._given("val", val)
        return self._teaching(images, judges, metric, settings)

    def _teaching(
        self, train: Images, val: Images | None, metric: Metric | None, settings: Settings
    ) -> Teaching:
        kinds, judged = tuple(self.outputs.values()), self.judged(train)
        return Teaching(self.model, train, val, metric, settings, self.tell, kinds, judged)

    def judged(self, images: Images) -> bool:
        """Returns whether images have labels, and these tell the classes of an output."""
        labels = first_labels(images)
        return labels is not None and judged_by(labels, self.answers, self.outputs) is not None

    def teach(
        self, teaching: Teaching, *, identity: str = "", group: ProcessGroup | None = None
    ) -> FinetuneResult:
        """Trains the relaxed network in place, alone or with other processes.

        Args:
            teaching: What with; its recipe says how.
            identity: Tells these images and this teacher from others, for resuming.
            group: The processes that train together; None for this one alone.

        Returns:
            The history, one row an epoch.
        """
        assert teaching.recipe is not None
        self._forget("merged", "certificate")
        state = self.folder / STATE
        return teaching(self.relaxed, teaching.recipe, state, identity=identity, group=group)

    def unfilled(self) -> RelaxedNet:
        """Builds the network that is trained, its weights to be filled in by another process."""
        self._made["relaxed"] = self._starts().unfilled(self.plan)
        return self.relaxed

    def save(self, name: str) -> None:
        """Writes the weights of the relaxed network to a file of the folder (safetensors)."""
        save_weights(self.relaxed, self.folder / name)

    def merge(self, images: Any = None) -> nn.Module:
        """Merges the trained network's blocks, and certifies that it computes the same.

        Args:
            images: What both are compared on, a batch ``(N, C, H, W)`` or of several inputs; by
                default training images, and random ones where there are none.

        Returns:
            A plain ``nn.Module`` in eval mode with fewer convolutions.

        Raises:
            UnsupportedModelError: If it does not compute what the trained network does.
        """
        relaxed = self.relaxed.eval()
        merged = collapse(relaxed)
        inputs = self._some_images(CERTIFIED_IMAGES, images)
        certificate = certify(relaxed, merged, parts_of(inputs))
        write_json(self.folder / "certificate.json", "certificate", certificate.to_json())
        if not certificate.ok:
            raise UnsupportedModelError(
                "the merged network does not compute what the relaxed one does: relative error "
                f"{certificate.max_rel_error:.1e}; see certificate.json for the block, and please "
                "report it with the network's name"
            )
        save_weights(merged, self.folder / MERGED)
        self._made |= {"merged": merged, "certificate": certificate}
        return merged

    def _some_images(self, count: int, images: Any = None) -> Any:
        """Returns the images given, some training images, or random ones."""
        if images is not None:
            several = isinstance(self.example, Several)
            return parse(images, self.input_names)[0] if several else images
        train = self._images.get("train")
        if train is not None:
            return images_of(in_memory(train, count), count)
        return random_like(self.example, count, self.settings.seed)

    def export(
        self, path: str | Path | None = None, *, check: Any = None
    ) -> dict[str, ExportReport]:
        """Writes both networks as ONNX, ``original.onnx`` and ``model.onnx``, compared with torch.

        Args:
            path: Where else the merged network's ONNX model goes, or None.
            check: A batch of images ``(N, C, H, W)``, or of several inputs, to compare on; by
                default training images, and none where there are none.

        Returns:
            What was written, by the file's name.

        Raises:
            UnsupportedModelError: If ONNX cannot express it, or computes something else.
        """
        if check is not None or self._images.get("train") is not None:
            check = self._some_images(COMPARED_IMAGES, check)
        if check is None:
            self.tell.note("no images to compare ONNX with torch on: exported unchecked")
        free = self.settings.build.max_batch is not None
        reports = {
            name: export_onnx(
                network,
                self.example,
                self.folder / name,
                input_names=self.input_names,
                output_names=list(self.outputs),
                dynamic_batch=free,
                check=check,
            )
            for name, network in (("original.onnx", self.model), ("model.onnx", self.merged))
        }
        body = {"models": {name: report.to_json() for name, report in reports.items()}}
        write_json(self.folder / "export.json", "export", body)
        if path is not None:
            Path(path).write_bytes((self.folder / "model.onnx").read_bytes())
        return reports

    def quantize(
        self, train: Images | None = None, *, val: Images | None = None
    ) -> tuple[str, ...]:
        """Calibrates both exported networks to int8 with explicit Q/DQ pairs.

        Args:
            train: Images to calibrate on.
            val: Images to judge by; training images that were not calibrated on if None.

        Returns:
            Names of the files that were written to the folder.

        Raises:
            UsageError: If there are no images, or rounding is to be trained without labels.
            AccuracyGateError: If int8 loses more than the preset allows.
        """
        judges = self._given("val", val)
        return quantize_networks(
            self.folder,
            self.model,
            self.merged,
            self.example,
            in_memory(self._training_images(train), 1 << 12),
            None if judges is None else in_memory(judges, 1 << 12),
            self.settings,
            self.tell,
            self.outputs,
        )

    def build(self) -> tuple[str, ...]:
        """Builds engines of both networks at the settings' precisions, each with its sidecar.

        Returns:
            Names of the files that were written to the folder, ``build.json`` first; it tells which
            engines could not be built, and why.

        Raises:
            UsageError: If a network was not exported, or not quantised for an int8 engine.
        """
        about = About(self.preprocess, self.class_names or None, self.recipe_text)
        return build_engines(self.folder, self.settings, about, self.tell)

    def bench(self) -> Json:
        """Times both networks at every precision in one interleaved run.

        Returns:
            Percentiles in ms of both, and the speed-up with its spread: ``bench.json``.

        Raises:
            UsageError: If the networks were not exported, or for another batch.
            DeviceError: If a network cannot be built or run.
            UntrustedInputError: If an engine does not belong to its sidecar.
        """
        self._told_of_engines()
        backend = None if self.elsewhere else self.backend
        return Benching(
            self.folder, self.settings, self.meter, backend, self.trust_engine, self.tell
        ).bench()

    def verify(
        self,
        test: Images | None = None,
        *,
        train: Images | None = None,
        metric: TaskMetric | None = None,
        max_accuracy_drop: float | None = None,
        max_metric_drop: float | None = None,
        min_agreement: float | None = None,
        unseen: Sequence[str] = (),
    ) -> tuple[Json, tuple[str, ...]]:
        """Compares torch, ONNX and engines on images that nothing else has seen.

        Args:
            test: Images with labels; without, agreement alone is told.
            train: Training images, of which some serve without labels where there are no others.
            metric: The task's own figure, in every network beside its accuracy.
            max_accuracy_drop: Largest loss of accuracy, as a fraction; None for no gate.
            max_metric_drop: The same of the metric, in its own units.
            min_agreement: Smallest share of answers that are the original's; None for no gate.
            unseen: Reasons why the images are none that nothing else has seen.

        Returns:
            Differences, agreement and accuracies (``verify.json``), and the files written; a gate
            that failed is told there, not raised.

        Raises:
            UsageError: If there are no images, or a network was not exported.
            CorruptInputError: If a label is beyond the classes.
            UntrustedInputError: If an engine does not belong to its sidecar.
        """
        networks = {
            "original": self.model,
            "repaired": self._repaired(),
            "merged": self.merged,
        }
        self._told_of_engines()
        train = self._given("train", train)
        test = self._given("test", test)
        drawn = random_like(self.example, UNLABELLED_IMAGES, self.settings.seed)
        return verify_networks(
            self.folder,
            networks,
            image_batches(test, train, drawn, self.tell),
            self.settings,
            self.outputs,
            metric=metric,
            max_accuracy_drop=max_accuracy_drop,
            max_metric_drop=max_metric_drop,
            min_agreement=min_agreement,
            shown=Showing(shown_by(test, train), self.preprocess, self.class_names),
            unseen=unseen,
            notes=self.notes,
            trust=self.trust_engine,
        )

    def _told_of_engines(self) -> None:
        """Says that there are no engines where ``build`` was not called."""
        if not (self.folder / "build.json").is_file():
            write_json(self.folder / "build.json", "build", {"engines": []})

    def quality(
        self, network: nn.Module, images: Images | None, metric: Metric | None = None
    ) -> float | None:
        """Returns how good a network is: its metric, or its accuracy on labelled images, or None.

        Args:
            network: One with the outputs of the session's.
            images: Images with labels; None without.
            metric: What tells instead; higher is better.
        """
        if metric is not None:
            return metric(network)
        judged = self._given("judges", images)
        return known_accuracy(network, judged, kinds=tuple(self.outputs.values()))

    def _repaired(self) -> nn.Module:
        """Returns the network as training found it; the merged one where that was not kept."""
        if (self.folder / REPAIRED).is_file():
            return self.filled(REPAIRED)
        return self.merged
