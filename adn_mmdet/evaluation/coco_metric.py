"""CocoMetric with unrounded results, so that close sub-networks can be ranked."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.datasets.api_wrappers import COCO, COCOeval
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS as DETECTION_METRICS
from mmengine.logging import MMLogger, print_log
from mmengine.registry import METRICS
from pycocotools import mask as coco_mask
from terminaltables import AsciiTable

from ..datasets.parsed import as_coco, read_annotations
from ..errors import UserError
from .resampling import draws, find_matches, mean_of_known

AP_AT = 100  # detections an image for the overall AP, as COCO defines it
AT_ONCE = 100_000  # detections that are evaluated together, where several categories have more: a matter of memory
APS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
Prediction = dict[str, Any]


@METRICS.register_module()
class ExactCocoMetric(CocoMetric):
    """mmdet's CocoMetric, unrounded, of the images that were tested.

    Its numbers are pycocotools', NaN where that has -1: for a size without objects, or an IoU threshold that is not
    among ``iou_thrs``. mmdet rounds to 3 decimals, stops at a detector that finds nothing (here its AP is 0), and
    counts the objects of images that were left out as missed.

    Results are named as mmdet's: ``bbox_mAP``, ``bbox_mAP_50``, …, and beside them ``bbox_AR@100``, …, or what
    ``metric_items`` asks for. The overall AP is at 100 detections an image, all else at the most of ``proposal_nums``.
    ``classwise`` adds ``<class>_precision``; of several metrics each its own, ``bbox_<class>_precision``.
    faster-coco-eval does the work where it is installed.

    Where ``num_draws`` is set, ``resampled`` holds the overall AP, by name, of so many test sets that were drawn from
    the images of the last evaluation; see :mod:`~adn_mmdet.evaluation.resampling`.

    Raises:
        UserError: ``proposal_fast``, ``metric_items`` that there are not, or predictions that cannot be evaluated.
    """

    _coco_api: Any
    dataset_meta: dict[str, Any]
    iou_thrs: np.ndarray
    cat_ids: list[int] | None
    img_ids: list[int] | None
    num_draws = 0

    def __init__(self, ann_file: str | None = None, **kwargs: Any) -> None:
        # A local file is read here, since it may have been read before.
        is_local = ann_file is not None and os.path.isfile(ann_file) and not kwargs.get('sort_categories')
        super().__init__(None if is_local else ann_file, **kwargs)
        if ann_file is not None and is_local:
            self._coco_api = read_annotations(ann_file)
        self.iou_thrs = np.atleast_1d(self.iou_thrs).astype(float)
        if 'proposal_fast' in self.metrics:
            raise UserError("proposal_fast is mmdet's own count, which takes images for sorted: use proposal")
        unknown = set(self.metric_items or ()) - {*APS, *self._recalls()}
        if unknown:
            known = ', '.join((*APS, *self._recalls()))
            raise UserError(f'metric_items should be some of {known}, but got {", ".join(sorted(unknown))}')

    def _recalls(self) -> dict[str, tuple[int, int]]:
        """By name: the index of a range of sizes, and detections an image."""
        most = max(self.proposal_nums)
        sizes = {f'AR_{size}@{most}': (index, most) for index, size in enumerate('sml', 1)}
        return {f'AR@{number}': (0, number) for number in self.proposal_nums} | sizes

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Evaluate ``(ground truth, prediction)`` pairs, one an image."""
        if not results:
            raise UserError('there is nothing to evaluate: no image was tested')
        self.resampled: dict[str, np.ndarray] = {}
        self.results.clear()  # mmengine's evaluate hands on a copy, and clears these when all is done
        truths, predictions = zip(*results)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            if self._coco_api is None:
                self._coco_api = COCO(self.gt_to_coco_json(truths, self.outfile_prefix or f'{folder}/results'))
            self._number_anew([prediction['img_id'] for prediction in predictions])
            if self.outfile_prefix:
                self.results2json(predictions, self.outfile_prefix)
            found = {} if self.format_only else {name: self._evaluate(name, predictions) for name in self.metrics}
        return {name: value for numbers in found.values() for name, value in numbers.items()}

    def _evaluate(self, metric: str, predictions: Sequence[Prediction]) -> dict[str, float]:
        parts, drawn_aps = [], []
        for labels in self._labels_at_once(predictions, metric):
            evaluation = self.accumulate(evaluation_class(), self.numbered(predictions, metric, labels), metric, labels)
            parts.append(evaluation.eval)
            if self.num_draws and metric != 'proposal':
                drawn_aps += self._drawn_aps(evaluation)
        if drawn_aps:
            self.resampled[f'{metric}_mAP'] = mean_of_known(drawn_aps)
        precision = np.concatenate([part['precision'] for part in parts], axis=2)
        recall = np.concatenate([part['recall'] for part in parts], axis=1)
        numbers = self._aps(precision) | {
            name: _mean(recall[:, :, size, self._counts.index(number)])
            for name, (size, number) in self._recalls().items()
        }
        if metric == 'proposal':
            return {name: numbers[name] for name in self.metric_items or self._recalls()}
        of_classes = self._classwise(precision, metric) if self.classwise else {}
        return {f'{metric}_{name}': numbers[name] for name in self.metric_items or numbers} | of_classes

    def _drawn_aps(self, evaluation: COCOeval) -> list[np.ndarray]:
        """The AP of each category on each drawn test set."""
        drawn, recalls = draws(len(self._numbers), self.num_draws), evaluation.params.recThrs
        matches = find_matches(evaluation, self._truth.dataset, evaluation.cocoDt.dataset, AP_AT)
        return [category.average_precision(drawn, recalls) for category in matches]

    def _labels_at_once(self, predictions: Sequence[Prediction], metric: str) -> list[np.ndarray]:
        """All labels, in groups of about AT_ONCE detections; categories do not bear on each other, but in proposals."""
        labels = np.arange(len(self._truth.dataset['categories']))
        if metric == 'proposal' or not len(labels):
            return [labels]
        each = np.array([np.bincount(np.asarray(p['labels'], int), minlength=len(labels)) for p in predictions])
        groups = each.sum(0).cumsum() // AT_ONCE
        return [labels[groups == group] for group in np.unique(groups)]

    def _number_anew(self, tested: list[Any]) -> None:
        """Let the annotations of the tested images have ids from 1 on, in the order of the old ones.

        Evaluations take ids for 64-bit integers, or even floats, and an id of 0 for no object.
        """
        if self.img_ids == tested:
            return
        api, classes = self._coco_api, self.dataset_meta['classes']
        self.img_ids, self.cat_ids = tested, api.get_cat_ids(cat_names=classes)
        self._numbers = {img_id: number for number, img_id in enumerate(sorted(set(tested)), 1)}
        names = {category['name'] for category in api.cats.values()}
        unknown = [f'image id {img_id}' for img_id in self._numbers if img_id not in api.imgs]
        unknown += [f'class {name}' for name in classes if name not in names]
        if unknown:
            raise UserError(
                f"the evaluator's annotations lack {len(unknown)} tested images or classes, the first is {unknown[0]}: "
                'ann_file of the evaluator and of the data set should be the same'
            )
        categories = {cat_id: number for number, cat_id in enumerate(self.cat_ids, 1)}
        things: list[dict[str, Any]] = []
        for img_id, number in self._numbers.items():
            for thing in api.imgToAnns.get(img_id, ()):
                if category := categories.get(thing['category_id']):
                    things.append(thing | {'id': len(things) + 1, 'image_id': number, 'category_id': category})
        images = [api.imgs[img_id] | {'id': number} for img_id, number in self._numbers.items()]
        rows = [api.cats[cat_id] | {'id': number} for cat_id, number in categories.items()]
        self._truth = as_coco({'images': images, 'categories': rows, 'annotations': things})

    @property
    def _counts(self) -> list[int]:
        """Detections an image, as evaluations have them."""
        return sorted({AP_AT, *self.proposal_nums})

    def numbered(self, predictions: Sequence[Prediction], metric: str, labels: np.ndarray) -> COCO:
        """Predictions of some labels as pycocotools' loadRes would read them from mmdet's files."""
        if metric == 'segm' and not all('masks' in prediction for prediction in predictions):
            raise UserError('the detector predicts no masks: leave segm out of the metric')
        categories = [category['id'] for category in self._truth.dataset['categories']]
        things: list[dict[str, Any]] = []
        for prediction in predictions:
            scores, own = prediction['scores'], np.asarray(prediction['labels'], int)
            chosen = np.flatnonzero(np.isin(own, labels))
            if metric == 'segm':  # sizes are then those of the masks
                scores, masks = prediction.get('mask_scores', scores), prediction['masks']
                shapes = [{'segmentation': masks[i], 'area': float(coco_mask.area(masks[i]))} for i in chosen]
            else:
                boxes = np.array(prediction['bboxes'], float).reshape(-1, 4)[chosen]
                boxes[:, 2:] -= boxes[:, :2]
                shapes = [{'bbox': box, 'area': box[2] * box[3]} for box in boxes.tolist()]
            for index, shape in zip(chosen, shapes):
                ids = dict(id=len(things) + 1, image_id=self._numbers[prediction['img_id']])
                kind = dict(category_id=categories[own[index]], score=float(scores[index]), iscrowd=0)
                things.append(ids | shape | kind)
        return as_coco(self._truth.dataset | {'annotations': things})

    def accumulate(self, kind: type[COCOeval], found: COCO, metric: str, labels: np.ndarray) -> COCOeval:
        """Run an evaluation, of either library, with this metric's settings, of some labels."""
        evaluation = kind(self._truth, found, 'segm' if metric == 'segm' else 'bbox')
        evaluation.params.useCats = int(metric != 'proposal')
        evaluation.params.catIds = [number + 1 for number in labels.tolist()]
        evaluation.params.maxDets = self._counts
        evaluation.params.iouThrs = self.iou_thrs
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation

    def _aps(self, precision: np.ndarray) -> dict[str, float]:
        """The average precisions of (IoU thresholds, recalls, classes, sizes, counts)."""
        counts = self._counts
        overall, most = precision[..., counts.index(AP_AT)], precision[..., counts.index(max(self.proposal_nums))]
        at = [most[np.isclose(self.iou_thrs, threshold), ..., 0] for threshold in (0.5, 0.75)]
        return dict(zip(APS, map(_mean, (overall[..., 0], *at, *(most[..., size] for size in (1, 2, 3))))))

    def _classwise(self, precision: np.ndarray, metric: str) -> dict[str, float]:
        names = [category['name'] for category in self._truth.dataset['categories']]
        aps = {name: self._aps(precision[:, :, index : index + 1]) for index, name in enumerate(names)}
        rows = [[name, *(f'{value:.3f}' for value in numbers.values())] for name, numbers in aps.items()]
        MMLogger.get_current_instance().info(f'{metric}\n{AsciiTable([["category", *APS], *rows]).table}')
        before = f'{metric}_' if len(self.metrics) > 1 else ''
        return {f'{before}{name}_precision': numbers['mAP'] for name, numbers in aps.items()}


