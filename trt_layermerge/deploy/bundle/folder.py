"""Bundles on the disk: written whole or not at all, read only if every hash is right."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path, PurePosixPath

from trt_layermerge.core.jsonio import damage, read_json, read_whole, sha256_bytes, write_bytes
from trt_layermerge.core.scratch import running
from trt_layermerge.deploy.bundle import manifest
from trt_layermerge.deploy.bundle.contents import Contents, Files, Target
from trt_layermerge.errors import CorruptInputError, DeviceError, UntrustedInputError, UsageError


def write_bundle(folder: Path, files: Files) -> None:
    """Puts a new folder in the place of an old one, if there is one.

    What others have put into the old bundle stays in the new one, such as models of their own in
    Triton's repository; only files that a damaged manifest cannot tell from ours are lost.
    The new folder is complete before the old one is moved away. What a killed process has left is
    cleared by the next write, and a bundle that it had moved away is put back.

    Raises:
        DeviceError: If the folder cannot be written; the old one stays.
    """
    folder = folder.resolve()  # "." has no name, and a link is not what is replaced
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        new = _beside(folder, "new")
        new.mkdir()
        try:
            for name, data in files.items():
                write_bytes(new / name, data)
            for name in _strangers(folder):
                _copy(folder / name, new / name)
            _swap(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise DeviceError(
            f"cannot write the bundle {folder}: {error.strerror or error}; choose a writable "
            "folder with free space (--runs-dir DIR)"
        ) from error


def _beside(folder: Path, what: str) -> Path:
    """Returns the name that this process gives to what it puts beside a bundle."""
    return folder.with_name(f".{folder.name}.trt-layermerge-{what}-{os.getpid()}")


def _clear(folder: Path) -> None:
    """Removes what processes that are gone have left beside a bundle, and nothing else."""
    name = re.compile(rf"\.{re.escape(folder.name)}\.trt-layermerge-(new|old)-(\d+)")
    for left in sorted(folder.parent.iterdir()):
        found = name.fullmatch(left.name)
        if found is None or left.is_symlink() or running(int(found[2])):
            continue
        if found[1] == "old" and not folder.exists():
            left.rename(folder)
        else:
            shutil.rmtree(left)


def _strangers(folder: Path) -> list[str]:
    """Returns the files of a folder that no manifest names; none where that is damaged."""
    try:
        ours = {manifest.NAME, *read_json(folder / manifest.NAME, manifest.KIND)["files"]}
    except UsageError:  # there is no manifest
        ours = set()
    except (CorruptInputError, KeyError, TypeError):
        return []
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({str(path.relative_to(folder).as_posix()) for path in files} - ours)


def _copy(source: Path, target: Path) -> None:
    """Copies a file, or a link as it is, where there is none."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)


def _swap(new: Path, folder: Path) -> None:
    """Moves ``folder`` into ``new/..`` under another name and ``new`` into its place."""
    if not folder.exists():
        new.rename(folder)
        return
    old = _beside(folder, "old")
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_bundle(folder: Path) -> tuple[Target, Contents]:
    """Returns what a bundle is for and what it holds, if it is as it was written.

    Raises:
        UsageError: If there is no bundle.
        UntrustedInputError: If the engine is another one than in the manifest or its sidecar.
        CorruptInputError: If another file is missing or changed, or the manifest is damaged.
    """
    path = folder / manifest.NAME
    if not path.is_file():
        raise UsageError(
            f"{folder} is no bundle: it has no {manifest.NAME}; name a folder that "
            "trt-layermerge package wrote, such as runs/NAME/deploy/plain"
        )
    body = manifest.read(path)
    with damage(path, manifest.AGAIN):
        engine = body["roles"].get("engine")
        hashes = {str(name): str(digest) for name, digest in body["files"].items()}
    files = {name: _checked(folder, name, digest, engine) for name, digest in hashes.items()}
    target, contents = manifest.contents_of(path, body, files)
    if contents.engine is not None:
        _check_engine(folder, contents)
    return target, contents


def _checked(folder: Path, name: str, digest: str, engine: str | None) -> bytes:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise CorruptInputError(
            f"the manifest of {folder} names {name!r}, which is outside the bundle; take the "
            "bundle again from where it was made"
        )
    try:
        data = read_whole(folder / name)
    except OSError as error:
        raise _changed(folder, name, f"it cannot be read ({error.strerror or error})") from error
    if sha256_bytes(data) == digest:
        return data
    if name == engine:
        raise UntrustedInputError(
            f"the engine {folder / name} is not the one that was packaged, and an engine is code; "
            "take the bundle again from where it was made"
        )
    raise _changed(folder, name, "its hash is another one than in the manifest")


def _changed(folder: Path, name: str, why: str) -> CorruptInputError:
    return CorruptInputError(
        f"{folder / name} is not as it was packaged: {why}; take the bundle again from where it "
        "was made"
    )


def _check_engine(folder: Path, contents: Contents) -> None:
    engine = contents.engine
    if engine is None:
        return
    plan, sidecar = sha256_bytes(engine.plan), engine.sidecar
    found = (sidecar.plan_sha256, sidecar.network, sidecar.precision, sidecar.origin.weights_sha256)
    if found != (plan, "merged", contents.precision, contents.weights_sha256):
        raise UntrustedInputError(
            f"the sidecar of the engine in {folder} describes another engine; take the bundle "
            "again from where it was made"
        )
