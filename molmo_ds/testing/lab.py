"""A laboratory of hosts on one machine: network, PID, mount and UTS namespaces on a bridge of their own, with sshd.

Nothing here has a name outside: when the first process of a namespace ends, all of it is gone, network included.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

CLONE_NEWNET = 0x40000000
TOOLS = (
    "unshare",
    "nsenter",
    "setpriv",
    "ps",
    "ip",
    "tc",
    "ssh",
    "ssh-keygen",
    "pdsh",
    "/usr/sbin/sshd",
)
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
SSHD = """
ListenAddress {address}:22
HostKey {folder}/hostkey
AuthorizedKeysFile {folder}/id.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
UseDNS no
PidFile none
MaxStartups 100
"""
SSH = """
Host *
  IdentityFile {folder}/id
  UserKnownHostsFile {folder}/known_hosts
  BatchMode yes
  ConnectTimeout 5
"""
INSIDE = """
hostname {name}
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/ssh_config /etc/ssh/ssh_config
# what a user's shell starts (pyenv, conda) takes seconds at each ssh, and waits for locks that a kill left
for file in ~/.bashrc ~/.bash_profile ~/.profile; do
    if [[ -e $file ]]; then mount --bind /dev/null "$file"; fi
done
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
read network
exec {command}
"""


def missing() -> str:
    """Why there can be no laboratory here, or an empty string."""
    if os.geteuid():
        return "network namespaces need root"
    for tool in TOOLS:
        if not shutil.which(tool, path=PATH):
            return f"{tool} is not installed (.ci/run installs iproute2, openssh-server and pdsh)"
    words = [
        "unshare",
        "-n",
        "-m",
        "-u",
        "-p",
        "-f",
        "--mount-proc",
        "ip",
        "link",
        "add",
        "br0",
        "type",
        "bridge",
    ]
    tried = subprocess.run(words, env={**os.environ, "PATH": PATH}, capture_output=True, text=True)
    return (
        ""
        if tried.returncode == 0
        else f"this kernel allows no namespaces with bridges: {tried.stderr.strip()}"
    )


class Lab:
    """`head`, where a launcher runs, and host1 ... hostN; as a context manager it cleans up."""

    def __init__(self, folder: Path, hosts: int) -> None:
        self.folder = folder
        self.names = ["head", *(f"host{i + 1}" for i in range(hosts))]
        self.outer: dict[str, subprocess.Popen] = {}  # unshare, outside
        self.inner: dict[str, int] = {}  # process 1 of the namespaces, as seen from here

    def __enter__(self) -> "Lab":
        self.folder.mkdir(parents=True, exist_ok=True)
        for key in ("id", "hostkey"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key], check=True
            )
        host_key = " ".join((self.folder / "hostkey.pub").read_text().split()[:2])
        names = {name: self.address(name) for name in self.names}
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        known = (f"{name},{address} {host_key}\n" for name, address in names.items())
        (self.folder / "known_hosts").write_text("".join(known))
        (self.folder / "ssh_config").write_text(SSH.format(folder=self.folder))
        try:
            self._begin(
                "switch",
                ["unshare", "-n", "-p", "-f", "--kill-child", "bash", "-c", "read; exec sleep inf"],
            )
            self._ip("switch", "link", "add", "br0", "type", "bridge")
            self._ip("switch", "link", "set", "br0", "up")
            for name in self.names:
                self.power_on(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.outer):
            self._end(name)

    def address(self, name: str) -> str:
        """Its address on the bridge."""
        return f"10.77.0.{self.names.index(name) + 1}"

    def power_on(self, name: str) -> None:
        """Start a host that is off; it answers by ssh when this returns."""
        address = self.address(name)
        (self.folder / f"{name}.sshd").write_text(SSHD.format(address=address, folder=self.folder))
        command = (
            f"/usr/sbin/sshd -D -e -f {self.folder}/{name}.sshd" if name != "head" else "sleep inf"
        )
        script = INSIDE.format(name=name, folder=self.folder, command=command)
        spaces = ["unshare", "-n", "-m", "-u", "-p", "-f", "--kill-child", "--mount-proc"]
        self._begin(name, [*spaces, "bash", "-c", script])
        veth = ["type", "veth", "peer", "name", "eth0", "netns", str(self.inner[name])]
        self._ip("switch", "link", "add", f"p-{name}", *veth)
        self._ip("switch", "link", "set", f"p-{name}", "master", "br0", "up")
        self._ip(name, "link", "set", "lo", "up")
        number = self.names.index(name)
        # as before it was off
        self._ip(name, "link", "set", "eth0", "address", f"02:00:00:00:00:{number:02x}")
        self._ip(name, "addr", "add", f"{address}/24", "dev", "eth0")
        self._ip(name, "link", "set", "eth0", "up")
        self.outer[name].stdin.write(b"\n")
        self.outer[name].stdin.close()
        log = self.folder / f"{name}.log"
        deadline = time.monotonic() + 30
        while name != "head" and b"Server listening" not in log.read_bytes():
            assert time.monotonic() < deadline, f"sshd of {name} does not start: {log.read_text()}"
            time.sleep(0.02)

    def power_off(self, name: str) -> None:
        """Take the plug out: no process of it says a last word."""
        self.cut(name)
        self._end(name)

    def cut(self, name: str) -> None:
        """Cut its link."""
        self._ip("switch", "link", "set", f"p-{name}", "down")

    def mend(self, name: str) -> None:
        """The link is back."""
        self._ip("switch", "link", "set", f"p-{name}", "up")

    def words(self, name: str, command: list) -> list[str]:
        """A command as it runs on a host, in this folder."""
        enter = [
            "nsenter",
            "-t",
            str(self.inner[name]),
            "-n",
            "-m",
            "-u",
            "-p",
            "--",
            "env",
            "-C",
            os.getcwd(),
        ]
        return [*enter, *map(str, command)]

    def run(self, name: str, command: list, timeout: float = 60) -> str:
        """Run a command on a host; what it says."""
        done = subprocess.run(
            self.words(name, command), env=self.environment(), capture_output=True, timeout=timeout
        )
        assert done.returncode == 0, f"{command} on {name}: {done.stderr.decode()[-2000:]}"
        return done.stdout.decode()

    def environment(self) -> dict[str, str]:
        """The environment of commands on the hosts."""
        return {**os.environ, "PATH": PATH}

    def enter(self, name: str) -> None:
        """Move the calling thread, and no other, into the network of a host."""
        network = os.open(f"/proc/{self.inner[name]}/ns/net", os.O_RDONLY)
        failed = ctypes.CDLL(None, use_errno=True).setns(network, CLONE_NEWNET)
        os.close(network)
        assert not failed, os.strerror(ctypes.get_errno())

    def kill(self, name: str, words: tuple[str, ...], number: int) -> int:
        """Signal the youngest process of a host whose command line holds all these words; its PID there."""
        lines = self.run(name, ["ps", "-eww", "-o", "pid=,args="]).splitlines()
        found = [int(line.split()[0]) for line in lines if all(word in line for word in words)]
        assert found, f"no process with {words} on {name}: {lines}"
        self.run(name, ["kill", f"-{int(number)}", str(max(found))])
        return max(found)

    def bytes(self, name: str) -> int:
        """Bytes that its network card has sent so far."""
        shown = json.loads(self.run(name, ["ip", "-s", "-j", "link", "show", "eth0"]))
        return int(shown[0]["stats64"]["tx"]["bytes"])

    def limit(self, name: str, rate: str) -> None:
        """Slow its link down, in both directions, for example to 100mbit."""
        shape = ["root", "tbf", "rate", rate, "burst", "64kb", "latency", "400ms"]
        self.run(name, ["tc", "qdisc", "replace", "dev", "eth0", *shape])

    def _begin(self, name: str, command: list[str]) -> None:
        log = open(self.folder / f"{name}.log", "wb")  # noqa: SIM115 (the process keeps it)
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self.environment(),
        )
        log.close()
        self.outer[name] = process
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 30
        while not (text := children.read_text().split()):
            assert process.poll() is None and time.monotonic() < deadline, (
                f"no namespaces for {name}"
            )
            time.sleep(0.01)
        self.inner[name] = int(text[0])

    def _end(self, name: str) -> None:
        process = self.outer.pop(name)
        os.kill(self.inner.pop(name), signal.SIGKILL)
        process.wait(30)

    def _ip(self, name: str, *words: str) -> None:
        command = ["nsenter", "-t", str(self.inner[name]), "-n", "ip", *words]
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True)
        assert done.returncode == 0, f"ip {' '.join(words)} on {name}: {done.stderr}"


def losses(out: Path) -> dict[int, float]:
    """Step -> loss in the log of a run."""
    return {
        line["step"]: line["loss"]
        for line in map(json.loads, (out / "log.jsonl").read_text().splitlines())
    }
