"""A recipe: everything that decides the outcome of a run, checked when it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from os.path import normpath
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from trt_layermerge.core.jsonio import Json, read_small, sha256_bytes
from trt_layermerge.core.strict_yaml import load_yaml
from trt_layermerge.data.names import parse_name
from trt_layermerge.errors import CorruptInputError, UsageError, did_you_mean
from trt_layermerge.models import ONNX, PRETRAINED
from trt_layermerge.pipeline.sections import (
    MOST_VALUES,
    DataSection,
    ModelSection,
    PackageSection,
    VerifySection,
)
from trt_layermerge.session.settings import Settings


class Recipe(Settings):
    """One run, from the trained network to the report.

    Attributes:
        model: Which network.
        data: Which images.
        verify: Gates.
        package: What is bundled.
    """

    model: ModelSection
    data: DataSection = DataSection()
    verify: VerifySection = VerifySection()
    package: PackageSection = PackageSection()

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Recipe:
        channels, preprocess = self.model.input[1], self.data.preprocess
        for name in ("mean", "std"):
            count = len(getattr(preprocess, name))
            if name in preprocess.model_fields_set and count != channels:
                raise ValueError(
                    f"data.preprocess.{name} has {count} values, and the input (model.input) has "
                    f"{channels} channels; give one for each"
                )
        return self

    @model_validator(mode="after")
    def _a_batch_fits_memory(self) -> Recipe:
        batch, image = self.measure.batch, prod(self.model.input[1:])
        if batch * image > MOST_VALUES:
            raise ValueError(
                f"a batch of {batch} (measure.batch) inputs of {image:,} values is more than the "
                f"{MOST_VALUES:,} values that can be worked with; type a smaller --batch"
            )
        return self

    @property
    def int8(self) -> bool:
        """Whether anything is measured, built or bundled at int8."""
        asked = (self.measure.precision, self.package.precision, *self.build.precisions)
        return "int8" in asked


def load_recipe(
    path: Path | None, overrides: Mapping[str, Any], *, remembered: bool = False
) -> Recipe:
    """Returns the recipe of a YAML file with values by dotted key replaced.

    Paths in the file are relative to its folder; paths in overrides to the working directory. A key
    that ends in ``+`` adds to a list what is not in it yet, such as ``build.precisions+``.

    Args:
        path: The file; None for overrides alone.
        overrides: Values by dotted key.
        remembered: Whether it is the run's own, which must be as it was written there.

    Raises:
        UsageError: If there is no such file, or a value cannot be used.
        CorruptInputError: If the file is not YAML, or not as it was written.
    """
    body: Json = {} if path is None else _read(path, remembered)
    if path is not None:
        _anchor(body, path.parent.resolve())
    given: Json = {}
    added = {key[:-1]: value for key, value in overrides.items() if key.endswith("+")}
    for key, value in overrides.items():
        if not key.endswith("+"):
            _put(given, key, value)
        if key == "search.speedup" and "search.budget_ms" not in overrides:
            _put(given, "search.budget_ms", None)
        if key == "measure.host" and "measure.recorded" not in overrides:
            _put(given, "measure.recorded", False)
    if {"data.preprocess.mean", "data.preprocess.std"} <= overrides.keys():
        _put(given, "data.preprocess.assumed", False)
    _anchor(given, Path.cwd())
    _merge(body, given)
    odd = next((text for text in _texts([body, added]) if not _writable(text)), None)
    if odd is not None:
        raise UsageError(
            f"{odd!r:.60} is no text: a path or name of a recipe must be UTF-8 and without zero "
            "bytes; rename the file"
        )
    try:
        for key, value in added.items():
            _add(body, key, value)
        return Recipe.model_validate(body)
    except ValidationError as error:
        raise UsageError(_explain(error, path, given)) from error


def dump_recipe(recipe: Recipe) -> str:
    """Returns a recipe as YAML that ``load_recipe`` reads back."""
    body = recipe.model_dump(mode="json")
    first = {name: body.pop(name) for name in ("model", "data")}
    return yaml.safe_dump({**first, **body}, sort_keys=False)


SEAL = "# sha256: "


def remembered(recipe: Recipe) -> str:
    """Returns a recipe as a run keeps it: below a hash, so that no part of it gets lost."""
    text = dump_recipe(recipe)
    return f"{SEAL}{sha256_bytes(text.encode())}\n{text}"


def _read(path: Path, remembered: bool) -> Json:
    try:
        text = read_small(path).decode()
        seal, _, rest = text.partition("\n")
        if (
            remembered
            and seal.startswith(SEAL)
            and sha256_bytes(rest.encode()) != seal[len(SEAL) :]
        ):
            raise CorruptInputError(
                f"{path} is not as the run wrote it: it is damaged, or was changed by hand; give "
                "the recipe again (trt-layermerge run RECIPE.yaml), or, if the change was meant, "
                "delete its first line"
            )
        body = load_yaml(text)
    except FileNotFoundError as error:
        raise UsageError(f"there is no recipe {path}; type the path of a YAML file") from error
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        words = " ".join(str(error).split())
        raise CorruptInputError(f"the recipe {path} is not valid YAML: {words}") from error
    if not isinstance(body, dict):
        raise CorruptInputError(f"the recipe {path} is not a mapping of sections")
    return body


def _texts(value: Any) -> Iterator[str]:
    """Yields every text in a value of plain ones."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for part in value.items() if isinstance(value, dict) else value:
            yield from _texts(part)


