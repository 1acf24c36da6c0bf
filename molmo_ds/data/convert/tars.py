"""Tars that other programs wrote: their samples, and an index of those that hold our records."""

import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from webdataset.tariterators import base_plus_ext

from molmo_ds.data.convert.foreign import WHAT, is_foreign
from molmo_ds.data.decode import BadSample
from molmo_ds.data.read.writer import BLOCK, ShardIndex
from molmo_ds.data.sample.conversation import is_plain
from molmo_ds.data.sample.record import VIDEOS, read_json
from molmo_ds.data.sample.review import Review

READ = 1 << 20  # bytes after an end mark that are looked at together


@dataclass(frozen=True)
class Member:
    """One file of a tar; the key of its sample is its path up to the first dot of its name, webdataset's own rule."""

    key: str
    part: str  # what follows the dot, in small letters
    start: int  # of its header
    offset: int  # of its bytes
    length: int


@dataclass
class Contents:
    """The members of a tar that belong to samples, what was passed over, and where the last member ends.

    `damage` says in a sentence what ended the reading before the tar's end; `end` is 0 where that was inside of a
    member.
    """

    members: list[Member] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)
    end: int = 0
    damage: str | None = None


@dataclass
class Indexed:
    """The result of indexing a tar: `faults` are sentences about samples that training will skip."""

    index: ShardIndex = field(default_factory=ShardIndex)
    faults: list[str] = field(default_factory=list)
    review: Review = field(default_factory=Review)
    passed: Counter[str] = field(default_factory=Counter)


def scan_tar(path: str | Path) -> Contents:
    """Read the headers of a tar.

    Raises ValueError for a truncated tar and a corrupt header; unlike tarfile and webdataset, never takes a damaged
    header for the end.
    """
    found = scan_to_damage(path)
    if found.damage:
        raise ValueError(found.damage)
    return found


def scan_to_damage(path: str | Path) -> Contents:
    """The same up to the first damage; of the last sample before it not all need be there."""
    path = Path(path)
    found = Contents()
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a tar; give tars.")
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, part = base_plus_ext(member.name)
                if member.isdir():
                    continue
                if is_foreign(member.name):
                    found.passed[WHAT] += 1
                elif not member.isreg() or member.issparse():
                    found.passed["links and special files in tars"] += 1
                elif not part:
                    found.passed["members without an extension"] += 1
                else:
                    found.members.append(
                        Member(key, part.lower(), member.offset, member.offset_data, member.size)
                    )
            found.end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        found.damage = f"{path} is truncated or not an uncompressed tar ({error}); make it again."
    except (ValueError, OverflowError) as error:  # tarfile lets some damaged numbers through
        found.damage = f"{path} has a corrupt header ({error}); make or copy it again."
    else:
        found.damage = damage_at_end(path, found.end)
    return found


def samples_of(
    path: str | Path, contents: Contents
) -> Iterator[tuple[str, list[tuple[str, int, bytes]], int, int]]:
    """The samples of a tar: key, parts (name, offset of the bytes, bytes), and where the sample starts and ends.

    As webdataset does, neighbouring members of one key are one sample.
    """
    members = contents.members
    firsts = [i for i, member in enumerate(members) if i == 0 or member.key != members[i - 1].key]
    with open(path, "rb") as file:
        for first, stop in zip(firsts, [*firsts[1:], len(members)]):
            parts = []
            for member in members[first:stop]:
                file.seek(member.offset)
                parts.append((member.part, member.offset, file.read(member.length)))
            end = members[stop].start if stop < len(members) else contents.end
            yield members[first].key, parts, members[first].start, end


def damage_at_end(path: Path, end: int) -> str | None:
    """What is wrong, unless at `end`, where the last member stops, the tar has its end mark and nothing after it."""
    if path.stat().st_size < end + BLOCK:
        return f"{path} is truncated: it stops at byte {end} without an end mark; make or copy it again."
    with open(path, "rb") as file:
        file.seek(end)
        if any(file.read(BLOCK)):
            return f"{path} has a corrupt header at byte {end}; make or copy it again."
        while piece := file.read(READ):
            if any(piece):
                return (
                    f"{path} has more after an end mark at byte {end}: its header there is lost, or it is several"
                    " tars in one; make or copy it again."
                )
    return None


def index_tar(path: str | Path) -> ShardIndex:
    """The index of a local tar that another program wrote; ValueError as `examine_tar`."""
    return examine_tar(path).index


def examine_tar(path: str | Path) -> Indexed:
    """Gather the index of a local tar and what training will say of its records.

    Raises ValueError as `scan_tar`, for a key that comes twice, and for a sample whose JSON is no record.
    """
    contents = scan_tar(path)
    found = Indexed(passed=contents.passed)
    seen: set[str] = set()
    for key, parts, start, end in samples_of(path, contents):
        if not is_plain(key):
            raise ValueError(
                f"{path} has a member whose name {ascii(key)} is not UTF-8 or not printable; rename it."
            )
        if key in seen:
            raise ValueError(
                f"Key '{key}' comes twice in {path}; sort or rename its members, or convert the tar with"
                " tools/make_shards.py tars, which finds members that do not lie together."
            )
        seen.add(key)
        try:
            record = found.index.add(key, parts, start, end)
        except ValueError as error:
            raise ValueError(
                f"{path}: {error} Tars of another form, as img2dataset writes them, are converted:"
                " tools/make_shards.py tars."
            ) from None
        for name, _, _ in parts:
            if name != "json" and name not in record["images"]:
                found.passed[f".{name} members, which no record names"] += 1
        try:
            for name, size in zip(record["images"], record["sizes"]):
                if 0 in size and name.split(".")[-1] not in VIDEOS:
                    raise BadSample(f"Its {name} is no picture that can be read.")
            read_json(next(data for name, _, data in parts if name == "json"), once=True)
            found.review.add(record)
        except ValueError as error:  # of which BadSample is one
            found.faults.append(f"{path}: sample '{key}': {error}")
    if not seen:
        raise ValueError(f"{path} holds no sample.")
    return found
