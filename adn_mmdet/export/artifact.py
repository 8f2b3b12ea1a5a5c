"""An exported any-depth file in the place of a detector: test loops, timers and inferencers run it as PyTorch's."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, TypeGuard

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..backbones.adaptive_depth import AdaptiveDepthBackbone, Skip
from ..errors import UserError
from ..files import file_sha256
from ..input_size import own_point
from ..points import point_in_force
from ..skip_config import SkipConfig
from .any_depth_runtime import AnyDepthRuntime, ArtifactError, paste

SUFFIX = '.onnx'
PYTORCH_ONLY = ('tta', 'amp', 'norms', 'channels_last', 'compiled')  # settings that a finished graph has none of
META_KEYS = ('img_path', 'ori_shape', 'img_shape', 'scale_factor')


def is_artifact(path: Any) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a path names an exported file, in the place of a checkpoint."""
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).endswith(SUFFIX)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn the runtime's errors into the package's."""
    try:
        yield
    except ArtifactError as error:
        raise UserError(str(error)) from error


class _Runtime(AnyDepthRuntime):
    def __init__(self, path: str, *args: Any) -> None:
        super().__init__(path, *args)
        self.sha256 = file_sha256(path)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Runtime:
        """Itself: copies of a model share it, as a session has no copy."""
        return self


def opened(path: str | os.PathLike[str], backend: str = 'onnxruntime', on_gpu: bool = False) -> _Runtime:
    """The runtime of a file, which is opened once while it stays as it is."""
    with in_one_line():
        stamp = os.stat(path).st_mtime_ns if os.path.isfile(path) else 0
        return _open(os.fspath(path), stamp, backend, on_gpu, torch.get_num_threads())


def _is_gpu(device: str | None) -> bool:
    return device is not None and device.startswith('cuda')


@functools.lru_cache(maxsize=1)
def _open(path: str, stamp: int, backend: str, on_gpu: bool, threads: int) -> _Runtime:
    return _Runtime(path, backend, threads, ['CUDAExecutionProvider', 'CPUExecutionProvider'] if on_gpu else None)


@MODELS.register_module()
class ArtifactBackbone(AdaptiveDepthBackbone):
    """Knows which skip an artifact runs at: that of ``using_skip``, or the stored one."""

    def __init__(self, num_stages: int = 4, skip: Skip | None = None, num_parts: int = 0) -> None:
        super().__init__()
        self.num_stages, self.num_parts = num_stages, num_parts
        self.stages = nn.ModuleList(nn.Identity() for _ in range(num_stages + num_parts))
        self.set_skip(SkipConfig.super_net(self.letter_groups) if skip is None else skip)

    @property
    def letter_groups(self) -> tuple[int, ...]:
        """Those of the detector that was exported."""
        return self.num_stages, *(1 for _ in range(self.num_parts))

    def skipped_blocks(self, skip: Skip) -> list[nn.Module]:
        """One a letter that skips: the file does not say how many there are."""
        return [stage for stage, flag in zip(self.stages, SkipConfig.parse(skip, self.letter_groups)) if flag]


@MODELS.register_module()
class Artifact(nn.Module):
    """A file of tools/export_any_depth.py behind a detector's interface. Threads may call it, each at its own skip.

    Args:
        path: of the file.
        backbone: config of its :class:`ArtifactBackbone`.
        device: ``cpu``, or ``cuda`` for onnxruntime's provider of that name; predictions are on the CPU.
        backend: ``onnxruntime`` or ``openvino``.
        **kwargs: what others read of a detector's config: ``data_preprocessor``, ``rpn_head`` and ``test_cfg``; the
            graph has its own.

    Raises:
        UserError: the file cannot be used.
    """

    backbone: ArtifactBackbone

    def __init__(
        self,
        path: str,
        backbone: dict[str, Any] | None = None,
        device: str | None = None,
        backend: str = 'onnxruntime',
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.runtime = opened(path, backend, _is_gpu(device))
        self.about = self.runtime.about
        skip = (backbone or {}).get('skip')
        self.backbone = ArtifactBackbone(self.about['num_stages'], skip, self.about['num_parts'])
        self.nothing = nn.Parameter(torch.zeros(0), requires_grad=False)  # of which others take the device
        self.dataset_meta = dict(classes=tuple(self.about['classes']), palette='random')
        self.takes_proposals = self.about['num_proposals'] is not None  # that are chosen at each call
        #: What the numbers of a test or of a benchmark depend on, of the file.
        self.facts = dict(
            checkpoint_sha256=self.about['checkpoint_sha256'],
            runtime=self.runtime.backend.name,
            artifact_sha256=self.runtime.sha256,
        )

    def require_classes(self, classes: Sequence[str]) -> None:
        """Make sure that labels mean the same to a data set.

        Raises:
            UserError: they do not.
        """
        own = self.dataset_meta['classes']
        if tuple(classes) != own:
            first = next(pair for pair in zip_longest(own, classes) if pair[0] != pair[1])
            raise UserError(
                f'{self.runtime.path} detects {len(own)} classes, but the data set has {len(classes)}: the first that '
                f'differ are {first[0]} and {first[1]}, use the config that it was exported from'
            )

    def data_preprocessor(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """As the data loader made it: the graph does the rest."""
        return data

    def test_step(self, data: dict[str, Any]) -> list[DetDataSample]:
        """Predict a batch of a data loader."""
        return self(**self.data_preprocessor(data))

    def forward(
        self, inputs: Sequence[Tensor], data_samples: Sequence[DetDataSample], mode: str = 'predict'
    ) -> list[DetDataSample]:
        """Predict.

        Images of one size are one batch; others run one by one, since padding would change what is found.

        Args:
            inputs: images (3, H, W), uint8, BGR, resized.
            data_samples: as many, with the facts of the resize; they are left as they are.
            mode: predict is all that there is.

        Returns:
            Copies of ``data_samples`` with ``pred_instances`` in pixels of the original images.
        """
        images = [np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()) for image in inputs]
        together = len({image.shape for image in images}) == 1
        batches = [np.stack(images)] if together else [image[None] for image in images]
        code, proposals = str(self.backbone.resolve_skip()), point_in_force(self).proposals
        with in_one_line():
            found = [self.runtime.run(batch, code, proposals) for batch in batches]
        rows = [
            {name: value[index] for name, value in raw.items()} for raw in found for index in range(len(raw['num']))
        ]
        return [self._sample(row, sample) for row, sample in zip(rows, data_samples)]

    def _sample(self, row: dict[str, np.ndarray], sample: DetDataSample) -> DetDataSample:
        num, scale = row['num'], sample.get('scale_factor', (1.0, 1.0))
        boxes = row['boxes'][:num] / np.array([*scale[:2]] * 2, np.float32)
        found = dict(bboxes=boxes, scores=row['scores'][:num], labels=row['labels'][:num])
        if 'masks' in row:
            height, width = sample.ori_shape[:2]
            found['masks'] = paste(row['masks'][:num], boxes, height, width, self.about['mask_threshold'])
        sample = sample.clone()
        sample.pred_instances = InstanceData(**{name: torch.from_numpy(value) for name, value in found.items()})
        return sample


def require_as_it_is(
    path: str | os.PathLike[str], cfg_options: Mapping[str, Any] | None = None, **settings: Any
) -> None:
    """Make sure that nothing is asked of an artifact that was settled when it was exported.

    Args:
        path: of the artifact.
        cfg_options: what is to be different from the config.
        **settings: of a run, by name.

    Raises:
        UserError: something is.
    """
    asked = [name for name in PYTORCH_ONLY if settings.get(name)]
    asked += [name for name in cfg_options or () if name.startswith('model.') and 'test_cfg' in name]
    if asked:
        raise UserError(f'{path} is exported and runs as it is: leave {", ".join(asked)} out')


def use_artifact(cfg: Config, path: str | os.PathLike[str], **settings: Any) -> None:
    """Let a config run an artifact in the place of its model.

    Args:
        cfg: its ``model`` is replaced.
        path: of the artifact.
        **settings: as of :func:`require_as_it_is`; ``device`` is where it runs.

    Raises:
        UserError: the file cannot be used, has other stages than the config, or a setting is none of its own.
    """
    require_as_it_is(path, **settings)
    device, own = settings.get('device'), cfg.model.get('backbone') or {}
    about = opened(path, on_gpu=_is_gpu(device)).about
    said = {
        'stages': own.get('num_stages', 4),
        'parts': len(cfg.model.get('parts', ())),
        'proposals': own_point(cfg).proposals,
    }
    found = {'stages': about['num_stages'], 'parts': about['num_parts'], 'proposals': about['num_proposals']}
    for name, number in found.items():
        if number != said[name]:
            raise UserError(
                f'{path} has {number or "no"} {name}, but {cfg.filename} has {said[name] or "none"}: use the config '
                'that it was exported from'
            )
    backbone = dict(type='ArtifactBackbone', num_stages=about['num_stages'], skip=own.get('skip'))
    parts = {'parts': cfg.model.parts} if about['num_parts'] else {}  # of which others count the letters
    kept = {name: cfg.model[name] for name in ('data_preprocessor', 'rpn_head', 'test_cfg') if name in cfg.model}
    cfg.model = dict(type='Artifact', path=os.fspath(path), device=device, backbone=backbone, **kept, **parts)


def artifact_config(path: str | os.PathLike[str], cfg: Config | None = None, **settings: Any) -> Config:
    """A whole config for mmdet's DetInferencer: a given one that runs an artifact, or what that says of itself.

    Raises:
        UserError: as :func:`use_artifact`.
    """
    if cfg is None:
        about = opened(path, on_gpu=_is_gpu(settings.get('device'))).about
        resize = dict(about['resize'], type='Resize', scale=tuple(about['resize']['scale']))
        pipeline = [dict(type='LoadImageFromFile'), resize, dict(type='PackDetInputs', meta_keys=META_KEYS)]
        dataset = dict(type='CocoDataset', metainfo=dict(classes=tuple(about['classes'])), pipeline=pipeline)
        visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
        model: dict[str, Any] = dict(
            backbone=dict(num_stages=about['num_stages']),
            parts=[{}] * about['num_parts'],
            data_preprocessor=dict(pad_size_divisor=32),
        )
        if about['num_proposals']:
            model |= dict(rpn_head=dict(type='RPNHead'), test_cfg=dict(rpn=dict(max_per_img=about['num_proposals'])))
        cfg = Config(dict(model=model, test_dataloader=dict(dataset=dataset), visualizer=visualizer))
    cfg = copy.deepcopy(cfg)
    use_artifact(cfg, path, **settings)
    return cfg