def _writable(text: str) -> bool:
    """Whether a text can be written to a file, and name one."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _put(body: Json, dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        body = body.setdefault(section, {})
    body[key] = value


def _add(body: Json, dotted: str, value: Any) -> None:
    """Appends to a list of a recipe, or to its default.

    Raises:
        UsageError: If the recipe has no such list.
        ValidationError: If the recipe is not valid.
    """
    found: Any = Recipe.model_validate(body)
    for name in dotted.split("."):
        found = getattr(found, name, None)
    if not isinstance(found, tuple):
        raise UsageError(f"{dotted} is no list of the recipe that could be added to")
    more = value if isinstance(value, (list, tuple)) else [value]
    _put(body, dotted, [*found, *(item for item in more if item not in found)])


def _merge(body: Json, given: Json) -> None:
    """Writes ``given`` into ``body``, section by section."""
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(body.get(key), dict):
            _merge(body[key], value)
        else:
            body[key] = value


_PATHS = {
    "model": ("name", "weights"),
    "data": ("train", "val", "test", "metric", "classes"),
    "measure": ("store",),
    "calibrate": ("preset",),
}
_FILES = ("weights", "classes", "store", "preset")


def _anchor(body: Json, folder: Path) -> None:
    """Makes the paths of a recipe absolute, so that the run's copy means the same files."""
    for section, keys in _PATHS.items():
        part = body.get(section)
        if not isinstance(part, dict):
            continue
        for key in keys:
            if isinstance(value := part.get(key), str):
                part[key] = _absolute(value, folder, bare=key in _FILES)


def _absolute(value: str, folder: Path, *, bare: bool) -> str:
    """Returns the name of data, of a network or, if ``bare``, of a file with a full path."""
    scheme, colon, rest = value.partition(":")
    if bare or value.endswith(ONNX):
        return value if value == PRETRAINED else normpath(folder / value)
    if scheme in ("npz", "imagefolder", "images", "hf"):
        return str(parse_name(value).below(folder))
    if scheme.endswith(".py") and colon:
        return f"{normpath(folder / scheme)}:{rest}"
    return value


def _explain(error: ValidationError, path: Path | None, given: Json) -> str:
    """Returns what cannot be used, and whether the file says it or what was typed beside it."""
    said: dict[str, list[str]] = {}
    for fault in error.errors(include_url=False):
        names = [str(part) for part in fault["loc"]]
        inside = next((n for n, name in enumerate(names) if "[" in name), None)  # a union's own
        place = ".".join(names[:inside])
        beside = " with the options beside it" if given and not names else ""
        typed = path is None or _holds(given, fault["loc"])
        where = f"the recipe {path}{beside} cannot be used"
        where = "the options cannot be used" if typed else where
        reason = _reason(fault["msg"])
        if fault["type"] == "extra_forbidden":
            reason = f"there is no such key{did_you_mean(place, _alike(place))}"
        said.setdefault(where, []).append(": ".join(part for part in (place, reason) if part))
    return ", and ".join(f"{where}: {'; '.join(faults[:5])}" for where, faults in said.items())


def _holds(given: Any, place: tuple[int | str, ...]) -> bool:
    """Whether a value, or a part of it, is among those that were typed."""
    for part in place:
        if not isinstance(given, dict):
            return True
        if part not in given:
            return False
        given = given[part]
    return bool(place)


def _alike(place: str) -> list[str]:
    """Returns the keys that an unknown one may stand for: those of its name, or all."""
    known = list(_keys(Recipe))
    name = place.rpartition(".")[2]
    return [key for key in known if key.rpartition(".")[2] == name] or known


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yields every key of a section, dotted, and those of the sections within it."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")


def _reason(message: str) -> str:
    """Returns a message of pydantic's without its name for errors of one's own."""
    return (message[:1].lower() + message[1:]).removeprefix("value error, ")
