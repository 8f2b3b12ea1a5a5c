"""Runs an any-depth detector from one ONNX file, its depth chosen by each call; needs numpy and onnxruntime alone.

A copy of this file lies beside every file that tools/export_any_depth.py writes. It imports nothing of adn_mmdet.

>>> from any_depth_runtime import AnyDepthRuntime
>>> detect = AnyDepthRuntime('detector.onnx')
>>> found = detect('street.jpg', skip='TTFF', score_thr=0.5)
>>> found.boxes, found.scores, found.names, found.masks

The graph takes ``images`` (N, H, W, 3) uint8, BGR, resized; ``skip`` (letters,) bool; of a two-stage detector
``num_proposals`` () int64. It returns ``boxes`` (N, K, 4) float32 as x1, y1, x2, y2 in pixels of ``images``,
``scores`` (N, K), ``labels`` (N, K) int64, ``num`` (N,) int64, how many of the K are detections, and of a detector
with masks ``masks`` (N, K, 28, 28) float32, probabilities inside each box. Its metadata entry ``adn_mmdet`` is one
JSON object, which is read as data: see ``FIELDS``.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

import numpy as np

KEY = 'adn_mmdet'  # of the metadata entry
SCHEMA = 1
EXPORT = 'export it with tools/export_any_depth.py'
Path = str | os.PathLike[str]
Image = np.ndarray | Path
Skip = str | Sequence[bool]
Names = Sequence[str]


def all_codes(num_stages: int, num_parts: int = 0) -> list[str]:
    """Every skip code, the super-net's first: a letter a stage, then a hyphen and a letter for each part beyond."""
    letters = map(''.join, product('FT', repeat=num_stages + num_parts))
    return ['-'.join([code[:num_stages], *code[num_stages:]]) for code in letters]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_list(value: Any, of: Callable[[Any], bool], length: int | None = None) -> bool:
    return isinstance(value, list) and all(map(of, value)) and length in (None, len(value))


def _is_resize(value: Any) -> bool:
    known = isinstance(value, dict) and isinstance(value.get('keep_ratio'), bool)
    return known and _is_list(value.get('scale'), _is_count, 2)


#: What the metadata hold, by name, and whether a value is valid.
FIELDS: dict[str, Callable[[Any], bool]] = {
    'schema': _is_count,
    'classes': lambda value: _is_list(value, lambda name: isinstance(name, str)) and bool(value),
    'num_stages': lambda value: _is_count(value) and value <= 16,
    'num_parts': lambda value: value == 0 or _is_count(value) and value <= 3,  # skippable beyond the backbone
    'config': lambda value: isinstance(value, str),  # its name, without .py
    'checkpoint_sha256': lambda value: value is None or isinstance(value, str),
    'mean': lambda value: _is_list(value, _is_number, 3),  # of red, green and blue; in the graph already, as std is
    'std': lambda value: _is_list(value, _is_number, 3),
    'resize': _is_resize,  # the test pipeline's `scale`, two lengths in pixels, and `keep_ratio`
    'max_per_img': _is_count,
    'num_proposals': lambda value: value is None or _is_count(value),  # the default; None of a single-stage detector
    'mask_threshold': lambda value: value is None or _is_number(value),  # None without masks
    'rows': lambda value: _is_list(value, lambda row: isinstance(row, dict)),  # of sub_nets.json; there may be none
}


class ArtifactError(ValueError):
    """Says in one line what was given, what is valid and what to do."""


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: (K, 4) float32: x1, y1, x2, y2 in pixels of the image as given.
        scores: (K,) float32.
        labels: (K,) int64, indices of the classes.
        names: the classes' names, one a detection.
        masks: (K, H, W) bool; None of a detector without masks.
        skip: the depth that ran, such as ``TTFF``.
        ms: milliseconds of the call, from the image's pixels to these.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    masks: np.ndarray | None
    skip: str
    ms: float


