"""One reader of hostfiles: every form of a line, and one sentence with its number for what cannot be read."""

import subprocess
import sys
from pathlib import Path

import pytest

from molmo_ds.engine.launching.hosts import Host, read_hosts, refuse_unknown

ROOT = Path(__file__).parents[2]
TWO = [Host("one", 8), Host("two", 4)]
GOOD = {
    "plain": b"one slots=8\ntwo slots=4\n",
    "comments and blank lines": b"# all\n\n  one slots=8 # first\n\t\ntwo slots=4",
    "tabs": b"one\tslots=8\ntwo \t slots=4\n",
    "CRLF": b"one slots=8\r\ntwo slots=4\r\n",
    "byte order mark": b"\xef\xbb\xbfone slots=8\ntwo slots=4\n",
}
BAD = {  # content, what the sentence holds
    "colon": (b"one:8\n", "line 1: 'one:8' is no name of a host; write `name slots=8` a line, for example `one slots"),
    "OpenMPI": (b"one slots=8\ntwo max_slots=16 slots=8\n", "line 2: 'max_slots=16' is not read"),
    "MPICH": (b"one:8 slots=8\n", "line 1: 'one:8' is no name of a host"),
    "no slots": (b"one slots=8\n\ntwo\n", "line 3: `two` says slots 0 times"),
    "slots twice": (b"one slots=8 slots=4\n", "line 1: `one slots=8 slots=4` says slots 2 times"),
    "0": (b"one slots=0\n", "line 1: slots=0 is no number of ranks"),
    "negative": (b"one slots=-2\n", "slots=-2 is no number of ranks"),
    "word": (b"one slots=many\n", "slots=many is no number of ranks"),
    "half": (b"one slots=1.5\n", "slots=1.5 is no number of ranks"),
    "nothing": (b"one slots=\n", "slots= is no number of ranks"),
    "spaces": (b"one slots = 8\n", "line 1: '=' is not read"),
    "twice": (b"one slots=8\ntwo slots=8\nONE slots=8\n", "names one 2 times"),
    "twice, by another user": (b"me@one slots=8\none slots=8\n", "names one 2 times"),
    "twice, as the root of names": (b"one.org slots=8\nONE.org. slots=8\n", "names one.org 2 times"),
    "twice, in wide letters": ("one slots=8\n\uff4fne slots=8\n".encode(), "names one 2 times"),
    "IPv6": (b"fe80::1 slots=8\n", "line 1: 'fe80::1' is no name of a host"),
    "IPv6 in brackets": (b"[::1] slots=8\n", "line 1: '[::1]' is no name of a host"),
    "port": (b"one:2222 slots=8\n", "line 1: 'one:2222' is no name of a host"),
    "digits of another script": ("one slots=\u0668\n".encode(), "is no number of ranks"),
    "thousands": (b"one slots=1_000\n", "slots=1_000 is no number of ranks"),
    "huge": (b"one slots=9999999\n", "slots=9999999 is no number of ranks"),
    "comma": (b"one slots=8, two slots=8\n", "line 1: 'two' is not read"),
    "option": (b"-oProxyCommand=x slots=1\n", "is no name of a host"),
    "empty": (b"# nothing\n\n", "names no host"),
    "binary": (b"\xff\xfe\x00o", "no text in UTF-8"),
    "localhost": (b"localhost slots=1\none slots=1\n", "localhost cannot be one of several hosts"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_forms_that_are_read(name: str, tmp_path: Path) -> None:
    file = tmp_path / "hostfile"
    file.write_bytes(GOOD[name])
    assert read_hosts(str(file)) == read_hosts("one:8,two:4") == TWO


@pytest.mark.parametrize("name", BAD)
def test_one_sentence_for_what_cannot_be_read(name: str, tmp_path: Path) -> None:
    content, words = BAD[name]
    file = tmp_path / "hostfile"
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_hosts(str(file))
    said = str(caught.value)
    assert words in said and "\n" not in said and (str(file) in said or name == "localhost")


def test_no_such_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "hosts").write_bytes(GOOD["plain"])
    assert read_hosts("~/hosts") == TWO
    for path in (f"{tmp_path}/hostfil", "./hostfil", "~/hostfil", str(tmp_path)):
        with pytest.raises(ValueError, match="There is no hostfile"):
            read_hosts(path)
    for wrong in ("one:8,one:8", "one:8,,two:8", "one:8;two:8", "one:x", "one:0", "one:-1"):
        with pytest.raises(ValueError):
            read_hosts(wrong)


def test_hosts_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_unknown([Host("localhost", 2)])
    refuse_unknown([Host("127.0.0.2", 2)])
    with pytest.raises(ValueError, match="hostfil is neither a file nor a host that is known"):
        refuse_unknown([Host("127.0.0.1", 1), Host("hostfil", 1)])
    fake = tmp_path / "ssh"  # a name that only ssh's configuration knows, and one behind a proxy
    fake.write_text(
        '#!/bin/sh\n[ "$2" = alias ] && echo hostname 127.0.0.1 || echo proxyjump gate\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    refuse_unknown([Host("alias", 1), Host("behind", 1)])


def test_both_tools_read_alike(tmp_path: Path) -> None:
    file = tmp_path / "hostfile"
    file.write_bytes(BAD["twice"][0])
    run = ["preset=tiny", f"out={tmp_path / 'out'}"]
    for tool, words in (
        ("launch", ["--hosts", str(file), *run]),
        ("plan_memory", ["tiny", "ds_configs/zero3.json", file]),
    ):
        command = [sys.executable, str(ROOT / f"tools/{tool}.py"), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
        assert (
            done.returncode == 1
            and "names one 2 times" in done.stderr
            and "Traceback" not in done.stderr
        )
    assert not (tmp_path / "out").exists()
