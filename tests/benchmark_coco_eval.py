"""Times COCO evaluation alone, by faster-coco-eval against pycocotools: python tests/benchmark_coco_eval.py FILE."""

import contextlib
import io
import sys
import tempfile
from functools import partial
from pathlib import Path

from mmdet.datasets.api_wrappers import COCO, COCOeval
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
        truth, detections = metric._coco_api, coco_metric.mmengine.load(files[name])
        for detection in detections if name == 'segm' else ():
            del detection['bbox']  # as mmdet does: sizes are those of the masks
        with contextlib.redirect_stdout(io.StringIO()):
            found = coco_metric._load_detections(truth, detections)

        def evaluate(backend: type, name: str = name, found: COCO = found) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                metric.run_coco_eval(backend(metric._coco_api, found, name))

        seconds = interleaved_medians({key: partial(evaluate, backend) for key, backend in backends.items()}, ROUNDS, 1)
        slow, fast = seconds.values()
        print(f'{name}: pycocotools {slow:.3f} s, faster-coco-eval {fast:.3f} s, {slow / fast:.1f} times faster')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
