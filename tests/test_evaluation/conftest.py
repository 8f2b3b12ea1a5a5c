import sys

import pytest


@pytest.fixture(params=['faster-coco-eval', 'pycocotools'])
def backend(request, monkeypatch):
    if request.param == 'pycocotools':
        monkeypatch.setitem(sys.modules, 'faster_coco_eval', None)  # as if it were not installed
    else:
        pytest.importorskip('faster_coco_eval')
    return request.param
