"""The agent as a process: what it says, what it refuses, and who may end it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from tests.agent import folders
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import DeviceError, UsageError
from trt_layermerge.measure.agent import run as agent_run
from trt_layermerge.measure.agent.client import WorkerLost
from trt_layermerge.measure.agent.run import Progress, only_agent, run_jobs
from trt_layermerge.measure.jobs import read_measurements


def test_a_folder_is_measured_and_its_results_are_taken_by_the_host(tmp_path: Path) -> None:
    folders.write(tmp_path, folders.body(tmp_path, {"a": ["x"], "b": ["x", "y"]}, sentinel="a"))
    done = folders.agent(tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.partition(",")[0] for line in done.stderr.splitlines()] == [
        "1/2 label of a",
        "2/2 label of b",
        "2/2 label of a",
    ]
    assert "trt-layermerge latency --run NAME --import" in done.stdout
    found = read_measurements(tmp_path / "results.jsonl")
    assert found.device.name == "fake device"
    assert set(found.answers) == {"a", "b"}
    assert found.drift == 0
    assert found.facts["missing"]["tensorrt"] == "the backend is fake"

    again = folders.agent(tmp_path, "--json")
    assert (again.returncode, again.stderr) == (0, "")
    assert json.loads(again.stdout)["total"] == 2
    assert len(folders.rows(tmp_path)) == 3


def test_no_jobs_still_tell_the_device(tmp_path: Path) -> None:
    folders.write(tmp_path, folders.body(tmp_path, {}))
    run_jobs(tmp_path)
    assert read_measurements(tmp_path / "results.jsonl").device.name == "fake device"


def test_jobs_are_listed(tmp_path: Path) -> None:
    folders.singles(tmp_path, 2)
    done = folders.agent(tmp_path, "--list")
    assert done.stdout.split("\n")[0].split() == ["waiting", "label", "of", "k0"]
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("trouble", "said", "attempts"),
    [
        (["kill"], None, 2),
        (["sticky"], None, 2),
        (["kill", "exit"], "ended with code 3", 2),
        (["exit", "kill"], "was ended by SIGKILL (often the system, for lack of memory)", 2),
        (["sticky", "sticky"], "an illegal memory access was scripted", 2),
        (["error"], "the scripted build failed", 1),
        (["memory"], "out of memory", 1),
    ],
)
def test_trouble_costs_one_job_and_the_others_go_on(
    tmp_path: Path, trouble: list[str], said: str | None, attempts: int
) -> None:
    folder = folders.singles(tmp_path / "jobs", 3)
    env = folders.script(tmp_path / "script" / "s.json", models={"m1": trouble})
    done = folders.agent(folder, env=env)
    assert done.returncode == 0, done.stderr
    first, second, third = folders.rows(folder)
    assert [row["key"] for row in (first, second, third)] == ["k0", "k1", "k2"]
    assert (first["error"], third["error"]) == (None, None)
    assert second["attempts"] == attempts
    if said is None:
        assert second["error"] is None
    else:
        assert said in second["error"]
        assert "failed: label of k1" in done.stdout


def test_a_job_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    body = folders.body(folder, {"k0": ["m0"], "k1": ["m1"]}, timeout_s=0.4)
    folders.write(folder, body)
    env = folders.script(tmp_path / "script" / "s.json", models={"m0": ["hang", "hang"]})
    folders.agent(folder, env=env)
    first, second = folders.rows(folder)
    assert first["error"] == "it took longer than 0.4 s and was ended"
    assert 0.8 <= first["seconds"] < 20
    assert second["error"] is None


def test_what_libraries_print_does_not_disturb(tmp_path: Path) -> None:
    """A fake ``nvidia-smi`` that shouts stands for it: the worker's own output is elsewhere."""
    folder = folders.singles(tmp_path / "jobs", 1)
    code = "import os; os.write(1, b'{not JSON}\\n'); print('noise')\n"
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif '--worker' in sys.orig_argv:\n"
        "    import trt_layermerge.measure.agent.fake as fake\n"
        "    old = fake.FakeBackend.open\n"
        f"    def open(self, model, *, seed=0):\n        exec({code!r})\n"
        "        return old(self, model, seed=seed)\n"
        "    fake.FakeBackend.open = open\n"
    )
    env = folders.environment()
    env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"
    done = folders.agent(folder, env=env)
    assert done.returncode == 0, done.stderr
    assert folders.rows(folder)[0]["error"] is None
    assert (folder / "agent.log").read_text() == "{not JSON}\nnoise\n"


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        ("model", 7, "is damaged: it has not the hash"),
        ("line", 7, "line 2 is not valid JSON"),
        ("backend", 2, "there is no backend 'nope'"),
        ("manifest", 2, "latency --export-jobs"),
    ],
)
def test_refusals_are_one_paragraph_and_an_exit_code(
    tmp_path: Path, spoil: str, code: int, said: str
) -> None:
    folder = folders.singles(tmp_path, 2)
    arguments: list[object] = [folder]
    if spoil == "model":
        (folder / "models/m1.onnx").write_bytes(b"other")
    elif spoil == "line":
        run_jobs(folder)
        text = (folder / "results.jsonl").read_text().split("\n")
        (folder / "results.jsonl").write_text("\n".join([text[0], "{", *text[2:]]))
    elif spoil == "backend":
        arguments += ["--backend", "nope"]
    else:
        (folder / "manifest.json").unlink()
    done = folders.agent(*arguments)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def started(folder: Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        folders.command(folder),
        env=folders.environment(env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Started from a background job, the tests would hand down that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def hanging(tmp_path: Path, times: int = 1) -> tuple[Path, subprocess.Popen[bytes], int]:
    """Returns a folder, an agent that waits in its second job, and the worker's process.

    The job hangs at its first ``times`` tries; called so often, each agent waits in one of them.
    """
    folder, script = tmp_path / "jobs", tmp_path / "script"
    if not folder.exists():
        folders.singles(folder, 3)
    env = folders.script(script / "s.json", models={"m1": ["hang"] * times})
    opened = len(list(script.glob("*.[0-9]")))
    agent = started(folder, env)
    wait_for(lambda: len(list(script.glob("*.[0-9]"))) == opened + 1)
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    assert len(children) == 1
    return folder, agent, int(children[0])


def wait_for(condition: object, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    assert callable(condition)
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def gone(process: int) -> bool:
    """Whether a process has ended; what nobody waited for is a zombie, and has ended too."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_ctrl_c_ends_the_worker_too_and_the_same_command_goes_on(tmp_path: Path) -> None:
    folder, agent, worker = hanging(tmp_path)
    agent.send_signal(signal.SIGINT)
    assert agent.wait(20) == 130
    assert gone(worker)
    assert [row["key"] for row in folders.rows(folder)] == ["k0"]
    run_jobs(folder)
    assert [row["key"] for row in folders.rows(folder)] == ["k0", "k1", "k2"]


def test_a_job_that_takes_the_device_down_is_given_up(tmp_path: Path) -> None:
    """SIGKILL for everybody stands for the reboot: nobody is left to write anything down."""
    for _ in range(agent_run.MOST_UNANSWERED):
        folder, agent, worker = hanging(tmp_path, 10)
        agent.kill()
        agent.wait(20)
        wait_for(lambda worker=worker: gone(worker))
        assert [row["key"] for row in folders.rows(folder)] == ["k0"]
    done = folders.agent(folder)
    assert done.returncode == 0, done.stderr
    first, second, third = folders.rows(folder)
    assert [row["key"] for row in (first, second, third)] == ["k0", "k1", "k2"]
    assert (first["error"], third["error"]) == (None, None)
    assert second["error"].startswith("the agent or the whole device went down 3 times")
    assert second["attempts"] == 3
    assert "failed: label of k1" in done.stdout


def test_a_sentinel_in_between_does_not_hide_that_a_job_takes_the_device_down(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "jobs"
    jobs = {"s": ["s"], "k0": ["m0"], "k1": ["m1"]}
    folders.write(folder, folders.body(folder, jobs, sentinel="s"))
    for _ in range(agent_run.MOST_UNANSWERED):
        _, agent, _ = hanging(tmp_path, 10)
        agent.kill()
        agent.wait(20)
    run_jobs(folder)
    assert [row["key"] for row in folders.rows(folder)] == ["s", "k0", "s", "s", "s", "k1"]
    assert "went down" in folders.table(folder)["k1"]


@pytest.fixture
def heeded(number: signal.Signals) -> Iterator[None]:
    """Has children heed a signal that is ignored here, as under nohup."""
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
    yield
    signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("heeded")
def test_whoever_is_ended_in_order_does_not_blame_the_job(
    tmp_path: Path, number: signal.Signals
) -> None:
    for _ in range(agent_run.MOST_UNANSWERED):
        folder, agent, worker = hanging(tmp_path, agent_run.MOST_UNANSWERED)
        agent.send_signal(number)
        assert agent.wait(20) == 130
        assert gone(worker)
    run_jobs(folder)
    assert [(row["key"], row["error"], row["attempts"]) for row in folders.rows(folder)] == [
        (key, None, 1) for key in ("k0", "k1", "k2")
    ]


def test_results_that_are_begun_anew_forget_old_tries(tmp_path: Path) -> None:
    for _ in range(agent_run.MOST_UNANSWERED):
        folder, agent, _ = hanging(tmp_path, agent_run.MOST_UNANSWERED)
        agent.kill()
        agent.wait(20)
    (folder / "results.jsonl").unlink()
    run_jobs(folder)
    assert [row["error"] for row in folders.rows(folder)] == [None] * 3


def test_results_without_a_list_of_tries_go_on(tmp_path: Path) -> None:
    folder, agent, _ = hanging(tmp_path)
    agent.kill()
    agent.wait(20)
    (folder / "attempts.jsonl").unlink()
    run_jobs(folder)
    assert [row["error"] for row in folders.rows(folder)] == [None] * 3


def test_a_listener_who_leaves_interrupts_the_agent(tmp_path: Path) -> None:
    """As when the connection to the device breaks: no traceback, and the same command goes on."""
    folder = folders.singles(tmp_path, 3)
    reader, writer = os.pipe()
    agent = subprocess.Popen(
        folders.command(folder),
        env=folders.environment(),
        stdout=subprocess.DEVNULL,
        stderr=writer,
    )
    os.close(writer)
    os.close(reader)
    assert agent.wait(20) == 130
    run_jobs(folder)
    assert [row["key"] for row in folders.rows(folder)] == ["k0", "k1", "k2"]


def test_a_killed_agent_takes_its_worker_with_it(tmp_path: Path) -> None:
    folder, agent, worker = hanging(tmp_path)
    agent.kill()
    agent.wait(20)
    wait_for(lambda: gone(worker))
    run_jobs(folder)
    assert [row["key"] for row in folders.rows(folder)] == ["k0", "k1", "k2"]


def test_two_agents_do_not_work_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_run, "LOCK_SECONDS", 0.2)
    folder = folders.singles(tmp_path, 1)
    with only_agent(folder), pytest.raises(UsageError, match=f"process {os.getpid()}.*kill"):
        run_jobs(folder)
    run_jobs(folder)


def test_results_of_another_backend_are_not_taken_for_its_own(tmp_path: Path) -> None:
    """As when somebody tried the agent with its fake first; also where nothing is left to do."""
    folder = folders.write(tmp_path, folders.body(tmp_path, {"a": ["x"]}, backend="tensorrt"))
    run_jobs(folder, backend="fake")
    with pytest.raises(UsageError, match=r"backend: it was fake and is now tensorrt, .* mv "):
        run_jobs(folder)
    run_jobs(folder, backend="fake")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    folder = folders.singles(tmp_path, 1)
    (folder / agent_run.LOCK).mkdir()
    with pytest.raises(DeviceError, match="cannot write into"):
        run_jobs(folder)


class ScriptedWorker:
    """Stands in for a worker: a device whose power mode and start follow a script."""

    modes: list[str | None]

    def __init__(self, folder: Path, backend: str, lock: int) -> None:
        mode = self.modes.pop(0)
        if mode is None:
            raise WorkerLost("it does not start")
        self.device = DeviceInfo("fake", "1", "Orin")
        self.facts: Json = {"power_mode": mode, "missing": {}}

    def measure(self, job: object, manifest: object) -> Json:
        mode = self.modes.pop(0)
        if mode is None:
            raise WorkerLost("it died")
        state = {"power_mode": mode}
        model = {"round_ms": [1.0], "runs_ms": [1.0], "method": "graph"}
        return {"models": [model], "error": None, "before": state, "after": state}

    def close(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None: ...


def with_modes(folder: Path, monkeypatch: pytest.MonkeyPatch, *modes: str | None) -> list[Progress]:
    told: list[Progress] = []
    monkeypatch.setattr(agent_run, "Worker", ScriptedWorker)
    monkeypatch.setattr(ScriptedWorker, "modes", list(modes), raising=False)
    run_jobs(folder, on_progress=told.append)
    return told


def test_a_power_mode_that_changes_while_it_measures_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders.singles(tmp_path, 3)
    with pytest.raises(UsageError, match="it was 25W and is now 15W"):
        with_modes(folder, monkeypatch, "25W", "25W", "15W")
    assert [row["key"] for row in folders.rows(folder)] == ["k0"]


def test_a_power_mode_that_changed_between_two_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders.singles(tmp_path, 2)
    with pytest.raises(DeviceError, match="does not start"):
        with_modes(folder, monkeypatch, "25W", "25W", None, None)
    with pytest.raises(UsageError, match="it was 25W and is now 15W"):
        with_modes(folder, monkeypatch, "15W")
    told = with_modes(folder, monkeypatch, "25W", "25W")
    assert [(p.done, p.total, p.label) for p in told] == [(2, 2, "label of k1")]
    assert [row["key"] for row in folders.rows(folder)] == ["k0", "k1"]


def test_a_folder_that_is_done_needs_neither_models_nor_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders.singles(tmp_path, 2)
    with_modes(folder, monkeypatch, "25W", "25W", "25W")
    for model in (folder / "models").iterdir():
        model.unlink()
    assert with_modes(folder, monkeypatch) == []


def test_drift_is_measured_again_and_told(tmp_path: Path) -> None:
    """The device is 10 % slower from the fourth build on: everything since is done anew, twice."""
    folder = tmp_path / "jobs"
    jobs = {"s": ["s"], **{f"k{i}": [f"m{i}"] for i in range(4)}}
    folders.write(folder, folders.body(folder, jobs, sentinel="s", sentinel_every=2))
    drift = {"from": 3, "to": 1000, "factor": 1.1}
    env = folders.script(tmp_path / "script" / "s.json", drift=drift)
    done = folders.agent(folder, env=env)
    keys = [row["key"] for row in folders.rows(folder)]
    assert keys == ["s", "k0", "k1", "s", "k0", "k1", "s", "k0", "k1", "s", "k2", "k3", "s"]
    assert "note: the sentinel became 10% slower and stayed so" in done.stderr
    assert "note: the sentinel became 10% slower and stayed so" in done.stdout
