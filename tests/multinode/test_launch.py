"""The parts of tools/launch.py that need no hosts: who takes part, who is signalled, what is refused."""

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from molmo_ds.config import RunConfig
from molmo_ds.engine.launching import supervise as launch
from molmo_ds.engine.launching.hosts import Host, read_hosts
from molmo_ds.engine.launching.signal_run import MARK, marked, signal_run


def test_hosts_from_list_and_file(tmp_path: Path) -> None:
    hosts = [Host("a", 8), Host("b", 2)]
    (tmp_path / "hostfile").write_text("# comment\na slots=8\n\nb slots=2  # slow\n")
    assert read_hosts("a:8,b:2") == read_hosts(str(tmp_path / "hostfile")) == hosts
    assert read_hosts("localhost:2")[0].here
    for wrong in ("a:x", "", "a:1,,b:1", ":8", "-oProxyCommand=x:1"):
        with pytest.raises(ValueError, match="neither a hostfile nor a list"):
            read_hosts(wrong)
    with pytest.raises(ValueError, match="localhost cannot be one of several"):
        read_hosts("localhost:1,b:1")


def test_as_many_hosts_as_the_batch_allows() -> None:
    config = RunConfig(
        strategy="ds_configs/zero1.json", global_batch=8, micro_batch=1, out="somewhere"
    )
    hosts = [Host(name, 2) for name in "abcd"]
    assert launch.usable(hosts, config) == hosts
    assert launch.usable(hosts[1:], config) == hosts[1:3]  # 6 ranks do not divide 8 sequences, 4 do
    assert launch.usable([], config) == []
    pipeline = replace(config, strategy="ds_configs/pipe_zero1.json")
    with pytest.raises(ValueError, match="multiple of 2 ranks"):
        launch.usable([Host("a", 1)], pipeline)


def test_what_cannot_be_supervised_is_refused() -> None:
    config = RunConfig(out="somewhere")
    launch.check(config)
    for wrong, said in (
        (replace(config, out=""), "out is empty"),
        (replace(config, stop_after=3), "stop_after"),
    ):
        with pytest.raises(ValueError, match=said):
            launch.check(wrong)
    with pytest.raises(ValueError, match="resume=false"):
        launch.check(replace(config, resume=False))


def sleeper(**variables: str) -> subprocess.Popen:
    """A process with these variables."""
    return subprocess.Popen(["sleep", "60"], env={**os.environ, **variables})


def test_signals_reach_this_run_and_no_other(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    rank = sleeper(**{MARK: out, "RANK": "0"})
    launcher = sleeper(**{MARK: out})
    other = sleeper(**{MARK: out + "2", "RANK": "0"})
    stranger = sleeper()
    try:
        deadline = time.monotonic() + 30
        while set(marked(out)) != {rank.pid, launcher.pid} and time.monotonic() < deadline:
            time.sleep(0.01)  # between fork and exec it has our environment
        signal_run(out, signal.SIGTERM, ranks_only=True)
        assert rank.wait(30) == -signal.SIGTERM and launcher.poll() is None
        os.kill(launcher.pid, signal.SIGSTOP)  # a stopped process dies as well
        signal_run(out, signal.SIGKILL)
        assert launcher.wait(30) == -signal.SIGKILL
        assert other.poll() is None and stranger.poll() is None and not marked(out)
    finally:
        for process in (rank, launcher, other, stranger):
            process.kill()
            process.wait()


def test_one_supervisor_for_a_run(tmp_path: Path) -> None:
    config = RunConfig(out=str(tmp_path / "run"))
    limits = launch.Limits(1, 1, 1, 1, 1)
    first = launch.Supervisor(config, [Host("localhost", 1)], limits, "OMP_NUM_THREADS")
    with pytest.raises(ValueError, match="Another tools/launch.py"):
        launch.Supervisor(config, [Host("localhost", 1)], limits, "")
    first.lock.close()
    again = launch.Supervisor(config, [Host("localhost", 1)], limits, "PATH,MOLMO_*")
    file = tmp_path / "environment"
    variables = launch.launcher_environment(file, again.exported, {MARK: str(again.out)})
    lines = file.read_text().splitlines()
    assert f"PATH={os.environ['PATH']}" in lines and f"{MARK}={tmp_path / 'run'}" in lines
    assert variables["DS_ENV_FILE"] == str(file) and file.stat().st_mode & 0o077 == 0
    assert not again.done() and again.saved() == 0
    (tmp_path / "run/DONE").write_text('{"step": 29999, "loss": 1.0}\n')
    assert not again.done(), "the run of an older configuration was done, this one is not"
    (tmp_path / "run/DONE").write_text('{"step": 30000, "loss": 1.0}\n')
    assert again.done()


def test_pauses_grow_until_it_gives_up_or_a_checkpoint_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(out=str(tmp_path / "run"))
    limits = launch.Limits(1, 1, 1, tries=4, backoff=20)
    supervisor = launch.Supervisor(config, [Host("localhost", 1)], limits, "")
    pauses = []
    starts = []

    def watch(pulses: object) -> str:
        if len(starts) == 3:
            (tmp_path / "run/checkpoints").mkdir()
            (tmp_path / "run/checkpoints/latest").write_text("step-00000002\n")
        return f"fault {len(starts)}"

    monkeypatch.setattr(launch.time, "sleep", pauses.append)
    monkeypatch.setattr(launch.random, "uniform", lambda least, most: 1.0)
    monkeypatch.setattr(supervisor, "start", starts.append)
    monkeypatch.setattr(supervisor, "watch", watch)
    with pytest.raises(
        ValueError, match="4 starts in a row brought no new checkpoint; the last one ended: fault 6"
    ):
        supervisor.run()
    assert pauses == [20, 40, 20, 40, 60] and starts == [[Host("localhost", 1)]] * 6
