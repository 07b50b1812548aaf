"""Networks by name, and their weights, read without executing anything from the file."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from trt_layermerge.core.jsonio import Json, sha256_file
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    LayerMergeError,
    MissingDependencyError,
    UnsupportedModelError,
    UntrustedInputError,
    UsageError,
)
from trt_layermerge.pipeline.sections import ONNX, PRETRAINED, ModelSection

FORMS = "timm:NAME, torchvision:NAME, PACKAGE.MODULE:FACTORY, FILE.py:FACTORY or FILE.onnx"


def load_network(section: ModelSection) -> nn.Module:
    """Returns the network that a recipe names, in eval mode, with its weights.

    Without weights they are random, but the same in every process, so that a run can continue.

    Raises:
        UsageError: If the name or the weights file does not exist.
        UnsupportedModelError: If the factory does not return a network, or an ONNX file has
            operators that cannot be read.
        CorruptInputError: If the weights are damaged, not finite, or of another network.
        UntrustedInputError: If reading the weights would execute code.
        MissingDependencyError: If the named library is not installed.
        DeviceError: If pretrained weights cannot be fetched.
    """
    source, _, name = section.name.rpartition(":")
    pretrained = section.weights == PRETRAINED
    if section.name.endswith(ONNX):
        return _onnx(section)
    if source == "timm":
        model = _timm(name, pretrained)
    elif source == "torchvision":
        model = _torchvision(name, pretrained)
    elif source and name and not pretrained:
        model = _call(_factory(source, name), section.name)
    elif pretrained:
        raise UsageError(f"{section.name} has no pretrained weights of its own; give a file")
    else:
        raise UsageError(f"{section.name!r} names no network; type {FORMS}")
    if section.weights and not pretrained:
        fill(model, Path(section.weights))
    return model.eval()


def network_inputs(section: ModelSection) -> Json:
    """Returns what tells this network from another one: its name, and the hashes of its files."""
    weights = section.weights
    return {
        "name": section.name,
        "input": list(section.input),
        "source": _source_hash(section.name),
        "weights": sha256_file(Path(weights)) if weights and weights != PRETRAINED else weights,
    }


def _source_hash(name: str) -> str | dict[str, str] | None:
    """Returns the hash of the file that a network is made from, or of several by name."""
    if name.endswith(ONNX):
        from trt_layermerge.pipeline.onnx_model import onnx_hashes

        return onnx_hashes(Path(name))
    source = name.rpartition(":")[0]
    return sha256_file(Path(source)) if source.endswith(".py") else None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file or of a checkpoint, by name.

    Raises:
        UsageError: If there is no such file.
        CorruptInputError: If it is damaged or holds no tensors.
        UntrustedInputError: If it is a pickle that would execute code.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the weights {path}: {error.strerror or error}") from error
    if path.suffix == ".safetensors":
        try:
            return load_safetensors(data)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CorruptInputError(
                f"the weights {path} are damaged: {error}; make the file again"
            ) from error
    return _read_checkpoint(path)


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UntrustedInputError(
            f"the checkpoint {path} is damaged or holds more than tensors, and reading the rest "
            "could execute code; it was not read. Save its state_dict with safetensors and give "
            "that file"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise CorruptInputError(
            f"the checkpoint {path} is damaged: {error}; make the file again"
        ) from error
    for key in ("state_dict", "model", "model_state"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CorruptInputError(f"the checkpoint {path} is no mapping of names to tensors")
    return {str(k).removeprefix("module."): v for k, v in content.items()}


def fill(model: nn.Module, path: Path) -> None:
    """Loads the weights of a file into a network.

    Raises:
        UsageError: If there is no such file.
        CorruptInputError: If they are damaged, not finite, or of another network.
        UntrustedInputError: If reading them would execute code.
    """
    weights = read_weights(path)
    wanted = model.state_dict()
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    faults = [f"{name} is missing" for name in wanted.keys() - weights.keys() - optional]
    faults += [f"{name} is not in the network" for name in weights.keys() - wanted.keys()]
    faults += [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted.keys() & weights.keys()
        if wanted[name].shape != weights[name].shape
    ]
    faults += [
        f"{name} has values that are not finite"
        for name, value in weights.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if faults:
        raise CorruptInputError(
            f"the weights {path} do not fit the network: {'; '.join(sorted(faults)[:5])}"
            + (f" and {len(faults) - 5} more" if len(faults) > 5 else "")
        )
    model.load_state_dict(weights, strict=False)


def _onnx(section: ModelSection) -> nn.Module:
    from trt_layermerge.pipeline.onnx_model import load_onnx

    if section.weights is not None:
        raise UsageError(
            f"{section.name} brings its own weights, and {section.weights} would be others; leave "
            "model.weights (--weights) out"
        )
    return load_onnx(Path(section.name), section.input)


def _timm(name: str, pretrained: bool) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise MissingDependencyError("timm", f"the network timm:{name}", "zoo") from error
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    return _call(lambda: timm.create_model(name, pretrained=pretrained), f"timm:{name}")


def _torchvision(name: str, pretrained: bool) -> nn.Module:
    try:
        models = importlib.import_module("torchvision.models")
    except ImportError as error:
        raise MissingDependencyError("torchvision", f"torchvision:{name}", "zoo") from error
    if name not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    weights = "DEFAULT" if pretrained else None
    return _call(lambda: models.get_model(name, weights=weights), f"torchvision:{name}")


def _unknown(library: str, name: str, known: list[str]) -> UsageError:
    difflib = importlib.import_module("difflib")
    close = difflib.get_close_matches(name, known, 3, 0.4)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return UsageError(f"{library} has no network {name!r}{hint}")


def _factory(source: str, name: str) -> Callable[[], Any]:
    """Returns a callable of a module, or of a Python file of the user's own."""
    if source.endswith(".py"):
        path = Path(source)
        if not path.is_file():
            raise UsageError(f"there is no file {path}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"{path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # the user's own code may raise anything
            raise UsageError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    else:
        try:
            module = importlib.import_module(source)
        except ImportError as error:
            raise UsageError(f"cannot import {source}: {error}; type {FORMS}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise UsageError(f"{source} has no factory {name!r}")
    return factory  # type: ignore[no-any-return]


def _call(factory: Callable[[], Any], name: str) -> nn.Module:
    try:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model = factory()
    except LayerMergeError:
        raise
    except OSError as error:
        raise DeviceError(f"cannot make {name}: {error}; give a file with --weights") from error
    except Exception as error:  # the factory's own code may raise anything
        raise UsageError(f"cannot make {name}: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"{name} returned a {type(model).__name__}, not a network")
    return model
