#!/usr/bin/env bash
# Creates a virtual environment that runs the package: install.sh VENV REQUIREMENTS. Called by `make setup`.
set -euo pipefail
venv=$1 requirements=$2

say() { echo "[setup] $*"; }

python=''
for candidate in python3.10 python3.11 python3.12 python3; do
    # A name may exist without an interpreter behind it, or be another version.
    if "$candidate" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    say 'needs Python 3.10, 3.11 or 3.12 (with its venv module), and found none: install one'
    exit 1
fi

say "1/4 virtual environment $venv with $("$python" --version)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check)
"${pip[@]}" --upgrade pip

say '2/4 torch, mmengine, mmdet and their needs (about 3 GB, some minutes)'
"${pip[@]}" --requirement <(grep -vE '^(onedl-)?mmcv' "$requirements")

# mmcv builds CUDA ops where torch sees a GPU and the CUDA compiler is there; FORCE_CUDA=1 builds them without a GPU.
if [ "${FORCE_CUDA:-0}" != 1 ] && ! command -v nvcc >/dev/null; then
    export CUDA_VISIBLE_DEVICES=''
fi
say "3/4 mmcv with its compiled ops: about 20 minutes on 2 cores, longer with CUDA, seconds where pip has it cached"
MMCV_WITH_OPS=1 CFLAGS="-g0 ${CFLAGS:-}" MAX_JOBS=${MAX_JOBS:-$(nproc)} \
    "${pip[@]}" --no-build-isolation --requirement "$requirements"

if ! "$venv/bin/python" -c 'import cv2' 2>/dev/null; then
    say 'OpenCV does not import here (no libGL): taking its headless build'
    "$venv/bin/python" -m pip uninstall --quiet --yes opencv-python
    "${pip[@]}" 'opencv-python-headless<5'
fi

say '4/4 adn_mmdet itself'
"${pip[@]}" --no-build-isolation --editable '.[dev]'
