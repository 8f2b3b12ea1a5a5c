"""StrictInferencer: mmdet's DetInferencer that checks what it is given, times itself, and reads and writes videos."""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
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

from ..backbones.compiled import compile_stages
from ..checkpoints import load_for_testing, read_weights
from ..config import coco_dataset, load_config
from ..errors import UserError
from ..ops.precision import autocast, keep_boxes_exact
from .inputs import Image, list_inputs, naming_what_fails
from .pictures import draw_label, picture_name, require_names_apart, write_picture
from .video import Video, VideoWriter


class StrictInferencer(DetInferencer):
    """mmdet's DetInferencer for images, folders and videos, which refuses in one line what it cannot do.

    Args:
        model: a config file, a config, or the name of one of mmdet's models; None takes the config in ``weights``.
        weights: a checkpoint, whose weights must all fit; None takes those of mmdet's model.
        device: such as ``cuda:0``; None takes a GPU if there is one.
        scope: as in DetInferencer.
        palette: as in DetInferencer.
        show_progress: show a bar where there is more than one batch.
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
        amp: bool = False,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        _require_device(device)
        if isinstance(model, os.PathLike) or (isinstance(model, str) and model.endswith('.py')):
            model = load_config(os.fspath(model))
        try:
            super().__init__(model, weights and os.fspath(weights), device, scope, palette, show_progress=False)
        except ValueError as error:
            if 'Cannot find model' not in str(error):
                raise
            raise UserError(
                f"{model!r} is neither a config file (.py) nor the name of one of mmdet's models"
            ) from error
        self.progress = show_progress
        self.device = next(self.model.parameters()).device
        self.amp, self.channels_last, self.compiled = amp, channels_last, compiled
        if amp:
            keep_boxes_exact(self.model, self.device)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if compiled:
            compile_stages(self.model)
        self._drawing = threading.Lock()

    def __call__(
        self,
        inputs: Image | Video | Sequence[Image],
        batch_size: int = 1,
        *,
        out_dir: str | os.PathLike[str] = '',
        no_save_vis: bool = False,
        **kwargs: Any,
    ) -> dict[str, list[Any]]:
        """Detect.

        Args:
            inputs: a path or URL of an image, a folder, a video, an array (H, W, 3) in BGR, or a list of images.
            batch_size: images a forward.
            out_dir: where annotated images go (into ``vis/``, as DetInferencer's), or one annotated .mp4.
            no_save_vis: write none.
            **kwargs: those of DetInferencer.

        Returns:
            As DetInferencer: ``predictions``, each with the ``ms`` of its forward, from preprocessed images to
            detections, beside ``labels``, ``scores``, ``bboxes`` and ``masks``; and ``visualization``, RGB, where
            ``return_vis`` is set.

        Raises:
            UserError: for whatever a user can get wrong.
        """
        if batch_size < 1:
            raise UserError(f'batch_size should be at least 1, but got {batch_size}')
        images = self._inputs_to_list(inputs)
        video: AbstractContextManager[VideoWriter | None] = nullcontext()
        if out_dir and not no_save_vis:
            if isinstance(images, Video):
                video = VideoWriter(Path(out_dir) / 'vis' / f'{images.name}.mp4', images.fps)
            else:
                require_names_apart(images)
        with video as writer:
            results = super().__call__(
                images, batch_size, out_dir=os.fspath(out_dir), no_save_vis=no_save_vis, video=writer, **kwargs
            )
        if len(results['predictions']) < len(images):  # OpenCV just stops
            warnings.warn(
                f'{len(results["predictions"])} of {len(images)} frames could be read: the video may be cut off',
                stacklevel=2,
            )
        return results

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
        """Run the detector on one batch; each result knows its ``ms``."""
        data = self.model.data_preprocessor(inputs, False)
        if self.channels_last:
            data['inputs'] = data['inputs'].contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), autocast(self.device, self.amp):
            self._synchronize()
            start = time.perf_counter()
            predictions = self.model(**data, mode='predict')
            self._synchronize()
        ms = 1e3 * (time.perf_counter() - start)
        for prediction in predictions:
            prediction.set_metainfo(dict(ms=ms))
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
        """Draw predictions as DetInferencer does, and the milliseconds, after the depth if any, in a corner.

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
                picture = draw_label(picture, f'{prediction.get("skip") or ""}  {prediction.ms:.1f} ms'.strip())
                pictures.append(picture)
                if show:
                    self.visualizer.show(picture, win_name=name, wait_time=wait_time)
                if video is not None:
                    video.write(picture[..., ::-1])
                elif save:
                    write_picture(Path(img_out_dir) / 'vis' / name, picture)
        return pictures if return_vis else None

    def pred2dict(self, data_sample: DetDataSample, pred_out_dir: str = '') -> dict[str, Any]:
        """A prediction as DetInferencer gives it, with its ``ms``."""
        if data_sample.get('img_path', '') is None:  # an array's, which DetInferencer would take for a path
            data_sample.pop('img_path')
        return dict(super().pred2dict(data_sample, pred_out_dir), ms=data_sample.ms)


def _require_device(device: str | None) -> None:
    try:
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f'device {device!r} cannot be used ({reason}): give cpu, or cuda:0 where there is a GPU'
        ) from error
