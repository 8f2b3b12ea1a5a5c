"""AnyDepthInferencer: mmdet's DetInferencer whose depth is chosen by each call, by its code or by a time budget."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from rich.progress import track
from torch import nn

from ..backbones import AdaptiveDepthBackbone, find_backbone
from ..backbones.adaptive_depth import Skip
from ..backbones.compiled import compile_stages
from ..checkpoints import load_for_testing, read_weights
from ..errors import UserError
from ..evaluation.complexity import default_input_size
from ..evaluation.pareto import Point, best_under_budget
from ..files import file_sha256
from ..precision import autocast, require_amp
from ..preflight import coco_dataset, load_config
from ..skip_config import SkipConfig
from .calibration import cache_folder, calibrate
from .choose import by_accuracy, by_depth
from .inputs import Image, list_inputs, naming_what_fails
from .pictures import draw_label, picture_name, write_picture
from .video import Video, VideoWriter


class AnyDepthInferencer(DetInferencer):
    """mmdet's DetInferencer, for images, folders and videos, at any depth of one model.

    >>> inferencer = AnyDepthInferencer('configs/mask_rcnn_r50_adn_1x_coco.py', 'epoch_12.pth')
    >>> inferencer('street.jpg', skip='TTFF')
    >>> inferencer('drive.mp4', budget_ms=35, out_dir='outputs')

    Threads may call one inferencer at the same time, each with its own depth, with ``show_progress=False``.

    Args:
        model: a config file, a config, or the name of one of mmdet's models; None takes the config in ``weights``.
        weights: a checkpoint, whose weights must all fit; None takes those of mmdet's model.
        device: such as ``cuda:0``; None takes a GPU if there is one.
        scope: as in DetInferencer.
        palette: as in DetInferencer.
        show_progress: show a bar where there is more than one batch.
        sub_nets: the ``sub_nets.json`` of tools/test.py, or the work folder that holds it: the AP that budgets go by,
            and the depths that they choose from. None goes by the number of blocks that a depth runs.
        metric: which AP of that file.
        cache_dir: where calibrations are kept; None takes :func:`~adn_mmdet.inference.calibration.cache_folder`.
        allow_untrained: run skipped depths although the weights have no skip-aware norms.
        amp: run in half precision: float16 on a GPU, bfloat16 on the CPU.
        channels_last: run in that memory format.
        compiled: run the backbone's stages through torch.compile.

    Raises:
        UserError: for whatever a user can get wrong.
    """

    visualize_kwargs = {*DetInferencer.visualize_kwargs, 'video'}

    def __init__(
        self,
        model: str | os.PathLike[str] | Config | None = None,
        weights: str | os.PathLike[str] | None = None,
        device: str | None = None,
        scope: str = 'mmdet',
        palette: str = 'none',
        show_progress: bool = True,
        *,
        sub_nets: str | os.PathLike[str] | None = None,
        metric: str = 'bbox_mAP',
        cache_dir: str | os.PathLike[str] | None = None,
        allow_untrained: bool = False,
        amp: bool = False,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        _require_device(device)
        if isinstance(model, os.PathLike) or (isinstance(model, str) and model.endswith('.py')):
            model = load_config(os.fspath(model))
        self.allow_untrained = allow_untrained
        try:
            super().__init__(model, weights and os.fspath(weights), device, scope, palette, show_progress=False)
        except ValueError as error:
            if 'Cannot find model' not in str(error):
                raise
            raise UserError(
                f"{model!r} is neither a config file (.py) nor the name of one of mmdet's models"
            ) from error
        has_depths = any(isinstance(module, AdaptiveDepthBackbone) for module in self.model.modules())
        self.backbone = find_backbone(self.model) if has_depths else None
        self.device = next(self.model.parameters()).device
        self.amp, self.channels_last, self.compiled = amp, channels_last, compiled
        self.progress = show_progress
        if amp:
            require_amp(self.model, self.device)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if compiled:
            compile_stages(self.model)
        self.cache_dir = Path(cache_dir) if cache_dir else cache_folder()
        self.input_size = default_input_size(self.cfg)
        self.worth = self._worth_of_depths(sub_nets, metric)
        self.latencies: dict[int, dict[str, float]] = {}  # by batch size: ms by code
        self._calibrating, self._drawing = threading.Lock(), threading.Lock()

    def __call__(
        self,
        inputs: Image | Video | Sequence[Image],
        batch_size: int = 1,
        *,
        skip: Skip | None = None,
        budget_ms: float | None = None,
        out_dir: str | os.PathLike[str] = '',
        no_save_vis: bool = False,
        **kwargs: Any,
    ) -> dict[str, list[Any]]:
        """Detect.

        Args:
            inputs: a path or URL of an image, a folder, a video, an array (H, W, 3) in BGR, or a list of images.
            batch_size: images a forward.
            skip: the depth; None takes that of ``budget_ms``, else of ``using_skip``, else the stored one.
            budget_ms: the most milliseconds that a forward may take, from preprocessed images to detections, as
                measured by :meth:`calibrate`; the best depth within it runs.
            out_dir: where annotated images go (into ``vis/``, as DetInferencer's), or one annotated .mp4.
            no_save_vis: write none.
            **kwargs: those of DetInferencer.

        Returns:
            As DetInferencer: ``predictions``, each with its ``skip`` and the ``ms`` of its forward beside
            ``labels``, ``scores``, ``bboxes`` and ``masks``; and ``visualization``, RGB, where ``return_vis`` is set.

        Raises:
            UserError: for whatever a user can get wrong, before anything is written.
        """
        images = self._inputs_to_list(inputs)
        code = self.choose(skip, budget_ms, batch_size)
        video: AbstractContextManager[VideoWriter | None] = nullcontext()
        if isinstance(images, Video) and out_dir and not no_save_vis:
            video = VideoWriter(Path(out_dir) / 'vis' / f'{images.name}.mp4', images.fps)
        with self._at(code), video as writer:
            return super().__call__(
                images, batch_size, out_dir=os.fspath(out_dir), no_save_vis=no_save_vis, video=writer, **kwargs
            )

    def choose(
        self, skip: Skip | None = None, budget_ms: float | None = None, batch_size: int = 1
    ) -> SkipConfig | None:
        """The depth that a call with these arguments runs; None for a detector that has no depth to choose.

        Raises:
            UserError: a code that is not valid, a budget that no depth keeps, both, or a depth that is untrained.
        """
        if self.backbone is None:
            if skip is not None or budget_ms is not None:
                kind = type(self.model.backbone).__name__
                raise UserError(f'{kind} has no depth to choose: leave skip and budget_ms out')
            return None
        if skip is not None and budget_ms is not None:
            raise UserError(f'skip={skip} and budget_ms={budget_ms} were both given: give one of them')
        if budget_ms is not None:
            skip = self._best_within(budget_ms, batch_size)
        code = self.backbone.resolve_skip(skip)
        if any(code) and self.backbone.num_untrained_norms and not self.allow_untrained:
            raise UserError(
                f'{self.weights} has no skip-aware norms, so that {code} is untrained: '
                'run FFFF, or say allow_untrained=True'
            )
        return code

    def calibrate(
        self, input_size: tuple[int, int] | None = None, batch_size: int = 1, rounds: int = 20
    ) -> list[dict[str, Any]]:
        """Measure this device's latency of each depth, or find it in the cache; budgets go by it from then on.

        Args:
            input_size: height and width of what the network sees, after resizing; None takes that of the last call,
                at first that of the config's test pipeline.
            batch_size: images a forward; each has its own calibration.
            rounds: timed forwards of each depth, in turn.

        Returns:
            One row a depth, with the keys of :class:`~adn_mmdet.evaluation.latency.LatencyRow`.

        Raises:
            UserError: numbers that are not positive, or a detector that has no depth to choose.
        """
        find_backbone(self.model)
        with self._calibrating:
            self.input_size = input_size or self.input_size
            filename = getattr(self.cfg, 'filename', None)
            run = dict(
                name=Path(filename).stem if filename else type(self.model).__name__,
                config=filename,
                checkpoint_sha256=self._checkpoint_sha256(),
                batch_size=batch_size,
                input_size=list(self.input_size),
                amp=self.amp,
                channels_last=self.channels_last,
                compile=self.compiled,
                rounds=rounds,
            )
            rows = calibrate(self.model, list(self.worth), run, self.cfg.model, self.cache_dir)
            self.latencies[batch_size] = {row['skip']: row['ms'] for row in rows}
        return rows

    def _best_within(self, budget_ms: float, batch_size: int) -> str:
        if not isinstance(budget_ms, (int, float)) or not budget_ms > 0:
            raise UserError(f'budget_ms should be a positive number of milliseconds, but got {budget_ms!r}')
        if batch_size not in self.latencies:
            self.calibrate(batch_size=batch_size)
        latencies = self.latencies[batch_size]
        points = [Point(latencies[str(code)], worth, str(code)) for code, worth in self.worth.items()]
        return best_under_budget(points, budget_ms).skip

    def _at(self, code: SkipConfig | None) -> AbstractContextManager[Any]:
        return self.backbone.using_skip(code) if self.backbone and code else nullcontext()

    def _worth_of_depths(self, sub_nets: str | os.PathLike[str] | None, metric: str) -> dict[SkipConfig, float]:
        if sub_nets is None:
            return by_depth(self.backbone) if self.backbone else {}
        backbone = find_backbone(self.model)
        return by_accuracy(sub_nets, self._checkpoint_sha256(), backbone.num_stages, metric)

    def _checkpoint_sha256(self) -> str | None:
        return file_sha256(self.weights) if os.path.isfile(self.weights) else None  # None: a URL

    # What follows is called by DetInferencer.

    def _init_model(self, cfg: Config, weights: str | None, device: str = 'cpu') -> nn.Module:
        if weights is None:
            raise UserError('there are no weights to run: give weights=CHECKPOINT')
        self.weights = os.path.expanduser(weights)
        return super()._init_model(cfg, self.weights, device)

    def _load_weights_to_model(self, model: nn.Module, checkpoint: dict[str, Any], cfg: Config) -> None:
        load_for_testing(model, self.weights, checkpoint=checkpoint)
        meta = dict(checkpoint.get('meta', {}))
        if not meta.keys() & {'dataset_meta', 'CLASSES'}:  # bare weights, to which mmdet gives COCO's class names
            dataset = {**coco_dataset(cfg.test_dataloader), 'lazy_init': True}
            meta['dataset_meta'] = DATASETS.build(dataset).metainfo
        super()._load_weights_to_model(model, dict(meta=meta, state_dict=read_weights(checkpoint)), cfg)

    def _init_pipeline(self, cfg: Config) -> Any:
        return naming_what_fails(super()._init_pipeline(cfg))

    def _inputs_to_list(self, inputs: Image | Video | Sequence[Image]) -> list[str | np.ndarray] | Video:
        return list_inputs(inputs)

    def preprocess(self, inputs: Sequence[Any], batch_size: int = 1, **kwargs: Any) -> Iterator[Any]:
        """Read and prepare images, batch by batch; DetInferencer's own bar knows no end."""
        batches, total = super().preprocess(inputs, batch_size, **kwargs), math.ceil(len(inputs) / batch_size)
        yield from track(batches, 'Detecting', total) if self.progress and total > 1 else batches

    def forward(self, inputs: dict[str, Any], **kwargs: Any) -> list[DetDataSample]:
        """Run the detector on one batch, at the depth of this context; each result knows its ``skip`` and ``ms``."""
        data = self.model.data_preprocessor(inputs, False)
        if self.channels_last:
            data['inputs'] = data['inputs'].contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), autocast(self.device, self.amp):
            self._synchronize()
            start = time.perf_counter()
            predictions = self.model(**data, mode='predict')
            self._synchronize()
        ms = 1e3 * (time.perf_counter() - start)
        skip = str(self.backbone.resolve_skip()) if self.backbone else None
        for prediction in predictions:
            prediction.set_metainfo(dict(skip=skip, ms=ms))
        return predictions

    def _synchronize(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def visualize(
        self,
        inputs: Sequence[str | np.ndarray],
        preds: Sequence[DetDataSample],
        return_vis: bool = False,
        show: bool = False,
        wait_time: float = 0,
        no_save_vis: bool = False,
        img_out_dir: str = '',
        video: VideoWriter | None = None,
        **kwargs: Any,
    ) -> list[np.ndarray] | None:
        """Draw predictions as DetInferencer does, and the depth and milliseconds in a corner.

        Returns:
            RGB pictures, (H, W, 3), where ``return_vis`` is set.
        """
        save = img_out_dir and not no_save_vis
        if not (save or show or return_vis):
            return None
        # DetInferencer draws arrays as if they were RGB, but reads them as BGR.
        images = [image[..., ::-1] if isinstance(image, np.ndarray) else image for image in inputs]
        pictures = []
        with self._drawing:  # one canvas for all threads
            names = [picture_name(image, self.num_visualized_imgs + index) for index, image in enumerate(images)]
            drawn = super().visualize(images, preds, return_vis=True, **kwargs)
            for name, prediction, picture in zip(names, preds, drawn):
                picture = draw_label(picture, f'{prediction.skip or ""}  {prediction.ms:.1f} ms'.strip())
                pictures.append(picture)
                if show:
                    self.visualizer.show(picture, win_name=name, wait_time=wait_time)
                if video is not None:
                    video.write(picture[..., ::-1])
                elif save:
                    write_picture(Path(img_out_dir) / 'vis' / name, picture)
        return pictures if return_vis else None

    def pred2dict(self, data_sample: DetDataSample, pred_out_dir: str = '') -> dict[str, Any]:
        """A prediction as DetInferencer gives it, with its ``skip`` and ``ms``."""
        if data_sample.get('img_path', '') is None:  # an array's, which DetInferencer would take for a path
            data_sample.pop('img_path')
        return dict(super().pred2dict(data_sample, pred_out_dir), skip=data_sample.skip, ms=data_sample.ms)


def _require_device(device: str | None) -> None:
    try:
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f'device {device!r} cannot be used ({reason}): give cpu, or cuda:0 where there is a GPU'
        ) from error
