"""mmdet's SSDHead, mended: that of mmdet 3.3 trains but cannot predict."""

from __future__ import annotations

from mmdet.models.dense_heads import SSDHead
from mmengine.registry import MODELS


@MODELS.register_module()
class PredictingSSDHead(SSDHead):
    """mmdet's SSDHead with the ``loss_cls`` that ``predict`` looks at, to ask whether it has classes of its own."""

    loss_cls = None
