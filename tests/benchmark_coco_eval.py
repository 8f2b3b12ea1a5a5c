"""Times COCO evaluation alone, by faster-coco-eval against pycocotools: python tests/benchmark_coco_eval.py FILE."""

import copy
import sys
import tempfile
from functools import partial
from pathlib import Path
from unittest.mock import patch

from mmdet.datasets.api_wrappers import COCOeval
from mmengine.logging import MMLogger
from test_evaluation.test_coco_metric import build_metric, perturbed

from adn_mmdet.evaluation import coco_metric
from adn_mmdet.evaluation.latency import interleaved_medians

COPIES, ROUNDS = 8, 7


def main(annotations: Path) -> None:
    """Perturbed detections of every object of an annotation file, evaluated by both; prints medians and ratios."""
    MMLogger.get_instance('benchmark', log_level='WARNING')
    metric = build_metric(annotations)
    metric.cat_ids, metric.img_ids = metric._coco_api.get_cat_ids(), metric._coco_api.get_img_ids()
    predictions = list(perturbed(annotations, copies=COPIES))
    folder = tempfile.TemporaryDirectory()
    files = metric.results2json(predictions, f'{folder.name}/results')
    print(f'{sum(len(image["labels"]) for image in predictions)} detections on {len(predictions)} images')
    backends = {'pycocotools': COCOeval, 'faster-coco-eval': coco_metric._evaluation_class()}
    for name in ('bbox', 'segm'):
        detections = coco_metric.mmengine.load(files[name])

        def evaluate(backend: type, name: str = name, detections: list = detections) -> None:
            with patch.object(coco_metric, '_evaluation_class', lambda: backend):
                metric._evaluate(name, copy.deepcopy(detections))

        seconds = interleaved_medians({key: partial(evaluate, backend) for key, backend in backends.items()}, ROUNDS, 1)
        slow, fast = seconds.values()
        print(f'{name}: pycocotools {slow:.3f} s, faster-coco-eval {fast:.3f} s, {slow / fast:.1f} times faster')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
