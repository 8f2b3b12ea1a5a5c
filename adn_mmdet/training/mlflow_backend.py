"""MLflowBackend: MMEngine's backend of MLflow, for metrics whose names MLflow refuses."""

from __future__ import annotations

import re
from typing import Any

from mmengine.registry import VISBACKENDS
from mmengine.visualization import MLflowVisBackend


@VISBACKENDS.register_module()
class MLflowBackend(MLflowVisBackend):
    """As MMEngine's; ``bbox_AR@100`` and ``TTFF@640/300/…`` are called ``bbox_AR_100`` and ``TTFF_640/300/…``.

    MLflow ends a training at the first evaluation otherwise.
    """

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """As MMEngine's, under a name that MLflow takes."""
        super().add_scalar(_name(name), value, step, **kwargs)

    def add_scalars(
        self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """As MMEngine's, under names that MLflow takes."""
        super().add_scalars({_name(name): value for name, value in scalar_dict.items()}, step, file_path, **kwargs)


def _name(name: str) -> str:
    return re.sub(r'[^\w\-. :/]', '_', name)