class AnyDepthRuntime:
    """A detector from one file, called with an image and a depth. Threads may call one, each with its own depth.

    Every method raises :class:`ArtifactError` for whatever a user can get wrong.

    Args:
        path: an ONNX file of tools/export_any_depth.py.
        backend: ``onnxruntime`` or ``openvino``.
        threads: of the backend; None lets it choose.
        providers: of onnxruntime, such as ``['CUDAExecutionProvider', 'CPUExecutionProvider']``; None is the CPU.
    """

    def __init__(
        self, path: Path, backend: str = 'onnxruntime', threads: int | None = None, providers: Names | None = None
    ) -> None:
        self.path = os.fspath(path)
        if backend not in BACKENDS:
            raise ArtifactError(f'backend should be one of {", ".join(BACKENDS)}, but got {backend!r}')
        if threads is not None:
            _require_count('threads', threads)
        if not os.path.isfile(self.path):
            raise ArtifactError(f'there is no file {self.path}: check the path')
        self.backend = BACKENDS[backend](self.path, threads, providers)
        self.about = _read_metadata(self.path, self.backend)
        self.num_stages: int = self.about['num_stages']
        self.codes = all_codes(self.num_stages, self.about['num_parts'])
        self._spelled = {spelling: code for code in self.codes for spelling in (code, code.replace('-', ''))}
        self._ms = {row['skip']: row['ms'] for row in self.about['rows'] if 'ms' in row}
        self._calibrating = threading.Lock()

    def __call__(
        self,
        image: Image,
        skip: Skip | None = None,
        *,
        proposals: int | None = None,
        budget_ms: float | None = None,
        score_thr: float = 0.0,
    ) -> Detections:
        """Detect in one image.

        Args:
            image: (H, W, 3) uint8, BGR, or the path of one.
            skip: the depth; None is the super-net, where there is no budget.
            proposals: of a two-stage detector; None takes the exported number.
            budget_ms: run the best depth that takes no longer, see :meth:`choose`.
            score_thr: least score of what is returned.
        """
        pixels = read_image(image)
        if budget_ms is not None:
            if skip is not None:
                raise ArtifactError(f'skip={skip} and budget_ms={budget_ms} were both given: give one of them')
            skip = self.choose(budget_ms, pixels)
        code, start = self.parse(skip), time.perf_counter()
        height, width = pixels.shape[:2]
        new_width, new_height = fit(width, height, **self.about['resize'])
        raw = self.run(resize(pixels, new_width, new_height)[None], code, proposals)
        found = {name: raw[name][0, : raw['num'][0]] for name in raw if name != 'num'}
        found = {name: value[found['scores'] >= score_thr] for name, value in found.items()}
        boxes, masks = (
            found['boxes'] / np.array([new_width / width, new_height / height] * 2, np.float32),
            found.get('masks'),
        )
        if masks is not None:
            masks = paste(masks, boxes, height, width, self.about['mask_threshold'])
        names = [self.about['classes'][label] for label in found['labels']]
        ms = 1e3 * (time.perf_counter() - start)
        return Detections(boxes, found['scores'], found['labels'], names, masks, code, ms)

    def run(self, images: np.ndarray, skip: Skip | None = None, proposals: int | None = None) -> dict[str, np.ndarray]:
        """Run the graph on resized images, (N, H, W, 3) uint8, BGR; the head of this file says what it returns."""
        if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4):
            given = f'{images.dtype}, {images.shape}' if isinstance(images, np.ndarray) else type(images).__name__
            raise ArtifactError(f'images should be uint8 of shape (N, H, W, 3), but got {given}')
        code, default = self.parse(skip), self.about['num_proposals']
        feeds = {'images': images, 'skip': np.array([letter == 'T' for letter in code if letter != '-'])}
        if proposals is not None:
            if default is None:
                raise ArtifactError(f'proposals={proposals!r}: this detector has none, leave them out')
            _require_count('proposals', proposals)
        if default is not None:
            feeds['num_proposals'] = np.array(default if proposals is None else proposals, np.int64)
        try:
            return self.backend.run(feeds)
        except Exception as error:  # of as many kinds as there are backends
            raise ArtifactError(f'{self.path} fails on images {images.shape} at {code} ({_line(error)})') from error

    def parse(self, skip: Skip | None) -> str:
        """A skip code of this detector, in capital letters; None is the super-net."""
        letters: Any = self.codes[0] if skip is None else skip
        if isinstance(skip, (list, tuple, np.ndarray)):
            letters = ''.join('T' if flag else 'F' for flag in skip)
        code = self._spelled.get(letters.upper()) if isinstance(letters, str) and letters.isascii() else None
        if code is None:
            raise ArtifactError(
                f'{skip!r} is not a skip code: it has one letter a stage ({self.num_stages} in all), T to skip it and '
                f'F to run it, such as {self.codes[0]} (super-net) or {self.codes[-1]} (base-net)'
            )
        return code

    def calibrate(self, image: Image, rounds: int = 3) -> dict[str, float]:
        """Measure what each depth takes on this machine; budgets go by it from then on.

        The super-net and each stage's skip alone are timed in turn, and what stages save is added up.

        Args:
            image: a typical one: what is found in it decides the time as well.
            rounds: timed calls of each, of which medians are taken.
        """
        _require_count('rounds', rounds)
        pixels = read_image(image)
        places = [place for place, letter in enumerate(self.codes[0]) if letter == 'F']
        timed = [self.codes[0], *(f'{self.codes[0][:own]}T{self.codes[0][own + 1 :]}' for own in places)]
        times = [[self(pixels, code).ms for code in timed] for _ in range(rounds + 1)][1:]  # the first calls are slow
        full, *one_less = (median(column) for column in zip(*times))
        saved = {place: full - ms for place, ms in zip(places, one_less)}
        self._ms = {code: full - sum(saved[own] for own in places if code[own] == 'T') for code in self.codes}
        return self._ms  # milliseconds by code

    def choose(self, budget_ms: float, image: Image) -> str:
        """The best depth that takes no longer than a budget.

        Best is the highest box AP among the rows in the file; where there are none, the fewest skipped stages. Times
        are those of :meth:`calibrate`, or of rows that have ``ms``; where there are none, ``image`` calibrates.
        """
        if not _is_number(budget_ms) or budget_ms <= 0:
            raise ArtifactError(f'budget_ms should be a positive number of milliseconds, but got {budget_ms!r}')
        with self._calibrating:
            times = self._ms or self.calibrate(image)
        accuracy = {row['skip']: row.get('bbox_mAP') for row in self.about['rows']}
        worth = {code: accuracy[code] for code in times if _is_number(accuracy.get(code))}
        worth = worth or {code: -code.count('T') for code in times}
        within = [(value, -times[code], code) for code, value in worth.items() if times[code] <= budget_ms]
        if not within:
            best = min(worth, key=lambda code: times[code])
            raise ArtifactError(f'no depth runs in {budget_ms:g} ms: the fastest, {best}, takes {times[best]:.1f} ms')
        return max(within)[2]


