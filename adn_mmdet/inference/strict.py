"""StrictInferencer: mmdet's DetInferencer that checks what it is given, times itself, and reads and writes videos."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.runner import CheckpointLoader
from rich.progress import track
from torch import nn

from ..backbones.compiled import compile_stages
from ..checkpoints import load_for_testing, read_weights
from ..checkpoints.web import cached
from ..config import coco_dataset, load_config
from ..cost.timing import find_device, require_counts
from ..detections import FACTS
from ..errors import UserError
from ..export.artifact import artifact_config, is_artifact
from ..files import file_sha256
from ..ops.precision import autocast, keep_boxes_exact
from .annotations import Annotations
from .config_text import config_of_checkpoint
from .inputs import Inputs, list_inputs, naming_what_fails, require_paths
from .outputs import note_output, output_names, prediction_name, require_outputs, write_output
from .pictures import draw_label, encode_picture, picture_name
from .stream import Stream
from .video import Video, VideoWriter

Images = list[str | np.ndarray] | Video | Stream


class StrictInferencer(DetInferencer):
    """mmdet's DetInferencer for images, folders and videos, which refuses in one line what it cannot do.

    Args:
        model: a config file, a config, or the name of one of mmdet's models; None takes the config in ``weights``,
            which is read as data (see :mod:`~adn_mmdet.inference.config_text`). An exported ``.onnx`` needs nothing
            else: what it says of itself is its config.
        weights: a checkpoint or its URL, whose weights must all fit; None takes those of mmdet's model.
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
    postprocess_kwargs = {*DetInferencer.postprocess_kwargs, 'on_prediction', 'annotations'}

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
        require_paths(weights=weights, model=None if isinstance(model, (Config, dict)) else model)
        if weights is None and is_artifact(model):
            model, weights = None, model  # type: ignore[assignment]
        if weights is None and (model is None or not isinstance(model, str) or model.endswith('.py')):
            raise UserError('there are no weights to run: give weights=CHECKPOINT')
        if device is not None:
            find_device(device)
        if isinstance(model, os.PathLike) or (isinstance(model, str) and model.endswith('.py')):
            model = load_config(os.fspath(model))
        if is_artifact(weights):
            settings = dict(device=device, amp=amp, channels_last=channels_last, compiled=compiled)
            model = artifact_config(weights, model if isinstance(model, Config) else None, **settings)
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
        self._drawing, self._counting = threading.Lock(), threading.Lock()

    def __call__(
        self,
        inputs: Inputs,
        batch_size: int = 1,
        *,
        out_dir: str | os.PathLike[str] = '',
        no_save_vis: bool = False,
        no_save_pred: bool = True,
        on_prediction: Callable[[Any], object] | None = None,
        **kwargs: Any,
    ) -> dict[str, list[Any]]:
        """Detect.

        Args:
            inputs: a path or URL of an image, a folder, a video, an array (H, W, 3) in BGR, or a list of images; or a
                live source (:class:`~adn_mmdet.inference.stream.Stream`): a webcam's number, an ``'rtsp://…'``.
            batch_size: images a forward; of a live source one.
            out_dir: where annotated images go (into ``vis/``, as DetInferencer's), or one annotated .mp4.
            no_save_vis: write none.
            no_save_pred: do not write predictions (into ``preds/``, as DetInferencer's).
            on_prediction: called with each prediction, in the order of the images; they are not kept then.
            **kwargs: those of DetInferencer, and ``annotations``, which writes a COCO JSON or YOLO's texts
                (:mod:`~adn_mmdet.inference.annotations`).

        Returns:
            As DetInferencer: ``predictions``, each with the ``ms`` of its forward, from preprocessed images to
            detections, beside ``labels``, ``scores``, ``bboxes`` and ``masks``; and ``visualization``, RGB, where
            ``return_vis`` is set. Of a video or a stream no predictions, which are too many: see ``on_prediction``.

        Raises:
            UserError: for whatever a user can get wrong, such as an output in the place of an input or of a file that
                no inferencer wrote.
        """
        require_counts(batch_size=batch_size)
        require_paths(out_dir=out_dir)
        images = self._inputs_to_list(inputs)
        has_outputs = self._require_outputs(images, out_dir, no_save_vis, no_save_pred)
        video: AbstractContextManager[VideoWriter | None] = nullcontext()
        num_seen = 0

        def see(prediction: Any) -> None:
            nonlocal num_seen
            num_seen += 1
            if on_prediction is not None:
                on_prediction(prediction)

        if isinstance(images, (Video, Stream)):
            if not (has_outputs or on_prediction or kwargs.get('return_vis') or kwargs.get('show')):
                raise UserError('predictions of a video are not kept: give on_prediction=FUNCTION, or out_dir=FOLDER')
            video = self._video_writer(images, out_dir, no_save_vis)
        kwargs.update(no_save_vis=no_save_vis, no_save_pred=no_save_pred, out_dir=os.fspath(out_dir))
        if isinstance(images, (Video, Stream)) or on_prediction is not None:
            kwargs.update(on_prediction=see)
        with video as writer:
            for part in ([frame] for frame in images) if isinstance(images, Stream) else [images]:
                results = super().__call__(part, batch_size, video=writer, **kwargs)
        if isinstance(images, Video):
            images.warn_if_cut_off(num_seen)
        return results

    def _require_outputs(
        self, images: Images, out_dir: str | os.PathLike[str], no_save_vis: bool, no_save_pred: bool
    ) -> bool:
        """Make sure that what is asked for can be written; whether there is anything."""
        outputs = []
        for predictions in [False] * (not no_save_vis) + [True] * (not no_save_pred) if out_dir else []:
            outputs += output_names(images, (self.num_visualized_imgs, self.num_predicted_imgs), predictions)
        if outputs:
            require_outputs(Path(out_dir), outputs)
        return bool(outputs)

    def _video_writer(
        self, images: Images, out_dir: str | os.PathLike[str], no_save_vis: bool
    ) -> AbstractContextManager[VideoWriter | None]:
        """What an annotated video is written by; of anything else, or without a folder, there is none."""
        if no_save_vis or not out_dir or not isinstance(images, (Video, Stream)):
            return nullcontext()
        folder, ((name, _),) = Path(out_dir), output_names(images)
        return VideoWriter(
            folder / name,
            images.fps,
            lambda partial: note_output(folder, name, file_sha256(partial)),
            live=isinstance(images, Stream),
        )

    def _init_model(self, cfg: ConfigDict, weights: str, device: str = 'cpu') -> nn.Module:
        is_url = weights.startswith(('http://', 'https://'))
        if is_artifact(weights):
            self.weights, model = weights, MODELS.build(cfg.model)
            model.dataset_meta['palette'] = self.palette if self.palette != 'none' else 'random'
            return model
        self.weights = str(cached(weights)) if is_url else os.path.expanduser(weights)
        checkpoint = CheckpointLoader.load_checkpoint(self.weights, map_location='cpu', logger=None)
        if not cfg:  # DetInferencer would run its text
            cfg.update(config_of_checkpoint(checkpoint, self.weights))
        cfg.model.pop('pretrained', None)  # weights that the checkpoint's replace
        model = MODELS.build(cfg.model)
        model.cfg = cfg
        self._load_weights_to_model(model, checkpoint, cfg)
        return model.to(device).eval()

    def _load_weights_to_model(self, model: nn.Module, checkpoint: dict[str, Any], cfg: Config) -> None:
        load_for_testing(model, self.weights, checkpoint=checkpoint)
        meta = dict(checkpoint.get('meta', {}))
        if not meta.keys() & {'dataset_meta', 'CLASSES'}:  # bare weights, to which mmdet gives COCO's class names
            dataset = {**coco_dataset(cfg.test_dataloader), 'lazy_init': True}
            meta['dataset_meta'] = DATASETS.build(dataset).metainfo
        super()._load_weights_to_model(model, dict(meta=meta, state_dict=read_weights(checkpoint)), cfg)

    def _init_pipeline(self, cfg: Config) -> Any:
        return naming_what_fails(super()._init_pipeline(cfg))

    def _inputs_to_list(self, inputs: Inputs) -> Images:
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

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        return tuple(self.model.dataset_meta['classes'])

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
        """Draw predictions as DetInferencer does, and the milliseconds, after the point if any, in a corner.

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
                point, ms = prediction.get('point'), prediction.get('ms')
                picture = draw_label(picture, f'{point or ""}  {"" if ms is None else f"{ms:.1f} ms"}'.strip())
                pictures.append(picture)
                if show:
                    self.visualizer.show(picture, win_name=name, wait_time=wait_time)
                if video is not None:
                    video.write(picture[..., ::-1])
                elif save:
                    write_output(Path(img_out_dir), f'vis/{name}', encode_picture(name, picture))
        return pictures if return_vis else None

    def postprocess(
        self,
        preds: list[DetDataSample],
        visualization: list[np.ndarray] | None = None,
        *args: Any,
        on_prediction: Callable[[Any], object] | None = None,
        annotations: Annotations | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As DetInferencer's; hands the predictions to ``on_prediction``, if it is given, instead of returning them."""
        results = super().postprocess(preds, visualization, *args, **kwargs)
        if annotations is not None:
            for sample, result in zip(preds, results['predictions']):
                annotations.add(result if isinstance(result, dict) else self.pred2dict(sample), sample.ori_shape)
        if on_prediction is not None:
            for prediction in results['predictions']:
                on_prediction(prediction)
            results['predictions'] = []
        return results

    def pred2dict(self, data_sample: DetDataSample, pred_out_dir: str = '') -> dict[str, Any]:
        """A prediction as DetInferencer's, with what is known of FACTS; written to ``pred_out_dir`` if it is given."""
        result = super().pred2dict(data_sample)
        result.update({fact: data_sample.get(fact) for fact in FACTS if fact in data_sample})
        if pred_out_dir:
            path = data_sample.get('img_path')
            with self._counting:
                name = prediction_name(np.empty(0) if path is None else path, self.num_predicted_imgs)
                self.num_predicted_imgs += path is None
            if 'panoptic_seg' in result:
                picture = name.replace('.json', '_panoptic_seg.png')
                write_output(Path(pred_out_dir), picture, encode_picture(picture, result.pop('panoptic_seg')))
                result['panoptic_seg_path'] = os.path.join(pred_out_dir, picture)
            write_output(Path(pred_out_dir), name, json.dumps(result).encode())
        return result
