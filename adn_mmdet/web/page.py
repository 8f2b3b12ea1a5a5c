"""The page: an image or a short video at two operating points, side by side. The only module that imports Gradio."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .answers import Answers
from .playground import Playground
from .uploads import MOST_BYTES, Uploads, upload_folder

try:
    import gradio as gr
    import gradio.routes
except ImportError as error:
    raise UserError(f'the page needs gradio ({error}): pip install "adn_mmdet[web]"') from error

CSS = Path(__file__).with_name('page.css')
HELD = 3600  # seconds: an upload is removed after that, and before if its page is closed
MOST_WAITING = 64  # events of all sessions
AT_ONCE = 1  # of them: an older answer would else arrive after a newer one
PLAYS_EVERY = 0.1  # seconds between two frames, or as long as they take
FONTS = dict(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'])  # of the machine that looks
# Browsers load nothing from other servers, whatever Gradio's own scripts would like; those need inline code.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


@contextlib.contextmanager
def serving(playground: Playground, examples: Sequence[Path], about: str, port: int | None = None) -> Iterator[str]:
    """Serve the page to this machine alone, in threads of this process, until the ``with`` block ends.

    Args:
        playground: runs the detector.
        examples: images to begin with.
        about: what runs, in a few words.
        port: where; None takes the first that is free from 7860 on.

    Yields:
        The page's address.

    Raises:
        UserError: the port is in use.
    """
    with upload_folder() as folder:
        os.environ |= dict(GRADIO_TEMP_DIR=str(folder), GRADIO_ANALYTICS_ENABLED='False', HF_HUB_DISABLE_TELEMETRY='1')
        gradio.routes.DEFAULT_TEMP_DIR = str(folder)  # read at its import, and a folder is made in it
        blocks = _Page(Answers(playground, Uploads(folder), examples), about).blocks
        try:
            blocks.launch(
                server_name='127.0.0.1',
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                max_file_size=MOST_BYTES,
                enable_monitoring=False,
                ssr_mode=False,
                footer_links=[],
                theme=gr.themes.Default(**FONTS),
                css_paths=CSS,
                app_kwargs=dict(middleware=[(_OwnOnly, (), {})]),
            )
        except OSError as error:  # Gradio's own, with its advice
            where = 'no port from 7860 to 7959' if port is None else f'port {port} of 127.0.0.1'
            raise UserError(f'{where} cannot be used: give another one, --port') from error
        try:
            yield blocks.local_url
        finally:
            blocks.close(verbose=False)


class _OwnOnly:
    """ASGI middleware that sends POLICY."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message['type'] == 'http.response.start':
                message['headers'] = [*message['headers'], (b'content-security-policy', POLICY)]
            await send(message)

        await self.app(scope, receive, send_with_policy)


class _Side:
    """The controls of one of the two points, and the card of what was found there."""

    def __init__(self, answers: Answers, name: str, position: int) -> None:
        playground, last = answers.playground, len(answers.playground.positions) - 1
        point = answers.at(position)
        with gr.Column(scale=3, min_width=300):
            where = 'along the frontier' if playground.accuracy_known else 'all depths'
            self.position = gr.Slider(
                0, max(last, 1), position, step=1, label=f'{name}: {where}, the cheapest first',
                elem_id=f'position-{name}', interactive=last > 0, buttons=[],
            )  # fmt: skip
            self.card = gr.HTML(elem_id=f'card-{name}', padding=False)
            with gr.Row(elem_classes='controls'):
                code = gr.Dropdown(list(map(str, playground.codes)), value=str(point.skip), label='Depth', min_width=90)
                size = self._slider(playground.sizes, point.size, 'Input size')
                most = playground.own.proposals
                proposals = self._slider((1, most, 1) if most else None, point.proposals, 'Proposals')
        self.controls = [code, size, proposals]

    def _slider(self, limits: tuple[int, int, int] | None, value: int | None, label: str) -> Any:
        if limits is None:  # the detector has none to choose
            return gr.Number(None, visible=False)
        least, most, step = limits
        return gr.Slider(least, most, value, step=step, label=label, min_width=120, buttons=[])