class _OnnxRuntime:
    def __init__(self, path: str, threads: int | None, providers: Names | None) -> None:
        onnxruntime = _import('onnxruntime')
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        asked, known = list(providers or ['CPUExecutionProvider']), onnxruntime.get_available_providers()
        if set(asked) - set(known):
            raise ArtifactError(f'providers should be of {", ".join(known)}, but got {", ".join(map(str, asked))}')
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=asked)
        except Exception as error:  # of its own kinds, which share no base class
            raise _cannot_open(path, error) from error
        self.name = f'onnxruntime-{self.session.get_providers()[0].removesuffix("ExecutionProvider").lower()}'
        self.inputs = {value.name for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.text: str | None = self.session.get_modelmeta().custom_metadata_map.get(KEY)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(self.outputs, feeds)))


class _OpenVino:
    def __init__(self, path: str, threads: int | None, providers: Names | None) -> None:
        openvino = _import('openvino')
        if providers:
            raise ArtifactError('providers are of onnxruntime: leave them out')
        settings = {'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': 'f32'}  # else bfloat16 on some CPUs
        try:
            model = openvino.Core().read_model(path)
            self.compiled = openvino.compile_model(
                model, 'CPU', settings | ({'INFERENCE_NUM_THREADS': threads} if threads else {})
            )
        except Exception as error:
            raise _cannot_open(path, error) from error
        self.name = 'openvino-cpu'
        self.inputs = {value.any_name for value in model.inputs}
        self.outputs = [value.any_name for value in model.outputs]
        place = ['framework', KEY]
        self.text: str | None = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.compiled.create_infer_request().infer(feeds)  # one request a call, for threads
        return {name: found[name] for name in self.outputs}


