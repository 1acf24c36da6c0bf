#!/usr/bin/env bash
# Rehearses a recipe before its real launch, and says what the real run lacks and costs:
#   bash examples/rehearse.sh molmo_7b_d [--gpus 8] [--gpu-memory 80] [--mixture 3.2-synthetic] [--only-check]
# Without a .venv here it makes one first; one that is there is left as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ -x .venv/bin/molmo-ds ]] || bash tools/setup_venv.sh examples
exec .venv/bin/python -c 'from molmo_ds.cli import main; main()' rehearse "$@"
