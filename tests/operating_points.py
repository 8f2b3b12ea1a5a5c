"""Files of a run that was tested and timed at six operating points."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from adn_mmdet.results.intervals import pack

APS = {
    ('FFFF', 640, 100): 0.40,
    ('TFFF', 640, 100): 0.399,  # as good as FFFF on these images
    ('TTFF', 640, 100): 0.35,  # below the line
    ('TTTT', 640, 100): 0.34,
    ('FFFF', 480, 50): 0.38,
    ('TTTT', 480, 50): 0.31,
}
MS = dict(zip(APS, (40.0, 36.0, 34.0, 20.0, 24.0, 10.0)))


def put_run(folder: Path, sure: bool = True, **changes: Any) -> Path:
    """Write a ``sub_nets.json`` of six points, with what they were resampled to."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 0.05, 200)
    about = dict(name='net', config='net.py', checkpoint_sha256='w', annotations_sha256='a', classes=['cell'],
                 num_images=50, input_size=[640, 640], size=640, proposals=100)  # fmt: skip
    rows = []
    for (skip, size, proposals), ap in APS.items():
        aps = ap + hard + rng.normal(0, 0.005, 200)
        row = dict(skip=skip, size=size, proposals=proposals, bbox_mAP=ap, gmacs=MS[skip, size, proposals] * 2)
        rows.append(row | (dict(bbox_mAP_resampled=pack(aps)) if sure else {}) | changes)
    folder.mkdir()
    (folder / 'sub_nets.json').write_text(json.dumps(dict(schema=2, run=about, rows=rows)))
    return folder


def put_latency(path: Path, places: Iterable[tuple[str, int, int]] = APS, **changes: Any) -> Path:
    about = dict(name='net', checkpoint_sha256='w', device='some CPU', threads=1, batch_size=1, input_size=[640, 640],
                 amp=False, channels_last=False, compile=False)  # fmt: skip
    rows = [dict(skip=skip, size=size, proposals=number, ms=MS[skip, size, number]) | changes
            for skip, size, number in places]  # fmt: skip
    path.write_text(json.dumps(dict(schema=2, kind='latency', run=about, rows=rows)))
    return path
