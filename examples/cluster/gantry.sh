#!/usr/bin/env bash
# Ai2's Beaker, with beaker-gantry (pip install beaker-gantry); NODES hosts of eight GPUs:
#   NODES=2 bash examples/cluster/gantry.sh WORKSPACE BUDGET CLUSTER CONFIG.yaml out=weka://bucket/run key=value ...
# Secrets of the workspace become variables: those of stores as raw JSON or INI text, which the run writes to private files.
set -euo pipefail
if (($# < 4)); then
    echo "usage: [NODES=1] bash $0 WORKSPACE BUDGET CLUSTER CONFIG.yaml [key=value ...]" >&2
    exit 2
fi
workspace=$1 budget=$2 cluster=$3
shift 3
nodes=${NODES:-1}
several=()
if ((nodes > 1)); then
    several=(--replicas "$nodes" --leader-selection --host-networking --propagate-failure --propagate-preemption
        --synchronized-start-timeout 90m)
fi
# shellcheck disable=SC2016  # the variables are those of each host
exec gantry run --yes --workspace "$workspace" --budget "$budget" --cluster "$cluster" --gpus 8 --shared-memory 16GiB \
    --allow-dirty --no-logs --preemptible "${several[@]}" \
    --env PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True --env OMP_NUM_THREADS=8 --env NCCL_TIMEOUT_MINUTES=30 \
    --env NCCL_SOCKET_IFNAME=ib --env NCCL_IB_HCA='^=mlx5_bond_0' --env NODES="$nodes" \
    --env-secret HF_TOKEN=HF_TOKEN --env-secret WANDB_API_KEY=WANDB_API_KEY --env-secret AWS_CREDENTIALS=AWS_CREDENTIALS \
    --env-secret GOOGLE_APPLICATION_CREDENTIALS_JSON=GOOGLE_APPLICATION_CREDENTIALS_JSON \
    --env-secret WEKA_ENDPOINT_URL=WEKA_ENDPOINT_URL --env WEKA_PROFILE=WEKA \
    --install "bash tools/setup_venv.sh gpu" -- \
    bash -c 'exec .venv/bin/torchrun --nnodes "$NODES" --node-rank "${BEAKER_REPLICA_RANK:-0}" --nproc-per-node 8 \
        --rdzv-backend static --rdzv-endpoint "${BEAKER_LEADER_REPLICA_HOSTNAME:-localhost}:29401" \
        --rdzv-conf read_timeout=600 -m molmo_ds.train "$@"' train "$@"
