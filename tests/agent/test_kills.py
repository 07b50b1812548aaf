"""Fifty kills, crashes and time-outs: what is lost, what is repeated, and what comes out."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

from tests.agent import folders
from trt_layermerge.measure.agent.run import run_jobs

SEED, JOBS = 20, 40
TROUBLES = ["kill"] * 14 + ["exit"] * 11 + ["sticky"] * 8 + ["hang"] * 3
PARENT_KILLS = 50 - len(TROUBLES)
TIMEOUT_SECONDS = 1.0


def folder_of_jobs(folder: Path) -> Path:
    jobs = {"s": ["s"], **{f"k{i}": [f"m{i}"] for i in range(JOBS)}}
    body = folders.body(folder, jobs, sentinel="s", sentinel_every=5)
    return folders.write(folder, {**body, "timeout_s": TIMEOUT_SECONDS})


def complete_lines(folder: Path) -> list[str]:
    path = folder / "results.jsonl"
    return path.read_text().rpartition("\n")[0].split("\n") if path.exists() else []


def killed_after(folder: Path, env: dict[str, str], rows: int, delay: float) -> None:
    """Starts an agent and kills it with SIGKILL, some time after it added so many lines."""
    agent = subprocess.Popen(
        folders.command(folder),
        env=folders.environment(env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wanted = len(complete_lines(folder)) + rows
    while agent.poll() is None and len(complete_lines(folder)) < wanted:
        time.sleep(0.005)
    time.sleep(delay)
    agent.kill()
    agent.wait()


def test_fifty_injected_troubles_lose_at_most_one_measurement_each(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    undisturbed = folder_of_jobs(tmp_path / "undisturbed")
    run_jobs(undisturbed)

    folder = folder_of_jobs(tmp_path / "disturbed")
    victims = rng.sample(range(JOBS), len(TROUBLES))
    troubles = {f"m{job}": [trouble] for job, trouble in zip(victims, TROUBLES, strict=True)}
    # A factor of one: the script counts how many models were opened without trouble.
    drift = {"from": 0, "to": 0, "factor": 1.0}
    env = folders.script(tmp_path / "script" / "s.json", models=troubles, drift=drift)
    for _ in range(PARENT_KILLS):
        before = complete_lines(folder)
        killed_after(folder, env, rng.randrange(3), rng.uniform(0, 0.1))
        assert complete_lines(folder)[: len(before)] == before
    done = folders.agent(folder, env=env)
    assert done.returncode == 0, done.stderr

    rows = folders.rows(folder)
    opened = len(list((tmp_path / "script").glob("all.*")))
    assert opened - len(rows) <= PARENT_KILLS
    assert len(list((tmp_path / "script").glob("*.0"))) == len(TROUBLES) + 1  # each came to pass
    ordinary = [row["key"] for row in rows if not row["sentinel"]]
    assert sorted(ordinary) == sorted(f"k{i}" for i in range(JOBS))
    assert folders.table(folder) == folders.table(undisturbed)


def test_the_comparison_would_show_a_difference(tmp_path: Path) -> None:
    first, second = folders.singles(tmp_path / "a", 2), folders.singles(tmp_path / "b", 2)
    run_jobs(first)
    path = second / "models/m1.onnx"
    path.write_bytes(folders.model("another"))
    body = folders.body(second, {"k0": ["m0"], "k1": ["another"]})
    run_jobs(folders.write(second, body))
    assert folders.table(first) != folders.table(second)
