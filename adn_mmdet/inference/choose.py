"""What a depth is worth: its AP where it was measured, else how many blocks it runs."""

from __future__ import annotations

import os

from ..backbones import AdaptiveDepthBackbone
from ..errors import UserError
from ..results.rows import of_weights, read_sub_nets
from ..skip_config import SkipConfig


def by_depth(backbone: AdaptiveDepthBackbone) -> dict[SkipConfig, float]:
    """For each code, minus the number of blocks that it skips."""
    return {code: -float(len(backbone.skipped_blocks(code))) for code in SkipConfig.all(backbone.num_stages)}


def by_accuracy(
    path: str | os.PathLike[str], checkpoint_sha256: str | None, num_stages: int, metric: str = 'bbox_mAP'
) -> dict[SkipConfig, float]:
    """For each code that was tested with these weights, its AP.

    Args:
        path: a ``sub_nets.json`` of tools/test.py, or the work folder that holds one.
        checkpoint_sha256: of the weights that are to run.
        num_stages: letters of a code.
        metric: which of the file's metrics.

    Raises:
        UserError: there is no such file, or it is of other weights, of recalibrated norms, or has no such metric.
    """
    rows = of_weights(read_sub_nets(path), checkpoint_sha256).rows
    rows = [row for row in rows if row['skip'] is not None and row.get(metric) is not None]
    if not rows:
        raise UserError(f'{path} has no {metric} of any depth: test them with tools/test.py --skip all')
    return {SkipConfig.parse(row['skip'], num_stages): row[metric] for row in rows}
