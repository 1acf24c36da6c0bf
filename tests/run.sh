#!/usr/bin/env bash
# Sets up .venv and runs the whole test suite; arguments go to pytest, for example: bash tests/run.sh tests/eval -x
# --fast leaves out what takes long, and says what (tests/conftest.py): under 5 minutes on two idle cores.
# --all tests/interop runs exports in the tools of others, each in an environment of its own (interop/environments.py).
set -euo pipefail
cd "$(dirname "$0")/.."
bash tests/needs.sh
bash tools/setup_venv.sh dev,examples
if (($# == 0)); then  # DeepSpeed's op for NVMe takes minutes to compile: beside the first tests, which leave cores idle
    op='import pathlib, deepspeed.ops.op_builder as ops
from molmo_ds.engine.launching.op_locks import drop_stale_locks
drop_stale_locks()
module = ops.AsyncIOBuilder().load(verbose=False)
[path.unlink() for path in pathlib.Path(module.__file__).parent.glob("torch.*")]'  # what precompiled/c++ left
    PATH="$PWD/tests/precompiled:$PATH" nice -n 19 .venv/bin/python -c "$op" >/dev/null 2>&1 &
fi
test=(.venv/bin/python -m pytest -q -rs --timeout 600)
code=0
if [[ $* == "" || $* == --fast ]]; then  # two processes share the files, as many tests leave a core idle
    "${test[@]}" "$@" -m "not alone" --numprocesses 2 --dist loadfile --no-loadscope-reorder || code=$?
    # what counts seconds: beside one other at most, for it mostly waits
    "${test[@]}" "$@" -m alone --numprocesses 2 --dist loadgroup || code=$?
else
    "${test[@]}" "$@" || code=$?
fi
if command -v nvidia-smi >/dev/null && (($# == 0)); then
    "${test[@]}" --gpu tests/ops/test_gpu.py || code=$?
fi
wait  # a compiler that is killed leaves a lock behind, for which the next one would wait
exit "$code"
