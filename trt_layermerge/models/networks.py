"""Networks by name: what makes them, and what tells one from another."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from trt_layermerge.core.jsonio import Json, sha256_file
from trt_layermerge.core.pyfile import function_of
from trt_layermerge.errors import (
    DeviceError,
    MissingDependencyError,
    UnsupportedModelError,
    UsageError,
    did_you_mean,
    foreign,
)
from trt_layermerge.models import ONNX, PRETRAINED
from trt_layermerge.models.weights import Tell, fill
from trt_layermerge.onnx_reader import load_onnx, onnx_hashes

Shape: TypeAlias = tuple[int, int, int, int]

FORMS = "timm:NAME, torchvision:NAME, PACKAGE.MODULE:FACTORY, FILE.py:FACTORY or FILE.onnx"


def load_network(
    name: str,
    weights: str | None = None,
    shape: Shape = (1, 3, 224, 224),
    outputs: Sequence[str] = (),
    tell: Tell = warnings.warn,
) -> nn.Module:
    """Returns a network by name, in eval mode, with its weights.

    Without weights they are random, but the same in every process, so that a run can continue; see
    ``weight_note``.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, ``PACKAGE.MODULE:FACTORY``, ``FILE.py:FACTORY``
            or ``FILE.onnx``, which brings its weights.
        weights: A file that ``read_weights`` reads, ``pretrained`` for those of the library, or
            None.
        shape: Shape of the input, ``(N, C, H, W)``, at which an ONNX file is read; a network of
            timm gets a first convolution for its C channels.
        outputs: Names of tensors that an ONNX file is cut at; none for its own outputs.
        tell: Told what a user must know of the weights.

    Raises:
        UsageError: If the name or the weights file does not exist, or outputs are named of what is
            no ONNX file.
        UnsupportedModelError: If the factory does not return a network, or an ONNX file has
            operators that cannot be read.
        CorruptInputError: If the weights are damaged, not finite, or of another network.
        UntrustedInputError: If reading the weights would execute code.
        MissingDependencyError: If the named library is not installed.
        DeviceError: If pretrained weights cannot be fetched.
    """
    source, _, factory = name.rpartition(":")
    pretrained = weights == PRETRAINED
    if name.endswith(ONNX):
        return _onnx(name, weights, shape, outputs)
    if outputs:
        raise UsageError(
            f"{name} cannot be cut at {', '.join(outputs)}: only ONNX files have tensors with "
            "names; leave model.outputs (--outputs) out"
        )
    if source == "timm":
        model = _timm(factory, pretrained, shape[1])
    elif source == "torchvision":
        model = _torchvision(factory, pretrained)
    elif source and factory and not pretrained:
        model = _call(_factory(source, factory), name)
    elif pretrained:
        raise UsageError(f"{name} has no pretrained weights of its own; give a file")
    else:
        raise UsageError(f"{name!r} names no network; type {FORMS}")
    if weights and not pretrained:
        fill(model, Path(weights), tell)
    return model


def weight_note(name: str, weights: str | None) -> str | None:
    """Returns what a user must hear of the weights that ``load_network`` takes, or None.

    Args:
        name: As ``load_network`` takes it.
        weights: As ``load_network`` takes it.
    """
    if weights or not name.startswith(("timm:", "torchvision:")):
        return None  # a factory of the user's own may well load weights itself
    return (
        f"{name} has random weights: no others were given; type --weights FILE, or --weights "
        f"{PRETRAINED} for the library's own"
    )


def network_inputs(
    name: str, weights: str | None, shape: Shape, outputs: Sequence[str] = ()
) -> Json:
    """Returns what tells one network from another: its name, and the hashes of its files.

    Args:
        name: As ``load_network`` takes it.
        weights: As ``load_network`` takes it.
        shape: As ``load_network`` takes it.
        outputs: As ``load_network`` takes them.

    Raises:
        UsageError: If a file is not there.
        CorruptInputError: If an ONNX file is damaged.
    """
    return {
        "name": name,
        "input": list(shape),
        "source": _source_hash(name),
        "weights": sha256_file(Path(weights)) if weights and weights != PRETRAINED else weights,
        **({"outputs": list(outputs)} if outputs else {}),
    }


def _source_hash(name: str) -> str | dict[str, str] | None:
    """Returns the hash of the file that a network is made from, or of several by name."""
    if name.endswith(ONNX):
        return onnx_hashes(Path(name))
    source = name.rpartition(":")[0]
    return sha256_file(Path(source)) if source.endswith(".py") else None


def _onnx(name: str, weights: str | None, shape: Shape, outputs: Sequence[str]) -> nn.Module:
    if weights is not None:
        raise UsageError(
            f"{name} brings its own weights, and {weights} would be others; leave model.weights "
            "(--weights) out"
        )
    return load_onnx(Path(name), shape, outputs)


def _timm(name: str, pretrained: bool, channels: int) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise MissingDependencyError("timm", f"the network timm:{name}", "zoo") from error
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    # Some builders know no such argument, and three is what they make anyway.
    given = {} if channels == 3 else {"in_chans": channels}
    return _call(lambda: timm.create_model(name, pretrained=pretrained, **given), f"timm:{name}")


def _torchvision(name: str, pretrained: bool) -> nn.Module:
    try:
        models = importlib.import_module("torchvision.models")
    except ImportError as error:
        raise MissingDependencyError("torchvision", f"torchvision:{name}", "zoo") from error
    if name not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    given = {"weights": "DEFAULT" if pretrained else None}
    if "weights_backbone" in signature(models.get_model_builder(name)).parameters:
        given["weights_backbone"] = None  # else it is fetched even for random weights
    return _call(lambda: models.get_model(name, **given), f"torchvision:{name}")


def _unknown(library: str, name: str, known: list[str]) -> UsageError:
    return UsageError(f"{library} has no network {name!r}{did_you_mean(name, known, 0.4)}")


def _factory(source: str, name: str) -> Callable[[], Any]:
    """Returns a callable of a module, or of a Python file of the user's own."""
    if source.endswith(".py"):
        return function_of(Path(source), name)
    with foreign(lambda why: UsageError(f"cannot import {source}: {why}; type {FORMS}")):
        module = importlib.import_module(source)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise UsageError(f"{source} has no factory {name!r}")
    return factory  # type: ignore[no-any-return]


def _call(factory: Callable[[], Any], name: str) -> nn.Module:
    with foreign(lambda why: UsageError(f"cannot make {name}: {why}")):
        try:
            with torch.random.fork_rng([]):
                torch.manual_seed(0)
                model = factory()
        except OSError as error:
            raise DeviceError(f"cannot make {name}: {error}; give a file with --weights") from error
        if not isinstance(model, nn.Module):
            raise UnsupportedModelError(f"{name} returned a {type(model).__name__}, not a network")
        return model.eval()
