"""What is taken from environment variables: a rank, addresses and credentials of stores, data's root, a time-out."""

import glob
import hashlib
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from molmo_ds.config import RunConfig

# variable that holds a whole file -> the name under which the libraries want the file's path
CREDENTIALS = {
    "GOOGLE_APPLICATION_CREDENTIALS_JSON": "GOOGLE_APPLICATION_CREDENTIALS",
    "AWS_CREDENTIALS": "AWS_SHARED_CREDENTIALS_FILE",
}
# scheme of a store that speaks S3 -> (variable of its address, variable of its profile)
S3_LIKE = {
    "s3": ("S3_ENDPOINT_URL", "S3_PROFILE"),
    "weka": ("WEKA_ENDPOINT_URL", "WEKA_PROFILE"),
    "r2": ("R2_ENDPOINT_URL", "R2_PROFILE"),
}
ROOT = "MOLMO_DATA_DIR"
MINUTES = "NCCL_TIMEOUT_MINUTES"
OF_A_RANK = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what every launcher sets
OF_A_HOST = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")


def prepare() -> list[str]:
    """Write credentials that came as text into private files and name them to the libraries; returns what was done.

    Each process of a host calls it: the file's name is a hash of its content, so the first one writes it.
    Raises ValueError for credentials that cannot be read. Nothing of them is ever shown.
    """
    told = []
    for source, target in CREDENTIALS.items():
        text = os.environ.get(source, "")
        if not text.strip():
            continue
        if os.environ.get(target):
            if not os.environ[target].startswith(str(private_folder())):
                told.append(f"{source} is not used: {target} names a file already.")
            continue
        os.environ[target] = str(_written(source, text))
        told.append(f"{target}: a private file with the content of {source}.")
    if os.environ.get("HF_ACCESS_TOKEN") and not os.environ.get("HF_TOKEN"):
        os.environ["HF_TOKEN"] = os.environ["HF_ACCESS_TOKEN"]
        told.append("HF_TOKEN: the value of HF_ACCESS_TOKEN.")
    return told


def rank() -> int:
    """This process's rank by its launcher, 0 without one; ValueError where a launcher's variables are not whole."""
    given = {name: os.environ[name] for name in (*OF_A_RANK, *OF_A_HOST) if name in os.environ}
    for name, value in given.items():
        if name != "MASTER_ADDR" and not (value.isascii() and value.isdigit()):
            raise ValueError(
                f"The variable {name} is {value!r}, but a launcher sets it to a whole number; unset it."
            )
    if "RANK" not in given:
        return 0
    missing = [name for name in OF_A_RANK if name not in given]
    if missing:
        raise ValueError(
            f"The variable RANK is set without {' and '.join(missing)}; start the run by a launcher, which sets all of"
            " them, or unset it for one process."
        )
    if int(given["RANK"]) >= int(given["WORLD_SIZE"]):
        raise ValueError(
            f"The variable RANK is {given['RANK']}, but with WORLD_SIZE={given['WORLD_SIZE']} it must be below that."
        )
    return int(given["RANK"])


def private_folder() -> Path:
    """A folder of this user's below the system's temporary one, which no other user can read."""
    folder = Path(tempfile.gettempdir()) / f"molmo_ds-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not folder.is_dir() or folder.is_symlink() or status.st_uid != os.getuid():
        raise ValueError(f"{folder} belongs to another user; set TMPDIR to a folder of your own.")
    if status.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def _written(source: str, text: str) -> Path:
    if source.endswith("_JSON"):
        try:
            json.loads(text)
        except ValueError:
            raise ValueError(
                f"{source} is not JSON; give the whole text of the key file, not its path."
            ) from None
    elif "[" not in text:
        raise ValueError(
            f"{source} has no [profile]; give the whole text of the credentials file, not its path."
        )
    path = private_folder() / f"{source.lower()}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not path.is_file():
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        with open(temporary, "w", opener=_private) as file:
            file.write(text)
        os.replace(temporary, path)
    return path


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def store_options(scheme: str) -> dict[str, Any]:
    """Options of s3fs for a store that speaks S3: its address and profile, where variables name them.

    Raises ValueError for a store that has no address of its own and was given none.
    """
    address, profile = (os.environ.get(name) for name in S3_LIKE[scheme])
    if scheme != "s3" and not address:
        raise ValueError(
            f"{scheme}:// needs the address of its server; set {S3_LIKE[scheme][0]}, for example to"
            " https://HOST:PORT."
        )
    options = {"endpoint_url": address, "profile": profile}
    return {name: value for name, value in options.items() if value}


def time_limit(given: bool) -> list[str]:
    """The override `timeout_seconds=...` of NCCL_TIMEOUT_MINUTES, unless the setting is `given`."""
    minutes = os.environ.get(MINUTES, "")
    if given or not minutes:
        return []
    try:
        seconds = round(float(minutes) * 60)
    except ValueError:
        seconds = 0
    if seconds < 1:
        raise ValueError(f"{MINUTES}={minutes} is no number of minutes above 0; set it to 30.")
    return [f"timeout_seconds={seconds}"]


def below_root(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """Relative paths of data and weights that are not in the working folder, taken below MOLMO_DATA_DIR.

    Returns the configuration and a sentence for each path that changed.
    """
    root = os.environ.get(ROOT, "")
    if not root:
        return config, []
    told = []

    def look(name: str, path: str) -> str:
        candidate = f"{root.rstrip('/')}/{path}"
        absolute = not path or "://" in path or os.path.isabs(path)
        if absolute or glob.glob(path) or os.path.exists(path):
            return path
        if "://" not in root and not (glob.glob(candidate) or os.path.exists(candidate)):
            return path
        told.append(f"{name}={path} is not in the working folder: {candidate} is taken ({ROOT}).")
        return candidate

    sources = {
        name: replace(source, path=look(f"data.sources.{name}.path", source.path))
        for name, source in config.data.sources.items()
    }
    evaluators = {
        name: replace(one, path=look(f"evaluators.{name}.path", one.path))
        for name, one in config.evaluators.items()
    }
    tokenizer = look("data.tokenizer", config.data.tokenizer)
    weights = config.init_from and look("init_from", config.init_from)
    data = replace(config.data, sources=sources, tokenizer=tokenizer)
    return replace(config, data=data, evaluators=evaluators, init_from=weights), told
