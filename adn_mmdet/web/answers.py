"""What the page answers to what a user does: cards of what was found, or one line that says what is wrong."""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UserError
from ..explain import explain
from ..operating_point import OperatingPoint
from ..results.rows import METRICS
from .playground import Look, Playground
from .uploads import Source, Uploads, open_source, read_frame

MOST_SIDE = 1280  # pixels of a picture in the page

Controls = Sequence[Any]  # of one side: depth, input size, proposals


class Answers:
    """The page's answers. Sessions are told apart by a text, one a page that is open.

    Args:
        playground: runs the detector.
        uploads: of all sessions.
        examples: images to look at before any upload, at least one.
    """

    def __init__(self, playground: Playground, uploads: Uploads, examples: Sequence[Path]) -> None:
        self.playground, self.uploads, self.examples = playground, uploads, examples

    def take_example(self, session: str, number: int) -> None:
        """Let a session look at an example."""
        self.uploads.hold(session, Source(self.examples[number]))

    def take_upload(self, session: str, path: str | None) -> tuple[str, int]:
        """Let a session look at what it has uploaded; None takes that away.

        Returns:
            A line, which is empty if all is well, and the number of frames. If a file cannot be looked at, it is
            removed, and what the session looked at before stays.
        """
        if path is None:
            self.take_example(session, 0)
            return '', 1
        line, source = _in_one_line(lambda: open_source(Path(path)))
        if source is None:
            self.uploads.refuse(Path(path))
            return line, 0
        self.uploads.hold(session, source)
        return '', source.num_frames

    def look(self, session: str, frame: int, score: float, *sides: Controls) -> tuple[str, list[str | None]]:
        """Look at a session's file with the controls of one or several sides.

        Returns:
            A line, which is empty if all is well, and the card of each side; None instead of those that are not there.
        """

        def cards() -> list[str | None]:
            source = self.source(session)
            image = read_frame(source.path, int(frame))
            points = [self.playground.point(*controls) for controls in sides]
            return [card(self.playground.look(image, point, score)) for point in points]

        line, found = _in_one_line(cards)
        return line, found or [None] * len(sides)

    def source(self, session: str) -> Source:
        """What a session looks at: at first an example."""
        return self.uploads.of(session) or Source(self.examples[0])

    def at(self, position: float) -> OperatingPoint:
        """The point at a position of the slider, the cheapest first."""
        return self.playground.positions[int(position)]


def card(look: Look) -> str:
    """A picture and what it cost, as HTML."""
    facts = {'ms': f'{look.ms:.1f}', 'GMACs': '–' if look.gmacs is None else f'{look.gmacs:.2f}'}
    facts |= {METRICS[key]: f'{100 * value:.1f}' for key, value in look.accuracies.items()}
    if not look.accuracies:
        facts['AP'] = 'not tested'
    number = f'{look.num_found} object{"" if look.num_found == 1 else "s"}'
    tiles = ''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in facts.items())
    return (
        f'<figure class="look"><img src="{_data_uri(look)}" alt="{number} at {look.point}">'
        f'<figcaption><b>{look.point}</b><span>{number}</span></figcaption><dl>{tiles}</dl></figure>'
    )


def _data_uri(look: Look) -> str:
    picture = Image.fromarray(look.picture)
    picture.thumbnail((MOST_SIDE, MOST_SIDE))
    picture.save(buffer := io.BytesIO(), 'JPEG', quality=90)
    return f'data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _in_one_line(work: Callable[[], Any]) -> tuple[str, Any]:
    """An error's line as HTML and None, or an empty line and what was made: nothing that a user does ends the page."""
    try:
        return '', work()
    except Exception as error:
        line = explain(error)
        if not isinstance(error, UserError):
            print(f'error: {line}', file=sys.stderr)  # for whoever runs the page
        return f'<p class="wrong" role="alert">{html.escape(line)}</p>', None
