"""Bytes of any picture to what shards hold: JPEG, PNG, WebP and MP4 as they are, every other format as PNG."""

import errno
import importlib.util
import io
from collections import Counter
from pathlib import Path

from PIL import Image

from molmo_ds.data.decode import BadSample, count_pictures, load_image, read_size
from molmo_ds.data.sample.conversation import is_plain
from molmo_ds.data.video import film_kind, video_size

SUFFIXES = (
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "png",
    "webp",
    "gif",
    "bmp",
    "dib",
    "tif",
    "tiff",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
)
SUFFIXES += (
    "avif",
    "jp2",
    "j2k",
    "tga",
    "ico",
    "psd",
    "heic",
    "heif",
    "jxl",
    "svg",
    "mp4",
    "m4v",
    "mov",
    "webm",
    "mkv",
)
# what is taken for a picture or a video by its name; some of them end in a sentence
SUFFIXES += ("avi",)
PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MAGIC = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"))
_GONE = (
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EACCES,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
)


def is_picture(name: str) -> bool:
    """Whether a file's or member's name is that of a picture or a video."""
    return "." in name and name.rsplit(".", 1)[-1].lower() in SUFFIXES


def as_part(data: bytes, notes: Counter[str], decode: bool = True) -> tuple[str, bytes]:
    """(jpg | png | webp | mp4 | webm, bytes) of a picture; what is changed or left out is counted in `notes`.

    With `decode` every picture is decoded once. Raises BadSample for what is no whole picture.
    """
    if not data:
        raise BadSample("A picture is empty (0 bytes).")
    film = film_kind(data)
    if film is not None:
        if decode and importlib.util.find_spec("av") is not None:
            video_size(data)
        else:
            notes["videos that were not decoded (that needs the package av)"] += 1
        return film, data
    kind = next((kind for magic, kind in MAGIC if data.startswith(magic)), None)
    kind = "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else kind
    try:
        read_size(data)
        pixels = load_image(data) if decode or kind is None else None
    except BadSample as error:
        if kind is not None:
            raise
        raise BadSample(
            f"A picture is neither JPEG, PNG, WebP nor MP4, nor can it be made PNG. {error}"
        ) from None
    # a JPEG's second picture is a thumbnail or the other eye's
    if kind != "jpg" and count_pictures(data) > 1:
        notes["animations or files of many pages, of which only the first picture is used"] += 1
    if kind is not None:
        return kind, data
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    notes["pictures of other formats, written as PNG"] += 1
    return "png", buffer.getvalue()


def read_file(path: str | Path) -> bytes:
    """A file's bytes; BadSample names one that is not there, is no file or may not be read."""
    try:
        if not Path(path).is_file() and Path(path).exists():
            raise BadSample(f"{printable(path)} is no file.")
        return Path(path).read_bytes()
    except OSError as error:
        if error.errno not in _GONE:
            raise
        raise BadSample(f"{printable(path)} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # a null byte inside the name
        if isinstance(error, BadSample):
            raise
        raise BadSample(f"{printable(path)} is no file name: {error}.") from None


def read_text(path: str | Path) -> str:
    """A text file in UTF-8 (or UTF-16 with its mark); BadSample names the file and the byte that is wrong."""
    return to_text(read_file(path), printable(path))


def to_text(data: bytes, where: str) -> str:
    """Bytes in UTF-8 (or UTF-16 with its mark), a byte-order mark dropped; BadSample names `where` and the byte."""
    coding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(coding)
    except UnicodeDecodeError as error:
        packer = next((name for magic, name in PACKERS.items() if data.startswith(magic)), None)
        if packer:
            raise BadSample(f"{where} is packed by {packer}; unpack it first.") from None
        byte = error.object[error.start]
        raise BadSample(
            f"{where} is not UTF-8 (byte {error.start} is 0x{byte:02x}); save it as UTF-8 (iconv -f latin1 -t utf8)."
        ) from None


def printable(path: object) -> str:
    """A path for a sentence; bytes that are no UTF-8 are escaped."""
    text = str(path)
    return text if is_plain(text) else ascii(text)