BACKENDS: dict[str, Any] = {'onnxruntime': _OnnxRuntime, 'openvino': _OpenVino}


def _import(package: str) -> Any:
    try:
        return __import__(package)
    except ImportError as error:
        raise ArtifactError(f'{package} cannot be imported ({_line(error)}): pip install {package}') from error


def _cannot_open(path: str, error: Exception) -> ArtifactError:
    reason = 'it is cut off or no ONNX file: copy it again'
    if 'external' in str(error).lower():
        reason = 'its weights lie in another file, which is missing or cut off: copy both'
    return ArtifactError(f'{path} cannot be opened, {reason}, or {EXPORT} ({_line(error)})')


def _line(error: Exception) -> str:
    """The message of another's exception in one bearable line."""
    text = ' '.join(str(error).split())
    return text if len(text) <= 200 else f'{text[:200]}…'


def _require_count(name: str, value: Any) -> None:
    if not _is_count(value):
        raise ArtifactError(f'{name} should be a whole number of at least 1, but got {value!r}')


def _read_metadata(path: str, backend: Any) -> dict[str, Any]:
    """What a file says of itself, checked."""
    if backend.text is None or not {'images', 'skip'} <= backend.inputs:
        raise ArtifactError(f'{path} is no any-depth detector: {EXPORT}')
    try:
        about = {'num_parts': 0, **json.loads(backend.text)}
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f'{path}: its metadata are no JSON object: {EXPORT}') from error
    if about.get('schema') != SCHEMA:
        raise ArtifactError(f'{path}: its metadata have schema {about.get("schema")!r:.40}, but {SCHEMA} is read')
    for name, is_valid in FIELDS.items():
        if not is_valid(about.get(name)):
            raise ArtifactError(f'{path}: its metadata have the {name} {about.get(name)!r:.60}: {EXPORT}')
    wanted = {'boxes', 'scores', 'labels', 'num', *(['masks'] if about['mask_threshold'] is not None else [])}
    if wanted != set(backend.outputs) or (about['num_proposals'] is None) == ('num_proposals' in backend.inputs):
        raise ArtifactError(f'{path}: its graph and its metadata do not agree: {EXPORT}')
    codes = all_codes(about['num_stages'], about['num_parts'])
    own = {'skip': codes, 'size': (None, min(about['resize']['scale'])), 'proposals': (None, about['num_proposals'])}
    rows = [row for row in about['rows'] if all(str(row.get(key)) in map(str, own[key]) for key in own)]
    about['rows'] = [row for row in rows if _is_number(row.get('ms', 0))]
    return about


def read_image(image: Image) -> np.ndarray:
    """An image as (H, W, 3) uint8, BGR; a file is read by OpenCV, or by pillow where that is not installed.

    Both turn it as its EXIF data say and leave transparency out; images of 16 bits need OpenCV.

    Raises:
        ArtifactError: it cannot be read.
    """
    if not isinstance(image, (np.ndarray, str, os.PathLike)):
        raise ArtifactError(f'an image should be a path or an array (H, W, 3), but got a {type(image).__name__}')
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            given = f'{image.dtype} of shape {image.shape}'
            raise ArtifactError(f'an image should be uint8 of shape (H, W, 3), BGR, but got {given}')
        return image
    path = os.fspath(image)
    if not os.path.isfile(path):
        raise ArtifactError(f'there is no image {path}: check the path')
    try:
        pixels = _decode(path)
    except Exception as error:  # of as many kinds as there are formats
        raise ArtifactError(f'{path} cannot be read as an image ({_line(error)})') from error
    if pixels is None:  # OpenCV says no more
        raise ArtifactError(f'{path} cannot be read as an image: give another one')
    return pixels


