"""The machines of a run: one reader of hostfiles (DeepSpeed's form, `name slots=8` a line) and of lists of hosts."""

import re
import socket
import subprocess
import unicodedata
from dataclasses import dataclass
from pathlib import Path

NAME = re.compile(r"[\w.@][\w.@-]*")
FORM = "write `name slots=8` a line"


@dataclass(frozen=True)
class Host:
    """A machine and how many ranks it takes."""

    name: str
    slots: int

    @property
    def here(self) -> bool:
        """Whether it is this machine, reached without ssh."""
        return self.name in ("localhost", "127.0.0.1")


def read_hosts(text: str) -> list[Host]:
    """A hostfile's path, or `host1:8,host2:8` (a name alone is one rank).

    Raises ValueError, with the line, for what cannot be read, a host named twice, and a file that is not there.
    """
    path = Path(text).expanduser()
    if path.is_file():
        hosts = _of_file(path)
    elif (text and path.is_dir()) or "/" in text or "\\" in text or text.startswith("~"):
        raise ValueError(
            f"There is no hostfile {text}; give a file, or a list such as host1:8,host2:8."
        )
    else:
        hosts = _of_list(text)
    names = [_machine(host.name) for host in hosts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"{text} names {twice[0]} {names.count(twice[0])} times; give each host once, with all slots."
        )
    if len(hosts) > 1 and any(host.here for host in hosts):
        raise ValueError(
            "localhost cannot be one of several hosts; give this machine's name as the others know it."
        )
    return hosts


def _machine(name: str) -> str:
    """What a name means, without who logs in there: `me@One.` is `one`."""
    return unicodedata.normalize("NFKC", name).rpartition("@")[2].rstrip(".").lower()


def _of_file(path: Path) -> list[Host]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"The hostfile {path} is no text in UTF-8; {FORM}.") from None
    hosts = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            hosts.append(_of_line(words, f"{path} line {number}"))
    if not hosts:
        raise ValueError(f"The hostfile {path} names no host; {FORM}.")
    return hosts


def _of_line(words: list[str], where: str) -> Host:
    name, *rest = words
    slots = [word.partition("=")[2] for word in rest if word.partition("=")[0] == "slots"]
    others = [word for word in rest if word.partition("=")[0] != "slots"]
    line = " ".join(words)
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{where}: '{name}' is no name of a host; {FORM}, for example `{_stem(name)} slots=8`."
        )
    if others:
        raise ValueError(f"{where}: '{others[0]}' is not read; {FORM}, not `{line}`.")
    if len(slots) != 1:
        raise ValueError(f"{where}: `{line}` says slots {len(slots)} times; {FORM}.")
    return Host(name, _count(slots[0], f"{where}: slots={slots[0]}"))


def _of_list(text: str) -> list[Host]:
    hosts = []
    for item in text.split(","):
        name, colon, slots = item.strip().partition(":")
        wrong = not NAME.fullmatch(name) or (colon and not re.fullmatch(r"-?\d+", slots))
        if wrong:
            raise ValueError(
                f"--hosts {text} is neither a hostfile nor a list such as host1:8,host2:8."
            )
        hosts.append(Host(name, _count(slots, f"--hosts {text}: {name}:{slots}") if colon else 1))
    return hosts


def _count(text: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < 1:
        raise ValueError(f"{where} is no number of ranks; give a whole number of 1 or more.")
    return int(text)


def _stem(name: str) -> str:
    found = NAME.match(name)
    return found.group() if found else "host1"


def refuse_unknown(hosts: list[Host]) -> None:
    """Raise ValueError for a host that neither ssh's configuration nor the resolver knows: it would be waited for.

    A host behind a proxy of ssh's is known there alone, and is taken as it is.
    """
    for host in hosts:
        if host.here:
            continue
        address, proxied = _as_ssh_knows(host.name)
        if proxied:
            continue
        try:
            socket.getaddrinfo(address, None)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ValueError(
                f"{host.name} is neither a file nor a host that is known ({reason}); give a hostfile, or names that "
                "ssh reaches."
            ) from None


def _as_ssh_knows(name: str) -> tuple[str, bool]:
    """(the address that ssh's configuration gives a name, whether ssh goes there through a proxy)."""
    try:
        done = subprocess.run(["ssh", "-G", name], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return name.rpartition("@")[2], False
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    proxied = any(said.get(key, "none") != "none" for key in ("proxycommand", "proxyjump"))
    return said.get("hostname", name.rpartition("@")[2]), proxied
