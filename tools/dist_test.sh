#!/usr/bin/env bash
# Test in GPUS processes: dist_test.sh CONFIG CHECKPOINT GPUS [flags of test.py]. The environment is as of mmdet's script;
# on several machines, the same command on each with NNODES, its NODE_RANK, and the first one's MASTER_ADDR and PORT.
# Exit codes as test.py's.
set -euo pipefail
usage='usage: dist_test.sh CONFIG CHECKPOINT GPUS [flags of test.py]'
tools=$(dirname "$0")
exec python "$tools/_torchrun.py" --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}" --nproc-per-node "${3:?$usage}" \
    "$tools/test.py" "${1:?$usage}" "${2:?$usage}" --launcher pytorch "${@:4}"