def _mean(numbers: np.ndarray) -> float:
    """The mean of what there is; pycocotools writes -1 where there is nothing."""
    there = numbers[numbers > -1]
    return float(there.mean()) if there.size else float('nan')


def evaluation_class() -> type[COCOeval]:
    """faster-coco-eval's evaluation, the same numbers many times faster; pycocotools' where it is not installed."""
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError:
        return COCOeval
    return COCOeval_faster


def use_exact_metrics(evaluator: Any) -> None:
    """Replace mmdet's CocoMetric in an evaluator's config, in place, and say so."""
    if isinstance(evaluator, (list, tuple)):
        for metric in evaluator:
            use_exact_metrics(metric)
    elif isinstance(evaluator, dict) and 'metrics' in evaluator:
        use_exact_metrics(evaluator['metrics'])
    elif isinstance(evaluator, dict):
        kind = evaluator.get('type')
        if (DETECTION_METRICS.get(kind) if isinstance(kind, str) else kind) is CocoMetric:
            evaluator['type'] = 'ExactCocoMetric'
            print_log('CocoMetric is replaced by ExactCocoMetric: its numbers, unrounded', 'current')
    elif type(evaluator) is CocoMetric:
        print_log('CocoMetric rounds to 3 decimals: use ExactCocoMetric to rank close sub-networks', 'current')
