"""Working through a folder of jobs on another device, with the user's own ``ssh`` and ``rsync``.

Nothing is asked for on the way: keys and names of hosts are those of the user's ssh configuration,
and no password is ever typed into a command. The device needs Python 3.8, numpy and its TensorRT;
the agent is copied there as one file. What the device has finished stays there until it is fetched:
after a broken connection the same command continues.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from trt_layermerge.errors import DeviceError, UsageError, error_of
from trt_layermerge.measure.agent.jobs import MANIFEST, load_manifest
from trt_layermerge.measure.agent.results import RESULTS
from trt_layermerge.measure.command import follow
from trt_layermerge.measure.meter import silent
from trt_layermerge.measure.table import Progress

OPTIONS = ("-o", "BatchMode=yes", "-o", "ServerAliveInterval=15")
REMOTE = "trt-layermerge-jobs"
"""Folder below the home of the user on the device."""

AGENT_FILE = "agent.pyz"
_CONNECTION = 255
_HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_][A-Za-z0-9_.-]*")


def check_host(host: str) -> str:
    """Returns the host if it can be nothing but a host. Raises ``UsageError``."""
    if not _HOST.fullmatch(host):
        raise UsageError(
            f"{host!r} is not a name that ssh can be given safely; type HOST or USER@HOST, and put "
            "ports, addresses with colons and jumps under a name of your own into ~/.ssh/config"
        )
    return host


class SshAgent:
    """Works through folders of jobs on a host: copies, runs, fetches, tidies up.

    Args:
        host: ``HOST`` or ``USER@HOST``, as the user's ssh knows it.
        write_agent: Writes the agent as one file that ``python3`` runs.
        on_note: Called with every command before it runs, as one could type it.

    Raises:
        UsageError: If the host could be taken for an option or for more than a host.
    """

    def __init__(
        self, host: str, write_agent: Callable[[Path], object], on_note: Callable[[str], None]
    ) -> None:
        self.host = check_host(host)
        self.write_agent, self.on_note = write_agent, on_note

    def __call__(self, folder: Path, on_progress: Progress) -> None:
        """Works through a folder of jobs.

        Raises:
            DeviceError: If there is no ssh, or the host cannot be reached.
            LayerMergeError: What the agent ended with there, of the same kind.
        """
        manifest = load_manifest(folder)  # its id is a hash, and no name of another folder
        remote = f"{REMOTE}/{manifest.id}"
        self.write_agent(folder / AGENT_FILE)
        self._shell(f"mkdir -p {remote}")
        names = [AGENT_FILE, MANIFEST, "models"] if manifest.jobs else [AGENT_FILE, MANIFEST]
        self._send([folder / name for name in names], remote)
        self._shell(f"cd {remote} && python3 {AGENT_FILE} .", on_progress)
        self._fetch(remote, folder)
        self._shell(f"rm -r {remote}")

    def _shell(self, line: str, on_progress: Progress = silent) -> None:
        """Runs a line of shell on the host; it holds no text from outside this file."""
        self._run(["ssh", *OPTIONS, self.host, line], on_progress)

    def _send(self, paths: Sequence[Path], remote: str) -> None:
        sources = [str(path.absolute()) for path in paths]
        self._run([*self._copier(), *sources, f"{self.host}:{remote}/"])

    def _fetch(self, remote: str, folder: Path) -> None:
        self._run([*self._copier(), f"{self.host}:{remote}/{RESULTS}", f"{folder.absolute()}/"])

    def _copier(self) -> list[str]:
        """Returns the beginning of a copying command: rsync, or scp where there is none."""
        if shutil.which("rsync"):
            return ["rsync", "-a", "--partial", "-e", shlex.join(["ssh", *OPTIONS])]
        return ["scp", *OPTIONS, "-q", "-r", "-p"]

    def _run(self, command: Sequence[str], on_progress: Progress = silent) -> None:
        self.on_note(shlex.join(command))
        ended = follow(command, on_progress)
        if ended.code == 0:
            return
        if ended.complaint:
            raise error_of(ended.code, f"{self.host} says: {ended.complaint}")
        why = f"{command[0]} ended with code {ended.code} and said: {ended.said}"
        if ended.code == _CONNECTION and command[0] == "ssh":
            raise DeviceError(
                f"the connection to {self.host} failed; {why}. Check that `ssh {self.host} true` "
                "works without a password, then type the same command again: it continues"
            )
        raise DeviceError(f"{why}, on the way to or from {self.host}; type the same command again")
