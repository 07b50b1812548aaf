"""Measuring over ssh, with ``ssh``, ``rsync`` and ``scp`` that reach a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.measure import fake_ssh
from trt_layermerge.errors import CorruptInputError, DeviceError, UsageError
from trt_layermerge.measure.agent.zipapp import write_zipapp
from trt_layermerge.measure.isolated import AgentMeter
from trt_layermerge.measure.meter import Beside
from trt_layermerge.measure.ssh import SshAgent, check_host


def meter(folder: Path, notes: list[str], host: str = "me@jetson") -> AgentMeter:
    return AgentMeter("fake", folder / "jobs", SshAgent(host, write_zipapp, notes.append))


@pytest.mark.parametrize("copier", ["rsync", "scp"])
def test_the_commands_are_told_before_they_run_and_nothing_else_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copier: str
) -> None:
    home = fake_ssh.install(tmp_path, monkeypatch, rsync=copier == "rsync")
    notes: list[str] = []
    (outcome,) = meter(tmp_path, notes).networks(b"original", [b"plan"], 3)
    assert isinstance(outcome, Beside)
    run = fake_ssh.calls(home)
    assert [call[0] for call in run] == ["ssh", copier, "ssh", copier, "ssh"]
    assert len(notes) == len(run)
    for call, note in zip(run, notes, strict=True):
        assert note.startswith(f"{call[0]} ") and "BatchMode=yes" in note
        assert all(word in note for word in call if " " not in word)
        assert any("BatchMode=yes" in word for word in call)
        assert not any("password" in word.lower() for word in call)
    identity = run[0][-1].rpartition("/")[2]
    remote = f"trt-layermerge-jobs/{identity}"
    assert len(identity) == 64 and set(identity) <= set("0123456789abcdef")
    assert [call[-1] for call in run if call[0] == "ssh"] == [
        f"mkdir -p {remote}",
        f"cd {remote} && python3 agent.pyz .",
        f"rm -r {remote}",
    ]
    assert run[1][-1] == f"me@jetson:{remote}/"
    assert run[3][-2] == f"me@jetson:{remote}/results.jsonl"
    assert not list((home / "trt-layermerge-jobs").iterdir())


def test_progress_on_the_device_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ssh.install(tmp_path, monkeypatch)
    steps: list[tuple[int, int]] = []
    others = [b"one", b"two", b"three"]
    meter(tmp_path, []).networks(
        b"original", others, 3, on_progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("before", range(5))
def test_a_broken_connection_continues_with_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    home = fake_ssh.install(tmp_path, monkeypatch)
    notes: list[str] = []

    def breaking(note: str) -> None:
        if len(notes) == before:
            fake_ssh.break_connections(home, 1)
        notes.append(note)

    agent = AgentMeter("fake", tmp_path / "jobs", SshAgent("jetson", write_zipapp, breaking))
    with pytest.raises(DeviceError, match=r"jetson.* type the same command again"):
        agent.networks(b"original", [b"one", b"two"], 3)
    after = len(fake_ssh.calls(home))
    assert after == before + 1
    found = agent.networks(b"original", [b"one", b"two"], 3)
    assert all(isinstance(outcome, Beside) for outcome in found)


def test_what_the_device_has_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = fake_ssh.install(tmp_path, monkeypatch)
    notes: list[str] = []

    def breaking(note: str) -> None:
        if len(notes) == 3:  # before the answers are fetched
            fake_ssh.break_connections(home, 1)
        notes.append(note)

    agent = AgentMeter("fake", tmp_path / "jobs", SshAgent("jetson", write_zipapp, breaking))
    with pytest.raises(DeviceError):
        agent.networks(b"original", [b"one"], 3)
    (results,) = home.glob("trt-layermerge-jobs/*/results.jsonl")
    row = results.read_text().splitlines()[1]
    agent.networks(b"original", [b"one"], 3)
    assert (tmp_path / "jobs/networks/results.jsonl").read_text().splitlines()[1:] == [row]


def test_an_agent_that_fails_there_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ssh.install(tmp_path, monkeypatch)
    agent = AgentMeter("nothing", tmp_path / "jobs", SshAgent("jetson", write_zipapp, print))
    with pytest.raises(UsageError, match=r"^jetson says: there is no backend 'nothing'"):
        agent.device()


def test_without_ssh_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="cannot start ssh"):
        meter(tmp_path, []).device()


@pytest.mark.parametrize("host", ["jetson", "jetson-2.local", "nvidia@10.0.0.7", "a_b@c_d"])
def test_hosts_that_are_hosts(host: str) -> None:
    assert check_host(host) == host


@pytest.mark.parametrize(
    "host",
    [
        "",
        "-oProxyCommand=touch x",
        "-l",
        "a@-oProxyCommand=x",
        "@host",
        "a b",
        "host;reboot",
        "$(reboot)",
        "host:/etc",
        "host/x",
        "a@b@c",
        "host\n",
        "`id`",
        "h*st",
        "..",
        ".hidden",
    ],
)
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(UsageError, match=r"~/\.ssh/config"):
        meter(tmp_path, [], host)


def test_a_manifest_with_a_name_that_is_no_hash_goes_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = fake_ssh.install(tmp_path, monkeypatch)
    (tmp_path / "manifest.json").write_text(
        '{"schema": "trt-layermerge/jobs@1", "id": "x; reboot", "jobs": []}'
    )
    with pytest.raises(CorruptInputError, match="not have the hash that it names"):
        SshAgent("jetson", write_zipapp, print)(tmp_path, lambda done, total: None)
    assert fake_ssh.calls(home) == []
