"""128 stand-in hosts behind a stub of ssh: what the supervisor costs while all is well, and how it sees one go."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from molmo_ds.cli.launch import parser
from molmo_ds.engine.launching import ssh
from molmo_ds.engine.launching import supervise as launch
from molmo_ds.engine.launching.hosts import Host

HOSTS = [Host(f"host{number:03d}", 8) for number in range(128)]
STUB = """#!/bin/sh
for word do host=$command; command=$word; done
echo "$host" >> "$LABORATORY/asked"
[ -e "$LABORATORY/$host.down" ] && exit 255
[ "$command" = true ] && exit 0
[ -n "$SAY_ONCE" ] && { echo; exec sleep 60; }
eval "$command"
"""


@pytest.fixture
def laboratory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stub = tmp_path / "bin/ssh"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("LABORATORY", str(tmp_path))
    return tmp_path


@pytest.fixture
def pulses(laboratory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ssh.Pulses]:
    monkeypatch.setenv("SAY_ONCE", "1")  # the hosts' own processes would be most of the load here
    monkeypatch.setattr(ssh, "SILENCE", 1000.0)
    made = ssh.Pulses(HOSTS)
    deadline = time.monotonic() + 30
    while len(asked(laboratory)) < len(HOSTS) and time.monotonic() < deadline:
        time.sleep(0.02)  # the last of them are still on their way
    yield made
    made.close()


def asked(laboratory: Path) -> list[str]:
    return (laboratory / "asked").read_text().split()


def test_a_host_is_asked_once_and_one_that_goes_is_seen(
    laboratory: Path, pulses: ssh.Pulses, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sorted(asked(laboratory)) == [host.name for host in HOSTS]
    began = time.process_time()
    looks = 20
    assert [pulses.lost() for _ in range(looks)] == [None] * looks
    # a look every 10 s: 1 % of a core is 100 ms; this machine may be busy, and its own time is what counts
    assert (time.process_time() - began) / looks < 0.1
    assert len(asked(laboratory)) == 128, "while all is well nobody is asked again"
    # a connection that breaks is made again, and that is no fault
    first, second, third = HOSTS[5], HOSTS[70], HOSTS[127]
    pulses.processes[first].kill()
    pulses.processes[first].wait()
    assert pulses.lost() is None
    deadline = time.monotonic() + 30
    while asked(laboratory).count(first.name) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert asked(laboratory).count(first.name) == 3, (
        "once at first, once again, and a new connection"
    )
    # a host that is gone
    (laboratory / f"{second.name}.down").touch()
    pulses.processes[second].kill()
    pulses.processes[second].wait()
    assert pulses.lost() == second
    (laboratory / f"{second.name}.down").unlink()
    assert pulses.lost() is None
    # one that stands still says nothing any more
    (laboratory / f"{third.name}.down").touch()
    os.kill(pulses.processes[third].pid, signal.SIGSTOP)
    monkeypatch.setattr(ssh, "SILENCE", 3.0)
    pulses.heard = {host: time.monotonic() + 1000 * (host != third) for host in HOSTS}
    deadline = time.monotonic() + 30
    while (lost := pulses.lost()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert lost == third


def test_a_host_is_seen_to_be_lost_within_half_a_minute() -> None:
    """By its silence, then a look that was due, and a question without an answer."""
    assert 2 * ssh.PULSE < ssh.SILENCE
    assert ssh.SILENCE + parser().get_default("probe") + ssh.ANSWER <= 30


def test_signs_of_life_come_from_the_loop_that_runs_there(
    laboratory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "PULSE", 0.1)
    made = ssh.Pulses(HOSTS[:2] + [Host("localhost", 2)])
    before = dict(made.heard)
    time.sleep(0.5)
    assert made.lost() is None and all(made.heard[host] > before[host] for host in HOSTS[:2])
    processes = list(made.processes.values())
    made.close()
    assert len(processes) == 2 and all(process.poll() is not None for process in processes)


def test_pauses_of_a_storm_grow_and_differ() -> None:
    drawn = [[launch.pause(1.0, times) for _ in range(200)] for times in range(1, 10)]
    for times, pauses in enumerate(drawn, 1):
        middle = min(60, 2 ** (times - 1))
        assert 0.75 * middle <= min(pauses) < 0.85 * middle
        assert 1.15 * middle < max(pauses) <= 1.25 * middle
