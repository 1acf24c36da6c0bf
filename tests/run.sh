#!/usr/bin/env bash
# Sets up .venv and runs the whole test suite; arguments go to pytest, for example: bash tests/run.sh tests/eval -x
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/setup_venv.sh dev,examples
exec .venv/bin/python -m pytest -q "$@"
