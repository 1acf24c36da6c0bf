"""What the supervisor costs with 128 hosts, when it sees one go, and what a storm of restarts asks of them.

    python tools/bench/scale_supervisor.py [--seconds 60] [--connections 16] [--write]

The hosts are processes behind a stub of ssh. What an open connection of the real ssh costs is measured with an sshd on
this machine, so many connections at once. --write puts the table into docs/evidence/many-ranks.md.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

from molmo_ds.cli.launch import parser as launch_options
from molmo_ds.engine.launching import ssh, supervise
from molmo_ds.engine.launching.hosts import Host
from molmo_ds.engine.launching.ports import free_port
from molmo_ds.engine.launching.supervise import Limits, Supervisor
from molmo_ds.testing import synthetic, tables

HOSTS = [Host(f"host{number:03d}", 8) for number in range(128)]
STUB = """#!/bin/sh
for word do host=$command; command=$word; done
echo "$host" >> "$LABORATORY/asked"
[ -e "$LABORATORY/$host.down" ] && exec sleep 100
[ "${command#while}" = "$command" ] && exit 0
eval "$command"
"""
STEPS = 20  # of the run that is looked after


def limits() -> Limits:
    """Those of `molmo-ds launch` where nothing is given, but that a step may take as long as it likes."""
    default = launch_options().get_default
    return Limits(900.0, 900.0, default("probe"), default("tries"), default("backoff"))


def supervisor(folder: Path) -> Supervisor:
    """Of a run that writes into `folder`."""
    config = replace(synthetic.config(), out=str(folder / "out"), max_steps=STEPS)
    return Supervisor(config, HOSTS, limits(), "")


def run_that_ends(folder: Path, seconds: float) -> subprocess.Popen:
    """A run in `folder`/out: a heartbeat each second, DONE in the end."""
    done = json.dumps({"step": STEPS})
    beats = (
        f"for i in $(seq {seconds:.0f}); do touch heartbeat; sleep 1; done; echo '{done}' > DONE"
    )
    return subprocess.Popen(["sh", "-c", beats], cwd=folder / "out")


def watched(folder: Path, seconds: float) -> tuple[float, int]:
    """CPU-seconds of the supervisor for each second in which all is well, and the connections that it made then."""
    made = supervisor(folder)
    pulses = ssh.Pulses(HOSTS)
    made.process = run_that_ends(folder, seconds)
    before = connections(folder)
    began, cpu = time.monotonic(), time.process_time()
    assert made.watch(pulses) is None, "the run does not end well"
    share = (time.process_time() - cpu) / (time.monotonic() - began)
    pulses.close()
    return share, connections(folder) - before


def lost(folder: Path) -> float:
    """Seconds from a host's last sign of life until the supervisor ends the try."""
    made = supervisor(folder)
    pulses = ssh.Pulses(HOSTS)
    made.process = run_that_ends(folder, 600)
    gone = HOSTS[77]

    def stop() -> None:
        (folder / f"{gone.name}.down").touch()
        os.kill(pulses.processes[gone].pid, signal.SIGSTOP)

    timer = threading.Timer(5.0, stop)
    timer.start()
    began = time.monotonic()
    reason = made.watch(pulses)
    seconds = time.monotonic() - began - 5.0
    assert reason == f"{gone.name} does not answer", reason
    made.process.kill()
    pulses.close()
    (folder / f"{gone.name}.down").unlink()
    return seconds


def storm(folder: Path) -> tuple[list[float], float]:
    """Seconds between the starts of a run that ends at once, and the connections that a start takes."""
    made = supervisor(folder)
    times: list[float] = []

    def failing(*_: object) -> list[str]:
        times.append(time.monotonic())
        return ["false"]

    before = connections(folder)
    gives_up = contextlib.suppress(ValueError)
    with mock.patch.object(supervise, "launcher_words", failing), gives_up:
        made.run()
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    return gaps, (connections(folder) - before) / len(times)


def connections(folder: Path) -> int:
    """How often the stub of ssh ran."""
    asked = folder / "asked"
    return len(asked.read_text().split()) if asked.exists() else 0


def of_real_ssh(folder: Path, count: int, seconds: float) -> float:
    """CPU-seconds a second of an open connection's client, with `count` of them to an sshd of this machine."""
    port = free_port()
    for name in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(
        [
            "/usr/sbin/sshd",
            *("-D", "-e", "-f", "/dev/null", "-p", str(port), "-h", str(folder / "host")),
            *("-o", f"AuthorizedKeysFile={folder / 'authorized'}", "-o", "StrictModes=no"),
            *("-o", "MaxStartups=200", "-o", "UsePAM=no", "-o", "ListenAddress=127.0.0.1"),
        ],
        stderr=subprocess.DEVNULL,
    )
    here = ["-F", "/dev/null", "-o", "HostName=127.0.0.1", "-p", str(port)]
    here += ["-i", str(folder / "user"), "-o", "StrictHostKeyChecking=no"]
    here += ["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    try:
        listens(port)
        with mock.patch.object(ssh, "SSH", [*ssh.SSH, *here]):
            pulses = ssh.Pulses(HOSTS[:count])
            time.sleep(3 * ssh.PULSE)
            before = cpu_seconds(pulses)
            time.sleep(seconds)
            took = cpu_seconds(pulses) - before
            assert pulses.lost() is None, "a connection was lost"
            pulses.close()
    finally:
        server.kill()
        server.wait()
    return took / count / seconds


def listens(port: int) -> None:
    """Wait until somebody listens at a port of this machine. TimeoutError after a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as made:
            if made.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nobody listens at port {port}")


def cpu_seconds(pulses: ssh.Pulses) -> float:
    """Of all clients, as the scheduler counted them in nanoseconds."""
    files = [Path(f"/proc/{process.pid}/schedstat") for process in pulses.processes.values()]
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def main() -> None:
    """Measure and print, or write, the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of two measurements")
    parser.add_argument("--connections", type=int, default=16, help="of the real ssh")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stub = folder / "bin/ssh"
        stub.parent.mkdir()
        real = of_real_ssh(folder, args.connections, args.seconds)
        stub.write_text(STUB)
        stub.chmod(0o755)
        os.environ["PATH"] = f"{stub.parent}:{os.environ['PATH']}"
        os.environ["LABORATORY"] = str(folder)
        seen = lost(folder)
        own, made = watched(folder, args.seconds)
        (folder / "out/DONE").unlink()
        gaps, each = storm(folder)
    many = len(HOSTS)
    rows = [
        ("the supervisor's own time, all well", f"{100 * own:.2f} % of a core"),
        (f"{many} clients of ssh with a sign of life every 4 s", f"{100 * many * real:.2f} %"),
        ("together (asked: under 1 %)", f"{100 * (own + many * real):.2f} %"),
        (f"connections made in {args.seconds:.0f} s in which all is well", str(made)),
        ("a host stands still: the try ends after (asked: within 30 s)", f"{seen:.1f} s"),
        (
            "a run that ends at once: seconds between starts",
            ", ".join(f"{gap:.1f}" for gap in gaps),
        ),
        ("the same: connections that a start takes", f"{each:.0f}"),
    ]
    lines = [
        f"`python tools/bench/scale_supervisor.py`, {time.strftime('%Y-%m-%d')}, {tables.cpu()}:",
        "",
        f"| {many} stand-in hosts | |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in rows),
    ]
    print("\n".join(lines))
    if args.write:
        tables.write("supervisor", lines)


if __name__ == "__main__":
    main()
