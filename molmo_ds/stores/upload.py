"""One file goes to a store in parts, several at once, and resumes after a kill with the parts that are missing.

A journal next to the file, `.NAME.upload`, says which parts are there. The object appears when its last part has come:
S3 puts parts together by a multipart upload, Google's store composes objects.
"""

import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from molmo_ds import files
from molmo_ds.environment import S3_LIKE
from molmo_ds.files import Remote, retry

PART = 32 << 20  # bytes; S3 wants 5 MiB or more
MOST_PARTS = 9000  # S3 allows 10,000
WORKERS = 4  # parts that a process sends at once
COMPOSED = 32  # objects that Google's store puts together at once


class Parts(Protocol):
    """How a store takes an object in parts."""

    def begin(self) -> str:
        """A name for this upload."""

    def put(self, upload: str, number: int, data: bytes) -> str:
        """Send part `number`, from 1 on; what the store calls it."""

    def finish(self, upload: str, tags: list[str]) -> None:
        """Put the parts together, in order."""


class S3Parts:
    """A multipart upload. Parts of one that is never finished stay until the bucket's lifecycle rule removes them."""

    def __init__(self, target: Remote) -> None:
        self.fs = files.filesystem(target.url)
        bucket, key, _ = self.fs.split_path(target.url)
        self.place = {"Bucket": bucket, "Key": key}

    def begin(self) -> str:
        """See Parts."""
        return self.fs.call_s3("create_multipart_upload", **self.place)["UploadId"]

    def put(self, upload: str, number: int, data: bytes) -> str:
        """See Parts."""
        part = {"UploadId": upload, "PartNumber": number, "Body": data}
        return self.fs.call_s3("upload_part", **self.place, **part)["ETag"]

    def finish(self, upload: str, tags: list[str]) -> None:
        """See Parts."""
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        self.fs.call_s3(
            "complete_multipart_upload",
            **self.place,
            UploadId=upload,
            MultipartUpload={"Parts": parts},
        )


class ComposedParts:
    """Objects below `TARGET.parts/UPLOAD`, composed and then deleted."""

    def __init__(self, target: Remote) -> None:
        self.fs = files.filesystem(target.url)
        self.target = target

    def begin(self) -> str:
        """See Parts."""
        return uuid.uuid4().hex

    def put(self, upload: str, number: int, data: bytes) -> str:
        """See Parts."""
        part = Remote(f"{self.target}.parts/{upload}/{number:05d}")
        part.write_bytes(data)
        return part.url

    def finish(self, upload: str, tags: list[str]) -> None:
        """See Parts."""
        growing = f"{self.target}.parts/{upload}/whole"
        self.fs.merge(growing, tags[:COMPOSED])
        for first in range(COMPOSED, len(tags), COMPOSED - 1):
            self.fs.merge(growing, [growing, *tags[first : first + COMPOSED - 1]])
        self.fs.cp_file(growing, self.target.url)
        self.fs.rm(f"{self.target}.parts", recursive=True)


def parts_of(target: Remote) -> Parts | None:
    """How the store of a URL takes parts; None where an object must come in one piece."""
    scheme = target.url.split("://")[0]
    if scheme in S3_LIKE:
        return S3Parts(target)
    return ComposedParts(target) if scheme in files.GOOGLE else None


def upload(file: Path, target: Remote) -> None:
    """Make `target` a copy of `file`, which must not change meanwhile.

    Raises OSError where the store does not take it in ATTEMPTS tries; the next call sends only what is missing.
    """
    size = file.stat().st_size
    journal = Journal(file, target)
    parts = parts_of(target) if size > PART else None
    if journal.done:
        return
    if parts is None:
        _put_whole(file, target)
    else:
        _put_parts(file, target, parts, journal)
    there = files.size(target.url)
    if there != size:
        raise OSError(f"{target} has {there} bytes instead of {size}")
    journal.add({"done": True})


def _put_whole(file: Path, target: Remote) -> None:
    if file.stat().st_size <= PART:
        target.write_bytes(file.read_bytes())
        return
    fs = files.filesystem(target.url)
    retry(lambda: fs.put_file(str(file), target.url), target.url, "written")


def _put_parts(file: Path, target: Remote, parts: Parts, journal: "Journal") -> None:
    size = file.stat().st_size
    length = max(PART, -(-size // MOST_PARTS))
    count = -(-size // length)
    if journal.upload is None:
        journal.begin(retry(parts.begin, target.url, "written"))

    def put(number: int) -> None:
        with open(file, "rb") as stream:
            stream.seek((number - 1) * length)
            data = stream.read(length)
        tag = retry(lambda: parts.put(journal.upload, number, data), target.url, "written")
        journal.add({"part": number, "tag": tag})

    missing = [number for number in range(1, count + 1) if number not in journal.tags]
    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(put, missing))
        tags = [journal.tags[number] for number in range(1, count + 1)]
        retry(lambda: parts.finish(journal.upload, tags), target.url, "written")
    except FileNotFoundError:  # the store has forgotten this upload, or finished it before the kill
        if not journal.resumed:
            raise
        journal.forget()
        _put_parts(file, target, parts, journal)


class Journal:
    """The parts of a file that were sent: JSON lines next to it, valid for this file and this target only."""

    def __init__(self, file: Path, target: Remote) -> None:
        self.path = file.with_name(f".{file.name}.upload")
        status = file.stat()
        self.head = {"target": target.url, "bytes": status.st_size, "changed": status.st_mtime_ns}
        self.lock = threading.Lock()
        self.forget(keep_file=True)
        lines = self._read()
        if not lines or {name: lines[0].get(name) for name in self.head} != self.head:
            self.forget()
            self.add(self.head)
            return
        for line in lines[1:]:
            self._take(line)
        self.resumed = self.upload is not None

    def begin(self, upload: str) -> None:
        """Note the name of an upload."""
        self.add({"upload": upload})

    def add(self, line: dict[str, Any]) -> None:
        """Note a line, on the disk before this returns to the caller."""
        with self.lock, open(self.path, "a") as stream:
            stream.write(json.dumps(line) + "\n")
            self._take(line)

    def forget(self, keep_file: bool = False) -> None:
        """As if nothing had been sent."""
        self.upload: str | None = None
        self.tags: dict[int, str] = {}
        self.done = False
        self.resumed = False
        if not keep_file and self.path.exists():
            self.path.unlink()
            self.add(self.head)

    def _take(self, line: dict[str, Any]) -> None:
        self.upload = line.get("upload", self.upload)
        self.done = line.get("done", self.done)
        if "part" in line:
            self.tags[line["part"]] = line["tag"]

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        lines = []
        for text in self.path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:  # cut off by a kill
                break
        return lines
