"""Pictures of predictions: the label in their corner, and the format of their files."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import cv2
import numpy as np

from ..errors import UserError

WRITABLE = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')  # others become .png
FONT, MARGIN = cv2.FONT_HERSHEY_DUPLEX, 4


def draw_label(picture: np.ndarray, text: str) -> np.ndarray:
    """Write white text on a black box in the upper left corner, legible on any picture.

    Args:
        picture: (H, W, 3).
        text: a few words, or none.

    Returns:
        The picture; its label is as wide as a fifth of it where that is legible.
    """
    picture = np.ascontiguousarray(picture)
    if not text:
        return picture
    width = picture.shape[1]
    (natural, _), _ = cv2.getTextSize(text, FONT, 1.0, 1)
    scale = min(max(width / 5, 120), width - 2 * MARGIN) / natural
    thickness = max(1, round(scale))
    (text_width, text_height), baseline = cv2.getTextSize(text, FONT, scale, thickness)
    cv2.rectangle(
        picture, (0, 0), (text_width + 2 * MARGIN, text_height + baseline + 2 * MARGIN), (0, 0, 0), cv2.FILLED
    )
    origin = MARGIN, MARGIN + text_height
    return cv2.putText(picture, text, origin, FONT, scale, (255, 255, 255), thickness, cv2.LINE_AA)


def picture_name(image: str | np.ndarray, number: int) -> str:
    """The file name of an image's picture: its own, in a format that can be written; an array's is its number."""
    if isinstance(image, np.ndarray):
        return f'{number:08d}.jpg'
    name = PurePosixPath(urlsplit(image).path if '://' in image else os.path.basename(image)).name
    return name if name.lower().endswith(WRITABLE) else f'{name}.png'


def encode_picture(name: str, picture: np.ndarray) -> bytes:
    """An RGB picture, (H, W, 3), in the format of a file name's suffix."""
    done, content = cv2.imencode(Path(name).suffix, picture[..., ::-1])
    if not done:
        height, width = picture.shape[:2]
        raise UserError(f'{name} cannot be encoded at {width}×{height}: detect on an image of another format')
    return content.tobytes()
