import re
import sys
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.registry import VISBACKENDS

from adn_mmdet.training.run import make_safe

TAKEN = re.compile(r'[\w\-. :/]+')  # what MLflow says of names


@pytest.fixture
def mlflow(monkeypatch):
    """Stands for MLflow: refuses names as it does."""
    logged = {}

    def log_metrics(metrics, step):
        assert all(TAKEN.fullmatch(name) for name in metrics)
        logged.update({(name, step): value for name, value in metrics.items()})

    module = SimpleNamespace(
        log_metrics=log_metrics,
        log_metric=lambda name, value, step: log_metrics({name: value}, step),
        set_tracking_uri=lambda uri: None,
        get_experiment_by_name=lambda name: True,
        set_experiment=lambda name: None,
    )
    monkeypatch.setitem(sys.modules, 'mlflow', module)
    return logged


def test_a_training_logs_names_that_mlflow_takes(mlflow, tmp_path):
    backends = [dict(type='LocalVisBackend'), dict(type='MLflowVisBackend', save_dir=str(tmp_path))]
    cfg = Config(dict(visualizer=dict(vis_backends=backends)))
    said = make_safe(cfg)
    assert [backend.type for backend in cfg.visualizer.vis_backends] == ['LocalVisBackend', 'MLflowBackend']
    assert 'MLflowVisBackend by MLflowBackend' in said
    backend = VISBACKENDS.build(cfg.visualizer.vis_backends[1])
    backend.add_scalars({'coco/bbox_AR@100': 0.5, 'TTFF@640/300/coco/bbox_mAP': 0.25, 'kd.to_task': 2.0}, step=3)
    backend.add_scalar('lr', 0.1, step=4)
    assert mlflow == {
        ('coco/bbox_AR_100', 3): 0.5,
        ('TTFF_640/300/coco/bbox_mAP', 3): 0.25,
        ('kd.to_task', 3): 2.0,
        ('lr', 4): 0.1,
    }
