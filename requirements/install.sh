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

say "1/3 virtual environment $venv with $("$python" --version)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check)
"${pip[@]}" uv

# uv is three times as fast; pip knows the indexes of a pip.conf, which uv does not read.
install() {
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" "$@" ||
        { say 'uv could not (above): trying pip' && "${pip[@]}" "$@"; }
}

say '2/3 torch, mmengine, mmdet and their needs (about 3 GB, some minutes)'
# The fork has no mmcv-lite: its mmcv is one where its operators are not compiled.
MMCV_WITH_OPS=0 install --requirement "$requirements"

if ! "$venv/bin/python" -c 'import cv2' 2>/dev/null; then
    say 'OpenCV does not import here (no libGL): taking its headless build'
    "$venv/bin/python" -m pip uninstall --quiet --yes opencv-python
    install 'opencv-python-headless<5'
fi

say "3/3 adn_mmdet itself, and mmcv's operators"
install --no-build-isolation --editable '.[dev]'
# For tools/cam.py and docs/results.md. What they ask for has an OpenCV that would overwrite the one that is there.
install --no-deps 'grad-cam==1.5.7' 'ttach==0.0.3'
install --no-deps 'sahi==0.12.8' 'trackers==2.6.1'
"$venv/bin/python" adn_mmdet/ops/place.py
