"""Engines, sidecars and bundles that are not what they stand for: every one must be refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.faults.campaign import Trial
from benchmarks.faults.doors import doors
from tests.deploy import bundles
from trt_layermerge.core.jsonio import Json, write_bytes, write_json
from trt_layermerge.deploy.bundle.folder import read_bundle
from trt_layermerge.deploy.bundle.rebuild import rebuild
from trt_layermerge.deploy.sidecar import KIND, check_engine, sidecar_path
from trt_layermerge.errors import LayerMergeError, words_of

Attack = Callable[[Path], None]

OTHERS: dict[str, Any] = {
    "plan_sha256": "0" * 64,
    "network": "original",
    "precision": "fp32",
    "library": "evilmod",
    "origin.onnx_sha256": "0" * 64,
    "origin.weights_sha256": None,
    "plan_bytes": "many",
    "inputs": ["input"],
}
"""What a sidecar says, by field, that is not so."""

HOSTILE: dict[str, Any] = {
    "files": {"../../canary": "0" * 64},
    "files ": {"/etc/passwd": "0" * 64},
    "roles": {"engine": "../model.plan"},
    "precision": "int8",
    "precision ": "fp64",
    "target": "evilmod",
    "tolerance": "1e9",
    "tolerance ": float("nan"),
    "interface": None,
    "interface ": {"outputs": []},
    "labels": 7,
    "build": {"engine": "evilmod"},
    "build ": {"engine": "os", "workspace_bytes": "all"},
    "accuracy": {"original": float("inf")},
    "preprocess": {"scale": "evilmod"},
}
"""What a manifest says, signed anew, by field."""


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _replaced(make: Callable[[Path], None]) -> Attack:
    def attack(path: Path) -> None:
        path.unlink()
        make(path)

    return attack


def _elsewhere(path: Path) -> None:
    other = path.with_name("elsewhere")
    other.write_bytes(b"another")
    path.symlink_to(other)


BYTES: dict[str, Attack] = {
    "one bit": _flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" x"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
    "a folder": _replaced(Path.mkdir),
    "a pipe": _replaced(os.mkfifo),
    "endless": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "a link elsewhere": _replaced(_elsewhere),
}


def _said(path: Path, field: str, value: Any) -> None:
    body = json.loads(path.read_text())
    *inside, last = field.split(".")
    for name in inside:
        body = body[name]
    whole = json.loads(path.read_text()) if inside else body
    (whole[inside[0]] if inside else whole)[last] = value
    path.write_text(json.dumps(whole))


def engine_attacks() -> Iterator[tuple[str, Attack]]:
    """Yields attacks on an engine ``model.plan``, ``other.plan`` beside it."""
    for name, attack in BYTES.items():
        yield f"engine: {name}", lambda f, a=attack: a(f / "model.plan")
        yield f"sidecar: {name}", lambda f, a=attack: a(f / "model.json")
    for field, value in OTHERS.items():
        yield (
            f"sidecar: another {field}",
            lambda f, k=field, v=value: _said(f / "model.json", k, v),
        )
    for kinds in (("plan",), ("json",), ("plan", "json")):
        yield (
            f"the other's {' and '.join(kinds)}",
            lambda f, k=kinds: [shutil.copy(f / f"other.{x}", f / f"model.{x}") for x in k],
        )


def bundle_attacks(bundle: Path) -> Iterator[tuple[str, Attack]]:
    """Yields attacks on a bundle: on every file of it, on its manifest, and signed ones."""
    for file in sorted(p.relative_to(bundle) for p in bundle.rglob("*") if p.is_file()):
        for name, attack in BYTES.items():
            yield f"{file}: {name}", lambda f, p=file, a=attack: a(f / "bundle" / p)
    for field in json.loads((bundle / "manifest.json").read_text()):
        yield (
            f"manifest without {field}",
            lambda f, k=field: (
                bundles.change_manifest(f / "bundle", lambda b: b.pop(k, 0))
                if k != "sha256"
                else _unsigned(f / "bundle" / "manifest.json")
            ),
        )
    for field, value in HOSTILE.items():

        def change(body: Json, k: str = field.strip(), v: Any = value) -> None:
            body[k] = {**body[k], **v} if isinstance(v, dict) else v

        yield (
            f"manifest, signed, {field.strip()}: {str(value)[:30]}",
            lambda f, c=change: bundles.change_manifest(f / "bundle", c),
        )


def _unsigned(path: Path) -> None:
    body = json.loads(path.read_text())
    del body["sha256"]
    path.write_text(json.dumps(body))


def attack_trials(work: Path, count: int) -> Iterator[Trial]:
    """Yields the attacks, each once.

    Args:
        work: Folder of the sound files.
        count: How many at most.
    """
    doors(work)
    made, folder = work / "made", work / "attacked"
    sound = check_engine(made / "model.plan")
    assert sound is not None
    wanted = sound.identity
    given = bundles.with_plan(
        bundles.contents(weights_sha256="c" * 64), plan=b"another engine"
    ).engine
    assert given is not None

    def copied() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
        write_bytes(folder / "other.plan", given.plan)
        write_json(sidecar_path(folder / "other.plan"), KIND, given.sidecar.to_json())
        return folder

    def read_the_bundle(at: Path) -> object:
        found = read_bundle(at / "bundle")
        if found[1].build.get("engine") in ("evilmod", "os"):
            rebuild(at / "bundle")
        return found

    readers: list[tuple[str, Attack, Callable[[Path], object]]] = [
        (n, a, lambda at: check_engine(at / "model.plan", wanted=wanted))
        for n, a in engine_attacks()
    ]
    readers += [(n, a, read_the_bundle) for n, a in bundle_attacks(made / "bundle")]
    for number, (name, attack, read) in enumerate(readers[:: max(1, len(readers) // count)]):
        yield Trial(name, number, _attacking(copied, attack, read))


def _attacking(
    copied: Callable[[], Path], attack: Attack, read: Callable[[Path], object]
) -> Callable[[Random], tuple[str, str]]:
    def work(rng: Random) -> tuple[str, str]:
        folder = copied()
        attack(folder)
        try:
            read(folder)
        except LayerMergeError as error:
            return "refused", str(error)
        except Exception as error:
            return "raw", words_of(error)
        return "other", "it was accepted"

    return work
