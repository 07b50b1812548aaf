"""``ssh``, ``rsync`` and ``scp`` that reach a folder, not a host; each notes what it is asked.

``FAKE_HOST`` names the folder that stands for the home of the user on the device. A file ``break``
in it, holding a number, breaks so many connections; ``calls.jsonl`` gets every command line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

_COMMON = f"""#!{sys.executable}
import json, os, shutil, subprocess, sys
from pathlib import Path

home = Path(os.environ["FAKE_HOST"])
with (home / "calls.jsonl").open("a") as file:
    file.write(json.dumps([Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
broken = home / "break"
if broken.exists() and int(broken.read_text()) > 0:
    broken.write_text(str(int(broken.read_text()) - 1))
    print("connection closed by remote host", file=sys.stderr)
    sys.exit(255)
words = sys.argv[1:]

def after_options(words, taking):
    while words and words[0].startswith("-"):
        words = words[2 if words[0] in taking else 1:]
    return words

def local(name):
    host, colon, path = name.partition(":")
    return home / path if colon and "/" not in host else Path(name)

def copy(sources, target):
    target = local(target)
    assert target.is_dir(), target
    for source in map(local, sources):
        if source.is_dir():
            shutil.copytree(source, target / source.name, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target / source.name)
"""

_SSH = """
host, *line = after_options(words, ("-o",))
shell = ["sh", "-c", " ".join(line)]
sys.exit(subprocess.run(shell, cwd=home, stdin=subprocess.DEVNULL).returncode)
"""

_COPY = """
*sources, target = after_options(words, ("-o", "-e"))
copy(sources, target)
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *, rsync: bool = True) -> Path:
    """Puts the commands, and nothing else, on the path; returns the home on the device."""
    home, tools = folder / "device home", folder / "tools"
    home.mkdir()
    tools.mkdir()
    programs = {"ssh": _SSH, "scp": _COPY, **({"rsync": _COPY} if rsync else {})}
    for name, body in programs.items():
        (tools / name).write_text(_COMMON + body)
        (tools / name).chmod(0o755)
    (tools / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tools / "python3").chmod(0o755)
    for name in ("sh", "mkdir", "rm"):
        (tools / name).symlink_to(next(Path(d) / name for d in ("/bin", "/usr/bin")))
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("FAKE_HOST", str(home))
    return home


def calls(home: Path) -> list[list[str]]:
    """Returns every command line so far."""
    path = home / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def break_connections(home: Path, count: int) -> None:
    """Breaks the next connections."""
    (home / "break").write_text(str(count))
