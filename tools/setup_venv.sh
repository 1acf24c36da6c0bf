#!/usr/bin/env bash
# Makes .venv in the repository and installs molmo_ds with the given extras: bash tools/setup_venv.sh examples,dev
# Versions are pinned by constraints.txt. A second call with nothing changed returns at once.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-examples}

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "molmo_ds needs Python 3.11 or newer and '$python' is not; name one with PYTHON=/path/to/python3.11." >&2
    exit 1
fi
stamp=.venv/.molmo_ds-${extras//,/-}
wanted=$(cat setup.cfg pyproject.toml constraints.txt | cksum)" $PWD"
[[ -f $stamp && $(<"$stamp") == "$wanted" ]] && exit 0

if [[ ! -x .venv/bin/python ]] && ! "$python" -m venv .venv; then
    rm -rf .venv
    echo "'$python -m venv' failed; on Debian and Ubuntu the package python3-venv holds what it lacks." >&2
    exit 1
fi
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)
install=(install --no-compile)  # Python compiles the modules that are imported; all of them take half of the time
torch=$(grep '^torch==' constraints.txt)

# PyPI's torch for Linux brings gigabytes of CUDA libraries. Without a GPU the CPU build is wanted: pip's own choice if
# that is one already (a mirror may offer it), else the one of PyTorch's CPU index.
if ! command -v nvidia-smi >/dev/null && ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    report=$("${pip[@]}" install --dry-run --no-deps --report - "$torch")
    if grep -qE '"(nvidia|cuda)[a-z0-9_-]*[^a-z0-9_-]' <<<"$report"; then
        echo "Installing the CPU build of $torch ..."
        "${pip[@]}" "${install[@]}" "$torch" --index-url https://download.pytorch.org/whl/cpu ||
            echo "PyTorch's CPU index cannot be reached; the build with CUDA libraries is installed instead." >&2
    fi
fi
echo "Installing molmo_ds[$extras] into .venv (a few minutes the first time) ..."
"${pip[@]}" "${install[@]}" -e ".[$extras]" -c constraints.txt
echo "$wanted" > "$stamp"
