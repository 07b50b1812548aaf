"""Files that run code where they are believed: each put in the place of every file that is read.

A payload that runs makes a file, the canary. A module ``evilmod`` that does so is importable, and
so is a program ``gs`` found, which Pillow starts for an EPS.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import runpy
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper

from benchmarks.faults.campaign import Damage, Trial, reading, value_of
from benchmarks.faults.doors import Door, doors
from benchmarks.faults.memory import growth_of
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.data import open_data
from trt_layermerge.data.images import Framing

Payload = Callable[[Path, bytes, Random], None]
"""Puts something at a path, given what was there."""


class _Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self.call = function, given

    def __reduce__(self) -> Any:
        return self.call


def payloads(canary: Path) -> dict[str, Payload]:
    """Returns all of them by name."""
    found: dict[str, Payload] = {}
    for name, program in _programs(canary).items():
        for container, pack in CONTAINERS.items():
            found[f"pickle {name}, {container}"] = _content(lambda p=program, k=pack: k(p))
    touch = f"touch {canary}"
    for text in (
        f"!!python/object/apply:os.system ['{touch}']",
        f"!!python/object/new:os.system ['{touch}']",
        f"!!python/object/apply:subprocess.Popen [['touch', '{canary}']]",
        f"!!python/object/apply:builtins.exec [\"open('{canary}', 'w')\"]",
        "!!python/module:evilmod",
        "!!python/name:evilmod.run",
        "!!python/object:evilmod.Run {}",
    ):
        found[f"YAML {text[2:35]}"] = _content(lambda t=text: f"model: {t}\nx: &a [*a]\n".encode())
        found[f"field {text[2:35]}"] = _field(text, plain=True)
    for text in (
        *("evilmod", "evilmod:run", "evilmod.run", "./evilmod.py", "./evilmod.py:run"),
        *(f"$({touch})", f"`{touch}`", f"; {touch}", f"| {touch}", f"x\n{touch}\n", f"-o{canary}"),
        *(f"__import__('os').system('{touch}')", f"{{{{ cycler.__init__('{touch}') }}}}"),
        *(str(canary), f"../../{canary.name}", "/dev/zero", "file:///etc/passwd", "evilmod\0"),
    ):
        found[f"field {text[:24]!r}"] = _field(text)
    for target in (f"../{canary.name}", str(canary), "images/../../" + canary.name):
        found[f"zip with {target[-20:]}"] = _content(lambda t=target: _zip({t: b"x"}))
    found["zip with a link"] = _content(lambda: _zip({"images.npy": b"/etc/passwd"}, link=True))
    for place in (f"../{canary.name}", "/etc/passwd", "/dev/zero", "secret"):
        found[f"ONNX with data at {place}"] = _content(lambda p=place: _external(p))
    found["ONNX with an operator of evilmod"] = _content(lambda: _external("", "evilmod"))
    for name, head in {
        "EPS": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "PS": "%!PS\n",
    }.items():
        found[f"{name} with a pipe"] = _content(
            lambda h=head: f"{h}(%pipe%{touch}) (w) file\n".encode()
        )
    for name, text in {
        "PDF": f"%PDF-1.4\n1 0 obj<</OpenAction<</S/Launch/F(touch {canary})>>>>",
        "SVG": f'<svg xmlns="x"><image href="file://{canary}"/><script>{touch}</script></svg>',
        "a script": f"#!/bin/sh\n{touch}\n",
        "Python": f"open({str(canary)!r}, 'w')\n",
    }.items():
        found[name] = _content(lambda t=text: t.encode())
    return {**found, **FILES}


def _programs(canary: Path) -> dict[str, Any]:
    return {
        "os.system": _Calls(os.system, f"touch {canary}"),
        "exec": _Calls(exec, f"open({str(canary)!r}, 'w')"),
        "open": _Calls(open, str(canary), "w"),
        "Popen": _Calls(subprocess.check_call, ["touch", str(canary)]),
        "import": _Calls(__import__, "evilmod"),
        "run_path": _Calls(runpy.run_path, str(canary.with_name("evilmod.py"))),
    }


def _saved(program: Any, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": program}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _npz(program: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, images=np.array([program], object), labels=np.array([program], object))
    return file.getvalue()


def _npy(program: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([program], object), allow_pickle=True)
    return file.getvalue()


CONTAINERS: dict[str, Callable[[Any], bytes]] = {
    "protocol 0": lambda program: pickle.dumps(program, 0),
    "protocol 4": lambda program: pickle.dumps({"state_dict": program}, 4),
    "torch zip": lambda program: _saved(program, True),
    "torch old": lambda program: _saved(program, False),
    "npz": _npz,
    "npy": _npy,
}


def _content(made: Callable[[], bytes]) -> Payload:
    def put(path: Path, sound: bytes, rng: Random) -> None:
        path.write_bytes(made())

    return put


def _field(text: str, *, plain: bool = False) -> Payload:
    """Puts a text into one of the fields; what has none becomes the text.

    Args:
        text: The text.
        plain: Whether it is written without quotes.
    """

    def put(path: Path, sound: bytes, rng: Random) -> None:
        written = text if plain else json.dumps(text)
        try:
            lines = sound.decode().splitlines()
        except UnicodeDecodeError:
            lines = []
        places = [number for number, line in enumerate(lines) if ": " in line]
        if places:
            number = rng.choice(places)
            head, *rest = lines[number].split(": ")
            cut = rng.randrange(len(rest))
            rest[cut] = written + (rest[cut][rest[cut].find(",") :] if "," in rest[cut] else "")
            lines[number] = ": ".join([head, *rest])
        path.write_text("\n".join(lines or [text]) + "\n")

    return put


def _zip(members: dict[str, bytes], link: bool = False) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16 if link else 0o644 << 16
            archive.writestr(info, data)
    return file.getvalue()


def _external(place: str, domain: str = "") -> bytes:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(4, 3, 3, 3))
    if place:
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=place)
    node = helper.make_node("Conv", ["x", "w"], ["y"], domain=domain)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 3, 16, 16)) for n in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    sets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    data: bytes = helper.make_model(graph, opset_imports=sets).SerializeToString()
    return data


def _link(target: str) -> Payload:
    return lambda path, sound, rng: path.symlink_to(target)


def _sparse(path: Path, sound: bytes, rng: Random) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


FILES: dict[str, Payload] = {
    "link to /dev/zero": _link("/dev/zero"),
    "link to /etc/passwd": _link("/etc/passwd"),
    "link to itself": lambda path, sound, rng: path.symlink_to(path.name),
    "link to nothing": _link("nothing"),
    "link to a folder": _link("/etc"),
    "pipe": lambda path, sound, rng: os.mkfifo(path),
    "device": lambda path, sound, rng: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
    "folder": lambda path, sound, rng: path.mkdir(),
    "4 TiB of nothing": _sparse,
}


def payload_trials(work: Path, each: int) -> Iterator[Trial]:
    """Yields every payload at every door.

    Args:
        work: Folder of the sound files.
        each: Doors that each payload is tried at, drawn at random; all where there are fewer.
    """
    canary = work / "canary"
    _bait(work, canary)
    every = [*doors(work), *_pictures(work)]
    sound = {door.name: (door.path.read_bytes(), value_of(door)) for door in every}
    most = {door.name: growth_of(partial(value_of, door)) for door in every}
    for name, payload in payloads(canary).items():
        chosen = Random(name).sample(every, min(each, len(every)))
        for number, door in enumerate(chosen):
            work_of = reading(door, *sound[door.name], _damage(payload), canary)
            sound_bytes = most[door.name]
            yield Trial(f"{name} as {door.name}", number, work_of, sound_bytes=sound_bytes)


def _damage(payload: Payload) -> Damage:
    def damage(path: Path, data: bytes, rng: Random) -> str:
        path.unlink()
        payload(path, data, rng)
        return "put there"

    return damage


def _bait(work: Path, canary: Path) -> None:
    """Makes module and program, which are found wherever this process looks for some."""
    bait = work / "bait"
    bait.mkdir(parents=True, exist_ok=True)
    code = f"open({str(canary)!r}, 'w')\nRun = run = print\n"
    for folder in (bait, work, work / "made", work / "runs" / "tiny"):
        if folder.is_dir():
            (folder / "evilmod.py").write_text(code)
    (work / "secret").write_bytes(bytes(4 * 27 * 4))
    for program in ("gs", "gswin64c", "epstopdf"):
        (bait / program).write_text(f"#!/bin/sh\ntouch {canary}\n")
        (bait / program).chmod(0o755)
    sys.path.insert(0, str(bait))
    os.environ["PATH"] = f"{bait}:{os.environ['PATH']}"


def _pictures(work: Path) -> list[Door]:
    """Returns folders of images, by class and without, as doors for one of the images."""
    from PIL import Image

    path = work / "pictures" / "cat" / "one.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in ("one.png", "two.png"):
        Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(path.with_name(name))

    def read(kind: str) -> Callable[[Path], Any]:
        def look(path: Path) -> Any:
            source = f"{kind}:{path.parents[1]}"
            data = open_data(source, Preprocess(), framing=Framing((16, 16)))
            return len(data), float(data.batch(torch.arange(len(data)))[0].sum())

        return look

    return [Door(f"picture of {kind}", path, read(kind)) for kind in ("imagefolder", "images")]
