"""Compiles the twin's C++ with g++ at its first use; the library is kept in the user's cache, one for each torch."""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp")])


def library() -> Path:
    """The compiled library; ValueError where there is no g++ or it fails, or torch is no CPU build.

    Processes that need it at once wait for the first by flock, which the kernel lifts when a process dies.
    """
    torch = Path(importlib.util.find_spec("torch").origin).parent
    if list(torch.glob("lib/libtorch_cuda*")):
        raise ValueError(
            "The twin of a GPU needs the CPU build of torch; this one has CUDA itself."
        )
    made_of = [importlib.metadata.version("torch"), str(torch)]
    made_of += [path.read_text() for path in SOURCES]
    key = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "molmo_ds" / f"twin-{key}"
    target = folder / "libtwin.so"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_file():
            compile_into(target, torch)
    return target


def compile_into(target: Path, torch: Path) -> None:
    """Compile the sources into `target`, whole or not at all."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise ValueError("The twin of a GPU needs g++; install it (apt-get install g++).")
    partial = target.with_suffix(".partial")
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-w", str(HERE / "twin.cpp")]
    command += [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include"]
    command += [f"-L{torch}/lib", f"-Wl,-rpath,{torch}/lib", "-ltorch_cpu", "-lc10"]
    done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
    if done.returncode:
        first = next((x for x in done.stderr.splitlines() if "error" in x), done.stderr[-300:])
        raise ValueError(f"g++ could not compile the twin of a GPU: {first}")
    os.replace(partial, target)