class _Page:
    """Gradio's Blocks: the layout, and which answer each event has."""

    def __init__(self, answers: Answers, about: str) -> None:
        self.answers = answers
        title = 'adn_mmdet: any depth of one detector'
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, HELD), fill_width=True) as self.blocks:
            gr.HTML(f'<h1>Any depth of one detector</h1><p>{about}</p>', elem_id='heading', padding=False)
            with gr.Row():
                with gr.Column(scale=2, min_width=260):
                    self._lay_out_inputs()
                last = len(answers.playground.positions) - 1
                self.sides = [_Side(answers, 'A', last), _Side(answers, 'B', 0)]
            self.timer = gr.Timer(PLAYS_EVERY, active=False)
            self._wire()
        self.blocks.queue(max_size=MOST_WAITING)

    def _lay_out_inputs(self) -> None:
        self.upload = gr.File(label='Your image or short video, or one of these', height=150, elem_id='upload')
        self.gallery = gr.Gallery(
            list(map(str, self.answers.examples)), show_label=False, columns=3, height='auto', object_fit='cover',
            allow_preview=False, interactive=False, buttons=[], elem_id='examples',
        )  # fmt: skip
        self.line = gr.HTML(elem_id='line', padding=False)
        self.score = gr.Slider(0, 1, 0.3, step=0.05, label='Least score of what is drawn', buttons=[])
        self.frame = gr.Slider(0, 1, 0, step=1, label='Frame', visible=False, buttons=[], elem_id='frame')
        self.plays = gr.Checkbox(False, label='Play', visible=False)

    def _wire(self) -> None:
        a, b = self.sides
        at = [self.frame, self.score]
        both, cards = [*at, *a.controls, *b.controls], [self.line, a.card, b.card]
        film = [self.frame, self.plays, self.timer]
        quick: dict[str, Any] = dict(queue=False, show_progress='hidden', api_visibility='private')
        slow: dict[str, Any] = dict(
            trigger_mode='always_last', concurrency_id='look', concurrency_limit=AT_ONCE, show_progress='hidden',
            api_visibility='private',
        )  # fmt: skip
        gr.on([self.blocks.load, self.score.input, self.frame.input], self._show, both, cards, **slow)
        for side in self.sides:
            changed = [control.input for control in side.controls]
            shows: dict[str, Any] = dict(inputs=[*at, *side.controls], outputs=[self.line, side.card], **slow)
            gr.on(changed, self._show, **shows)
            side.position.input(self._move, side.position, side.controls, **quick).then(self._show, **shows)
        held = [self.upload, *both], [self.upload, *film, *cards]
        # Gradio's own preparation of a file leaves an empty one behind.
        gr.on([self.upload.upload, self.upload.clear], self._upload, *held, preprocess=False, **slow)
        self.gallery.select(self._take_example, both, [self.upload, *film, *cards], **slow)
        self.timer.tick(self._play, both, [*film, *cards], **slow | dict(trigger_mode='once'))
        self.plays.input(lambda plays: gr.Timer(active=plays), self.plays, self.timer, **quick)
        self.blocks.unload(self._leave)

    def _show(self, request: gr.Request, frame: float, score: float, *controls: Any) -> list[Any]:
        """The line, and the card of each side whose controls are there."""
        sides = [controls[start : start + 3] for start in range(0, len(controls), 3)]
        line, cards = self.answers.look(str(request.session_hash), int(frame), score, *sides)
        return [line, *(gr.skip() if card is None else card for card in cards)]

    def _move(self, position: float) -> list[Any]:
        """The controls of a point, at once: what is asked next goes by them."""
        point = self.answers.at(position)
        return [str(point.skip), point.size, point.proposals]

    def _upload(self, request: gr.Request, file: dict[str, Any] | None, frame: float, *others: Any) -> list[Any]:
        line, frames = self.answers.take_upload(str(request.session_hash), file['path'] if file else None)
        if line:
            return [None, *[gr.skip()] * 3, line, *[gr.skip()] * len(self.sides)]
        return [gr.skip(), *self._film(frames), *self._show(request, 0, *others)]

    def _take_example(self, event: gr.SelectData, request: gr.Request, frame: float, *others: Any) -> list[Any]:
        self.answers.take_example(str(request.session_hash), event.index)
        return [None, *self._film(1), *self._show(request, 0, *others)]

    def _film(self, frames: int) -> list[Any]:
        """The controls of a video, which begins to play, or of an image, which has none."""
        is_video = frames > 1
        frame = gr.Slider(0, max(1, frames - 1), value=0, visible=is_video)
        return [frame, gr.Checkbox(is_video, visible=is_video), gr.Timer(active=is_video)]

    def _play(self, request: gr.Request, frame: float, *others: Any) -> list[Any]:
        """The next frame; the timer stops at the last one, or where something is wrong."""
        last = self.answers.source(str(request.session_hash)).num_frames - 1
        number = min(int(frame) + 1, last)
        line, *cards = self._show(request, number, *others)
        goes_on = number < last and not line
        return [number, gr.skip() if goes_on else False, gr.Timer(active=goes_on), line, *cards]

    def _leave(self, request: gr.Request) -> None:
        self.answers.uploads.release(str(request.session_hash))
