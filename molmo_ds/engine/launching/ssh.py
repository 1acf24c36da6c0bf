"""Hosts by ssh: who answers, a command on each, and a pulse that costs next to nothing while all is well.

A new connection costs the asking machine some 100 ms of its processor, so that 128 hosts are not asked again every few
seconds. Each keeps one connection open and says on it, every PULSE seconds, that it is there; only one that is silent
is asked again.
"""

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from molmo_ds.engine.launching.hosts import Host

SSH = [
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=12",
    "-o",
    "ServerAliveInterval=3",
    "-o",
    "ServerAliveCountMax=2",
]
AT_ONCE = 32  # connections that are being made; sshd begins to refuse where it sees many
ANSWER = 15.0  # seconds; a machine that computes hard takes its time
PULSE = 4.0  # seconds between two signs of life
SILENCE = 10.0  # seconds without one, after which a host is asked again


def on_each(hosts: list[Host], command: str, seconds: float) -> list[Host]:
    """Run a command on the other machines, AT_ONCE at a time; those where it ended well in time, in their order."""

    def run(host: Host) -> bool:
        try:
            words = ["ssh", *SSH, host.name, command]
            return subprocess.run(words, timeout=seconds, stdin=subprocess.DEVNULL).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    others = [host for host in hosts if not host.here]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [host for host, well in zip(others, pool.map(run, others)) if well]


def alive(hosts: list[Host]) -> list[Host]:
    """Those that answer within some seconds; this machine does."""
    answered = set(on_each(hosts, "true", ANSWER))
    return [host for host in hosts if host.here or host in answered]


class Pulses:
    """The open connections to the other hosts of one try; `close` them."""

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = [host for host in hosts if not host.here]
        self.processes: dict[Host, subprocess.Popen] = {}
        self.heard: dict[Host, float] = {}
        for number, host in enumerate(self.hosts):
            if number >= AT_ONCE:
                self._wait_for(self.hosts[number - AT_ONCE])
            self._connect(host)

    def lost(self) -> Host | None:
        """A host that fell silent and does not answer when it is asked again; one that does is connected again."""
        self._listen(self.hosts)
        now = time.monotonic()
        silent = [host for host in self.hosts if self._silent(host, now)]
        answering = set(alive(silent)) if silent else set()
        for host in silent:
            if host not in answering:
                return host
            self._disconnect(host)
            self._connect(host)
        return None

    def close(self) -> None:
        """End the connections; the loops at their other ends end with the next sign of life."""
        for host in list(self.processes):
            self._disconnect(host)

    def _connect(self, host: Host) -> None:
        # echo fails where nobody listens any more, so that nothing is left on the host; ssh's own questions whether it
        # is there would double the cost
        loop = f"while echo; do sleep {PULSE:g}; done"
        words = ["ssh", "-o", "ServerAliveInterval=0", *SSH, host.name, loop]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        os.set_blocking(process.stdout.fileno(), False)
        self.processes[host] = process
        self.heard[host] = time.monotonic()

    def _disconnect(self, host: Host) -> None:
        process = self.processes.pop(host)
        process.kill()
        process.stdout.close()
        process.wait()

    def _wait_for(self, host: Host) -> None:
        """Until its first sign of life, its end, or what counts as silence."""
        began = self.heard[host]
        deadline = time.monotonic() + SILENCE
        while time.monotonic() < deadline and self.processes[host].poll() is None:
            self._listen([host])
            if self.heard[host] > began:
                return
            time.sleep(0.01)

    def _listen(self, hosts: list[Host]) -> None:
        for host in hosts:
            if self._read(host):
                self.heard[host] = time.monotonic()

    def _read(self, host: Host) -> bytes | None:
        try:
            return os.read(self.processes[host].stdout.fileno(), 4096)
        except BlockingIOError:
            return None

    def _silent(self, host: Host, now: float) -> bool:
        return self.processes[host].poll() is not None or now - self.heard[host] > SILENCE
