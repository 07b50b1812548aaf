"""Weights of files, read without executing anything from them, and filled into networks."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PosixPath
from typing import Any, BinaryIO, TypeAlias, TypeVar

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from trt_layermerge.core.jsonio import read_whole
from trt_layermerge.errors import CorruptInputError, UntrustedInputError, UsageError, foreign
from trt_layermerge.models.mismatch import guess, sides

T = TypeVar("T")

HARMLESS = (Namespace, (PosixPath, "pathlib.PosixPath"), (PosixPath, "pathlib._local.PosixPath"))
"""What training scripts keep beside the weights (their arguments), and runs nothing when read."""

PLACES = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "weights")
"""Keys under which training scripts keep a network's tensors; the first mapping counts."""

SMALL_BYTES = 64 * 2**20
"""What a checkpoint may hold beyond twice its size, such as tensors that share their values."""

DEPTH = 4
"""How many mappings may lie in each other."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that a network's floats may have in a file."""


Tell: TypeAlias = Callable[[str], object]
"""Hears what a user must know of weights that can be used."""


def read_weights(path: Path, tell: Tell = warnings.warn) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file or of a checkpoint, by name.

    What DataParallel (``module.``) and ``torch.compile`` (``_orig_mod.``) add to the names is taken
    off.

    Args:
        path: A ``.safetensors`` file, or anything that ``torch.load(weights_only=True)`` reads: a
            mapping of names to tensors, or one that holds it under a usual key (``PLACES``).
        tell: Told where it holds several networks, such as an average of the weights.

    Raises:
        UsageError: If there is no such file.
        CorruptInputError: If it is damaged or holds no tensors.
        UntrustedInputError: If it is a pickle that would execute code.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"the weights {path} are no file; name one, not a folder or a device")
    try:
        if path.suffix == ".safetensors":
            data = read_whole(path)
        else:
            with path.open("rb") as file:
                _refuse_unpacking(path, file)
    except OSError as error:
        raise UsageError(f"cannot read the weights {path}: {error.strerror or error}") from error
    if path.suffix != ".safetensors":
        return _unwrapped(_read_checkpoint(path, tell))
    with _damage(f"the weights {path} are"):
        return _unwrapped(load_safetensors(data))


def _damage(what: str) -> AbstractContextManager[None]:
    """Returns what turns anything raised over a file into the word that it is damaged."""
    return foreign(lambda why: CorruptInputError(f"{what} damaged: {why}; make the file again"))


def untrained_note(model: nn.Module) -> str | None:
    """Returns what a user must hear of a network that was never trained, or None.

    It is known of one with batch normalisations: any training moves their mean and variance.
    """
    kept = [
        (module.running_mean, module.running_var)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    norms = [(m, v) for m, v in kept if m is not None and v is not None]
    if not norms or any(m.any() or not v.eq(1).all() for m, v in norms):
        return None
    return (
        f"the network has random weights: its {len(norms)} batch normalisations have mean 0 and "
        "variance 1, as before any training; give it trained weights (--weights FILE)"
    )


def _refuse_unpacking(path: Path, file: BinaryIO) -> None:
    """Refuses an archive that unpacks to more than it holds: torch does not compress."""
    held = os.fstat(file.fileno()).st_size
    try:
        with zipfile.ZipFile(file) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error):
        return  # of the older form, or damaged; torch says so
    _refuse_claim(path, claimed, held)


def _refuse_claim(path: Path, claimed: int, held: int) -> None:
    if claimed > (limit := 2 * held + SMALL_BYTES):
        raise CorruptInputError(
            f"the checkpoint {path} has {held:,} bytes and says that it holds {claimed:,}, of "
            f"which up to {limit:,} are read; save the state_dict again"
        )


def _read_checkpoint(path: Path, tell: Tell) -> Mapping[str, Tensor]:
    with _damage(f"the checkpoint {path} is"):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
                warnings.filterwarnings("ignore", "Validating sparse tensor", UserWarning)
                warnings.filterwarnings("ignore", ".*TorchScript archive", UserWarning)
                with torch.serialization.safe_globals([*HARMLESS]):
                    content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "TorchScript" not in str(error):
                raise
            raise UntrustedInputError(_beyond_tensors(path)) from error
    found = content
    for _ in range(DEPTH):
        if not isinstance(found, dict) or _is_state(found):
            break
        found = next((found[key] for key in PLACES if isinstance(found.get(key), dict)), None)
    if not _is_state(found):
        held = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CorruptInputError(
            f"the checkpoint {path} is no mapping of names to tensors, and has none under "
            f"{', '.join(PLACES)}; it holds {held[:200] or 'nothing'}; save the state_dict alone"
        )
    claimed = sum(v.numel() * v.element_size() for v in found.values() if _plainly_stored(v))
    _refuse_claim(path, claimed, path.stat().st_size)
    _tell_others(path, content, found, tell)
    return {str(k): v for k, v in found.items()}


