#!/usr/bin/env bash
# Sets up .venv and runs the whole test suite; arguments go to pytest, for example: bash tests/run.sh tests/eval -x
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/setup_venv.sh dev,examples
code=0 python=.venv/bin/python
if (($# == 0)); then  # beside the other tests, which leave cores idle: a compiler of minutes, and a test that waits a lot
    op='from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load(verbose=False)'
    $python -c "$op" >/dev/null 2>&1 &
    said=$(mktemp)
    $python -m pytest -q -rs --timeout 600 tests/multinode/test_hosts.py >"$said" 2>&1 &
    hosts=$!
    set -- --ignore tests/multinode/test_hosts.py
fi
$python -m pytest -q -rs --timeout 600 "$@" || code=$?
if [[ -n ${said:-} ]]; then
    wait "$hosts" || code=$?
    cat "$said"
    rm "$said"
fi
wait  # a compiler that is killed leaves a lock behind, for which the next one would wait
exit "$code"
