"""What an exported file in float16 or int8 loses: its AP beside that of the file in float32."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ..export.artifact import opened
from ..results.rows import METRICS
from .evaluate import evaluate_sub_nets

MOST_LOST = 0.01  # AP, above which it is a warning


def compare_ap(
    cfg: Config, exact: str | os.PathLike[str], smaller: str | os.PathLike[str]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Test two exported files of one detector at the super-net and the base-net, and say what the second one loses.

    Args:
        cfg: the config that both were exported from; its test set is used.
        exact: the file in float32.
        smaller: the other file.

    Returns:
        By skip code and metric (``bbox_mAP``, ``segm_mAP``) the AP of both. A line of each is logged, as a warning
        where more than MOST_LOST is lost.

    Raises:
        UserError: as :func:`~adn_mmdet.evaluation.evaluate.evaluate_sub_nets`.
    """
    codes = ','.join((opened(exact).codes[0], opened(exact).codes[-1]))
    rows: list[Mapping[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:  # of both: mmengine's visualizer goes on writing to the first one's
        for name, path in (('exact', exact), ('smaller', smaller)):
            own = copy.deepcopy(cfg)
            own.work_dir = os.path.join(folder, name)
            rows.append({row['skip']: row for row in evaluate_sub_nets(own, path, codes)})
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for code, row in rows[0].items():
        both = {name: (row[name], rows[1][code][name]) for name in METRICS if row.get(name) is not None}
        found[code] = both
        for name, (before, after) in both.items():
            lost = before - after
            text = f'{code} {METRICS[name]}: {100 * after:.2f}, in float32 {100 * before:.2f}'
            if lost > MOST_LOST:
                text += f'; it loses more than {100 * MOST_LOST:g}'
            print_log(text, 'current', logging.WARNING if lost > MOST_LOST else logging.INFO)
    return found