WHOLE = """\
the checkpoint {path} is a whole network ({kind}), not its weights alone, and reading it could \
execute code; it was not read. If you trust it, type where its code can be imported, then give \
weights.pt:
  import torch
  model = torch{load}
  torch.save(model.state_dict(), "weights.pt")"""


def _beyond_tensors(path: Path) -> str:
    """Returns what a checkpoint holds that is not read, and how its weights can be had anyway."""
    try:
        with torch.serialization.safe_globals([*HARMLESS]):
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:  # of the older form, damaged, or a script
        if "torchscript" in str(error):
            load = f".jit.load({str(path)!r})"
            return WHOLE.format(path=path, kind="TorchScript", load=load)
        names = []
    if any(name.startswith("torch.nn.modules.") for name in names):
        own = next((n for n in names if not n.startswith("torch.")), names[0])
        load = f".load({str(path)!r}, weights_only=False)"
        return WHOLE.format(path=path, kind=own, load=load)
    what = (
        f"holds more than tensors ({', '.join(names[:3])})"
        if names
        else ("is damaged or holds more than tensors")
    )
    return (
        f"the checkpoint {path} {what}, and reading the rest could execute code; it was not read. "
        "Save its state_dict with safetensors and give that file"
    )


def _plainly_stored(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_nested


def _tell_others(path: Path, content: Any, taken: Any, tell: Tell) -> None:
    if not isinstance(content, dict) or content is taken:
        return
    states = {key: value for key, value in content.items() if _is_state(value)}
    names = _unwrapped(taken).keys()
    others = [k for k, v in states.items() if v is not taken and _unwrapped(v).keys() == names]
    if others:
        own = next((str(key) for key, value in states.items() if value is taken), "the first")
        tell(
            f"the checkpoint {path} holds several networks: {own} was taken, not "
            f"{', '.join(map(str, others))}; to take another, save it alone: "
            f"torch.save(torch.load(FILE)[{others[0]!r}], OTHER)"
        )


def _is_state(content: Any) -> bool:
    """Whether something maps names to tensors; an empty mapping does not."""
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _unwrapped(state: Mapping[str, T]) -> dict[str, T]:
    """Returns values by their names without what wrappers add, unless two would share one."""
    plain = {_plain(name): value for name, value in state.items()}
    return plain if len(plain) == len(state) else dict(state)


def _plain(name: str) -> str:
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def fill(model: nn.Module, path: Path, tell: Tell = warnings.warn) -> None:
    """Loads the weights of a file into a network.

    Floats of any width are taken as those of the network, and ``num_batches_tracked`` may lack.

    Args:
        model: The network; it is changed in place, or left as it was if the weights do not fit.
        path: As ``read_weights`` takes it.
        tell: As ``read_weights`` takes it.

    Raises:
        UsageError: If there is no such file.
        CorruptInputError: If they are damaged, not finite, quantised, or of another network.
        UntrustedInputError: If reading them would execute code.
    """
    weights = read_weights(path, tell)
    names = _unwrapped({name: name for name in model.state_dict()})
    wanted = {plain: model.state_dict()[name] for plain, name in names.items()}
    optional = {k for k in wanted.keys() - weights.keys() if k.endswith("num_batches_tracked")}
    needed = {name: value for name, value in wanted.items() if name not in optional}
    faults = [
        fault
        for name in wanted.keys() & weights.keys()
        if (fault := _fault(name, weights[name], wanted[name])) is not None
    ]
    if faults or needed.keys() != weights.keys():
        shown = [*sorted(faults)[:3], *([f"and {len(faults) - 3} more"] if len(faults) > 3 else [])]
        why = ""
        if all(map(_plainly_stored, weights.values())):  # others have no shape to compare
            shown += filter(None, [sides(weights, needed)])
            why = guess(weights, needed)
        raise CorruptInputError(
            f"the weights {path} do not fit the network: {'; '.join(shown)}{why}"
        )
    model.load_state_dict({names[k]: v for k, v in weights.items()}, strict=False)


def _fault(name: str, value: Tensor, wanted: Tensor) -> str | None:
    """Returns why a tensor cannot stand for that of the network, or None."""
    if value.is_meta or not _plainly_stored(value):
        layout = "nested" if value.is_nested else str(value.layout)
        kind = "on the meta device" if value.is_meta else layout
        return f"{name} has no plain values ({kind}); give dense weights"
    if value.shape != wanted.shape:
        return f"{name} is {tuple(value.shape)}, not {tuple(wanted.shape)}"
    if not _converts(value.dtype, wanted.dtype):
        kind, own = (str(t.dtype).removeprefix("torch.") for t in (value, wanted))
        return f"{name} is {kind} and cannot become {own}; give weights that are not quantised"
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        return f"{name} has values that are not finite"
    return None


def _converts(kind: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether values of one type say what those of another would: floats, or whole numbers."""
    if wanted in FLOATS:
        return kind in FLOATS
    whole = not kind.is_floating_point and not kind.is_complex
    return kind == wanted or (whole and torch.can_cast(kind, wanted))
