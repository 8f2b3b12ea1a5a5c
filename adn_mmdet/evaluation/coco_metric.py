"""CocoMetric with unrounded results, so that close sub-networks can be ranked."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
from mmdet.datasets.api_wrappers import COCO, COCOeval
from mmdet.evaluation import CocoMetric
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import METRICS


@METRICS.register_module()
class ExactCocoMetric(CocoMetric):
    """mmdet's CocoMetric for ``bbox`` and ``segm``, to the last bit as pycocotools computes them.

    mmdet rounds to 3 decimals and stops at a detector that finds nothing; here such a detector has AP 0. Results are
    named as mmdet's (``bbox_mAP``, ``bbox_mAP_50``, …, ``bbox_AR@100``, …); NaN stands for a size without objects.
    faster-coco-eval does the work where it is installed.
    """

    cat_ids: list[int] | None
    img_ids: list[int] | None

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Evaluate ``(ground truth, prediction)`` pairs, one an image."""
        if not set(self.metrics) <= {'bbox', 'segm'} or self.format_only or self.classwise or not self._coco_api:
            return super().compute_metrics(results)
        self.cat_ids = self.cat_ids or self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        self.img_ids = self.img_ids or self._coco_api.get_img_ids()
        with tempfile.TemporaryDirectory() as folder:
            predictions = [prediction for _, prediction in results]
            files = self.results2json(predictions, self.outfile_prefix or str(Path(folder) / 'results'))
            detections = {metric: mmengine.load(files[metric]) for metric in self.metrics}
        return {
            f'{metric}_{name}': value
            for metric in self.metrics
            for name, value in self._evaluate(metric, detections[metric]).items()
        }

    def _evaluate(self, metric: str, detections: list[dict[str, Any]]) -> dict[str, float]:
        if metric == 'segm':  # sizes are then those of the masks
            for detection in detections:
                detection.pop('bbox')
        summary = io.StringIO()
        with contextlib.redirect_stdout(summary):
            found = _load_detections(self._coco_api, detections)
            coco_eval = self.run_coco_eval(_evaluation_class()(self._coco_api, found, metric))
        MMLogger.get_current_instance().info(f'{metric}\n{summary.getvalue()}')
        most = self.proposal_nums[-1]
        recalls = [f'AR@{number}' for number in self.proposal_nums] + [f'AR_{size}@{most}' for size in 'sml']
        names: Sequence[str] = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l', *recalls)
        return {name: float(v) if v >= 0 else float('nan') for name, v in zip(names, coco_eval.stats)}

    def run_coco_eval(self, coco_eval: COCOeval) -> COCOeval:
        """Let an evaluation compute its 12 numbers (``stats``) with this metric's settings."""
        coco_eval.params.catIds = self.cat_ids
        coco_eval.params.imgIds = self.img_ids
        coco_eval.params.maxDets = list(self.proposal_nums)
        coco_eval.params.iouThrs = self.iou_thrs
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
        return coco_eval


def use_exact_metrics(evaluator: ConfigDict | list[ConfigDict]) -> None:
    """Replace mmdet's CocoMetric in an evaluator's config, in place."""
    for metric in evaluator if isinstance(evaluator, list) else [evaluator]:
        if metric.get('type') in ('CocoMetric', 'mmdet.CocoMetric'):
            metric['type'] = 'ExactCocoMetric'


def _evaluation_class() -> type[COCOeval]:
    """faster-coco-eval's evaluation, the same numbers many times faster; pycocotools' where it is not installed."""
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError:
        return COCOeval

    class FasterCOCOeval(COCOeval_faster):
        """COCOeval_faster, and pycocotools' numbers where the two differ.

        pycocotools divides by tp + fp + 2^-52. In floating point that is another number only where tp = 1 and fp = 0:
        the precision of a class whose best detection is right and whose second best is not.
        """

        # Its own takes the overall AP at the most detections an image, pycocotools' at 100.
        summarize = COCOeval.summarize

        def evaluate(self) -> None:
            recalls = self.params.recThrs
            # Whatever the number of objects n, one more is in (1 / n, 2 / n], where the second best detection counts.
            self.params.recThrs = more = np.union1d(recalls, 2.0 ** np.arange(-24, 2))
            super().evaluate()
            self.params.recThrs = recalls
            second = np.searchsorted(more, 1 / np.maximum(_num_objects(self), 1), side='right')
            precision = self.eval['precision']  # (IoU thresholds, recalls, classes, sizes, max_dets)
            at_second = np.take_along_axis(precision, second[None, None, :, :, None], axis=1)
            precision = np.where((precision == 1) & (at_second < 1), 1 / (1 + np.spacing(1)), precision)
            self.eval['precision'] = precision[:, np.isin(more, recalls)]

    return FasterCOCOeval


def _num_objects(coco_eval: COCOeval) -> np.ndarray:
    """The objects of each class and size that count, (classes, sizes)."""
    params, truth = coco_eval.params, coco_eval.cocoGt
    annotations = truth.loadAnns(truth.getAnnIds(params.imgIds, params.catIds))
    objects = [annotation for annotation in annotations if not annotation['ignore']]
    areas = np.array([annotation['area'] for annotation in objects])[:, None]
    lowest, highest = np.transpose(params.areaRng)
    rows = np.searchsorted(params.catIds, [annotation['category_id'] for annotation in objects])
    numbers = np.zeros((len(params.catIds), len(lowest)), int)
    np.add.at(numbers, rows, (areas >= lowest) & (areas <= highest))
    return numbers


def _load_detections(ground_truth: COCO, detections: list[dict[str, Any]]) -> COCO:
    """``loadRes``, which fails on an empty list."""
    if detections:
        return ground_truth.loadRes(detections)
    empty = COCO()
    empty.dataset = {**{key: ground_truth.dataset[key] for key in ('images', 'categories')}, 'annotations': []}
    empty.createIndex()
    return empty
