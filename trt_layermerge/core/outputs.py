"""What networks put out: nested values as named tensors, and what kind of answer each one is.

By its shape, unless the user says what the network is for (``task``):

=================  ===============================================================================
``classes``        logits of classes that exclude each other: ``(N, C)``, and ``(N, C, H, W)`` of
                   the size of the image, where C is not its number of channels; C is at least 2
``labels``         one logit for each of several labels, or for yes and no: never by shape alone
``probabilities``  what would be labels or values, and comes from a sigmoid
``indices``        whole numbers, such as the places of the largest logits
``values``         all others: numbers, boxes, heat maps, features, images
=================  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from trt_layermerge.errors import UnsupportedModelError, UsageError

Task: TypeAlias = Literal["auto", "classification", "segmentation", "multilabel", "regression"]
"""What an output is for: ``auto`` goes by its shape."""

Tasks: TypeAlias = Task | Mapping[str, Task]
"""One for all outputs, or one for some by their names; the others are ``auto``."""

Kind: TypeAlias = Literal["classes", "labels", "probabilities", "indices", "values"]

Kinds: TypeAlias = Mapping[str, Kind]
"""The kind of every output by its name, in order."""

SINGLE = "logits"
"""Name of the output of a network that returns one tensor."""


def named(output: Any, names: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the tensors or arrays of a nested output by name, in order; the rest is left out.

    A tensor in a dict, or a field of a named tuple, is called by its key; one in a list or tuple by
    its place, such as ``output_0``; one in several of them by all, such as ``features_1``.

    Args:
        output: Dicts, lists and tuples of tensors, or a tensor.
        names: What they are called instead, where there are as many.
    """
    found: dict[str, Any] = {}
    for path, value in _leaves(output, ()):
        numbered = all(isinstance(key, int) for key in path)
        parts = ("output", *path) if numbered and path else path
        wanted = "_".join(map(str, parts)) or SINGLE
        name, count = wanted, 1
        while name in found:
            name, count = f"{wanted}_{count}", count + 1
        found[name] = value
    return dict(zip(names, found.values(), strict=True)) if len(names) == len(found) else found


def kind_of(
    shape: Sequence[int],
    image: Sequence[int] = (),
    task: Task = "auto",
    *,
    floating: bool = True,
) -> Kind:
    """Returns what kind of answer an output is.

    Args:
        shape: Its shape, ``(N, ...)``.
        image: Shape of the network's first input, ``(N, C, H, W)``; class maps are known by it.
        task: What it is for. ``classification`` is about ``(N, C)``, ``segmentation`` about every
            output; of both, one channel alone is yes or no.
        floating: Whether it holds floating numbers.
    """
    if not floating:
        return "indices"
    channels = shape[1] if len(shape) > 1 else 1
    if task in ("regression", "multilabel"):
        return "labels" if task == "multilabel" else "values"
    if task == "segmentation" or (task == "classification" and len(shape) <= 2):
        return "classes" if channels > 1 else "labels"
    if task == "classification" or channels < 2:
        return "values"
    maps = len(shape) == 4 and shape[2:] == image[2:] and channels != image[1]
    return "classes" if len(shape) == 2 or maps else "values"


def kinds_of(
    outputs: Mapping[str, Any],
    image: Sequence[int],
    tasks: Tasks = "auto",
    sigmoids: Collection[str] = (),
) -> Kinds:
    """Returns the kind of every output.

    Args:
        outputs: Tensors or arrays by name (``named``).
        image: Shape of the network's first input, whose first dimension is the batch.
        tasks: What they are for.
        sigmoids: Names of those that come from a sigmoid.

    Raises:
        UsageError: If ``tasks`` names an output that there is not.
        UnsupportedModelError: If there is no output, or one is not made image by image.
    """
    if not outputs:
        raise UnsupportedModelError(
            "the network gives no tensors, so there is nothing that merging could keep; let its "
            "forward return a tensor, or dicts, lists and tuples of tensors"
        )
    if not isinstance(tasks, str) and (unknown := sorted(tasks.keys() - outputs.keys())):
        raise UsageError(
            f"task names {', '.join(unknown)}, and the network's outputs are "
            f"{', '.join(outputs)}; name one of these"
        )
    for name, value in outputs.items():
        if not value.ndim or value.shape[0] != image[0]:
            raise UnsupportedModelError(
                f"the output {name} has the shape {tuple(value.shape)} for {image[0]} images; the "
                "first dimension of every output must be the batch: leave the others out (wrap "
                "the network in a module that returns what depends on the images)"
            )
    kinds: dict[str, Kind] = {}
    for name, value in outputs.items():
        task = tasks if isinstance(tasks, str) else tasks.get(name, "auto")
        floating = "float" in str(value.dtype)
        kinds[name] = kind_of(tuple(value.shape), tuple(image), task, floating=floating)
        if name in sigmoids and task != "regression" and kinds[name] in ("labels", "values"):
            kinds[name] = "probabilities"
    return kinds


def judged_by(labels: Any, outputs: Mapping[str, Any], kinds: Kinds) -> str | None:
    """Returns the first output that labels tell the right classes of, or None.

    Args:
        labels: Classes ``(N,)``, or of every pixel ``(N, H, W)``.
        outputs: Tensors or arrays by name; of as many images, or of others.
        kinds: Their kinds.
    """
    for name, value in outputs.items():
        shape = tuple(value.shape)
        if kinds[name] == "classes" and shape[2:] == tuple(labels.shape[1:]):
            return name
    return None


def described(outputs: Mapping[str, Any], kinds: Kinds) -> str:
    """Returns outputs with their shapes and kinds in words."""
    return ", ".join(
        f"{name} {tuple(value.shape)} as {kinds[name]}" for name, value in outputs.items()
    )


def _leaves(value: Any, path: tuple[int | str, ...]) -> Iterator[tuple[tuple[int | str, ...], Any]]:
    """Yields every tensor with the keys that lead to it."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    elif isinstance(value, tuple | list):
        keys = getattr(value, "_fields", range(len(value)))
        for key, inner in zip(keys, value, strict=True):
            yield from _leaves(inner, (*path, key))
