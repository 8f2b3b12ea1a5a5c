#!/usr/bin/env bash
# Train in GPUS processes: dist_train.sh CONFIG GPUS [flags of train.py]. The environment is as of mmdet's script; on
# several machines, the same command on each with NNODES, its NODE_RANK, and the first one's MASTER_ADDR and PORT.
# Exit codes as train.py's: 75 on every machine after a SIGTERM or SIGUSR1 to this process on any, when --resume goes on.
set -euo pipefail
usage='usage: dist_train.sh CONFIG GPUS [flags of train.py]'
tools=$(dirname "$0")
exec python "$tools/_torchrun.py" --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}" --nproc-per-node "${2:?$usage}" \
    "$tools/train.py" "${1:?$usage}" --launcher pytorch "${@:3}"