def _decode(path: str) -> np.ndarray | None:
    try:
        import cv2
    except ImportError:
        from PIL import Image, ImageOps
    else:
        return cv2.imread(path, cv2.IMREAD_COLOR)
    with Image.open(path) as picture:
        if picture.mode[0] in 'IF':
            raise ValueError(f'its pixels are {picture.mode}: give an array of uint8, or install OpenCV')
        return np.ascontiguousarray(np.asarray(ImageOps.exif_transpose(picture).convert('RGB'))[..., ::-1])


def fit(width: int, height: int, scale: Sequence[int], keep_ratio: bool) -> tuple[int, int]:
    """The width and height that the test pipeline resizes an image to, rounded as mmcv does."""
    if not keep_ratio:
        return scale[0], scale[1]
    factor = min(max(scale) / max(width, height), min(scale) / min(width, height))
    return int(width * factor + 0.5), int(height * factor + 0.5)


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 as mmcv does, bilinear; OpenCV where it is installed, else numpy, equal to the bit."""
    if not (width and height):
        raise ArtifactError(f'an image of {image.shape[1]}×{image.shape[0]} resizes to nothing: give another one')
    try:
        import cv2
    except ImportError:
        return resize_by_numpy(image, width, height)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_by_numpy(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """:func:`resize` in OpenCV's whole-number arithmetic."""
    if image.shape[:2] == (2 * height, 2 * width):  # of which OpenCV takes the mean of four
        a, b, c, d = (image[y::2, x::2].astype(np.int32) for y in (0, 1) for x in (0, 1))
        return (a + b + c + d + 2 >> 2).astype(np.uint8)
    left, right, across = _taps(image.shape[1], width)
    above, below, down = _taps(image.shape[0], height)
    rows = image[:, left] * across[0][:, None] + image[:, right] * across[1][:, None] >> 4
    down = down[..., None, None]
    return ((rows[above] * down[0] >> 16) + (rows[below] * down[1] >> 16) + 2 >> 2).astype(np.uint8)


def _taps(size: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new pixel of a line: the two old ones that it lies between, and the weights of both, of 2^11 in all."""
    at = ((np.arange(new) + 0.5) * (1 / (new / size)) - 0.5).astype(np.float32)
    first = np.floor(at)
    weights = np.rint(np.stack([1 - (at - first), at - first]) * np.float32(1 << 11)).astype(np.int32)
    index = first.astype(np.int64)
    return index.clip(0, size - 1), (index + 1).clip(0, size - 1), weights


def paste(masks: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float) -> np.ndarray:
    """Paste masks into an image.

    The centre of a pixel takes the bilinear value of the mask there, 0 outside of it, as mmdet's ``grid_sample`` does:
    the same masks but for pixels within rounding of the threshold.

    Args:
        masks: (K, h, w) probabilities over the boxes.
        boxes: (K, 4) in pixels of the image.
        height: of the image, as of the (K, height, width) bool that are returned.
        width: of the same.
        threshold: least probability of a pixel of the object.
    """
    pasted = np.zeros((len(masks), height, width), bool)
    for mask, (x1, y1, x2, y2), out in zip(masks, boxes.tolist(), pasted):
        if x2 > x1 and y2 > y1:
            columns, from_left = _reach(x1, x2, width, mask.shape[1])
            rows, from_top = _reach(y1, y2, height, mask.shape[0])
            out[rows, columns] = from_top @ mask @ from_left.T >= threshold
    return pasted


def _reach(low: float, high: float, size: int, bins: int) -> tuple[slice, np.ndarray]:
    """The pixels of a line that a mask from ``low`` to ``high`` reaches, and each one's weights of the mask's bins."""
    first, last = max(0, math.floor(low) - 1), min(size, math.ceil(high) + 1)
    centres = np.arange(first, max(first, last)) + 0.5
    at = (centres - low) / (high - low) * bins - 0.5
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(bins)))
    return slice(first, max(first, last)), weights.astype(np.float32)
