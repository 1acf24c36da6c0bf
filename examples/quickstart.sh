#!/usr/bin/env bash
# Trains a small Molmo on pictures of handwritten digits and examines it on scans that it has never seen:
#   bash examples/quickstart.sh [--out DIR] [--ranks N] [--steps N] [--hard]
# The first run installs everything into .venv; a second one continues where the first stopped.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bash "$root/tools/setup_venv.sh" examples
exec "$root/.venv/bin/python" "$root/examples/digits/quickstart.py" "$@"
