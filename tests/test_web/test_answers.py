import base64
import re

import cv2
import numpy as np
import pytest
from test_web.conftest import GMACS

from adn_mmdet.web import Uploads
from adn_mmdet.web.answers import Answers

A, B = ('FFFF', 64, 20), ('TTTT', 32, 20)


@pytest.fixture
def answers(playground, examples, tmp_path):
    return Answers(playground, Uploads(tmp_path), examples)


def uploaded(answers, files, name, session='one'):
    """A file where Gradio puts it."""
    path = answers.uploads.folder / session / name
    path.parent.mkdir()
    path.write_bytes((files / name).read_bytes())
    return path


def picture(card):
    content = base64.b64decode(re.search('base64,([^"]*)"', card)[1])
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def test_cards_of_both_sides(answers):
    line, (a, b) = answers.look('one', 0, 0.0, A, B)
    assert line == '' and picture(a).shape == picture(b).shape == (64, 64, 3)
    assert np.abs(picture(a).astype(int) - picture(b)).max() > 30
    for card, at, point, ap in ((a, A, 'FFFF@64/20', '40.0'), (b, B, 'TTTT@32/20', '25.0')):
        assert f'<b>{point}</b>' in card and re.search(r'<dt>ms</dt><dd>[\d.]+</dd>', card)
        assert f'<dt>GMACs</dt><dd>{GMACS[at]:.2f}</dd>' in card and f'<dt>box AP</dt><dd>{ap}</dd>' in card
    _, (card,) = answers.look('one', 0, 0.0, ('TFTF', 64, 20))
    assert '<dt>AP</dt><dd>not tested</dd>' in card


def test_an_upload_is_shown_to_its_session_alone(answers, files):
    example = answers.look('one', 0, 1.0, A)[1]
    path = uploaded(answers, files, 'image.png')
    assert answers.take_upload('one', str(path)) == ('', 1)
    own, other = (answers.look(session, 0, 1.0, A)[1] for session in ('one', 'two'))
    assert np.array_equal(picture(other[0]), picture(example[0]))
    assert not np.array_equal(picture(own[0]), picture(example[0]))
    assert answers.take_upload('one', None) == ('', 1) and not path.exists()
    answers.take_example('one', 1)
    assert np.array_equal(picture(answers.look('one', 0, 1.0, A)[1][0]), picture(own[0]))  # the same image


def test_frames_of_a_video(answers, files):
    line, frames = answers.take_upload('one', str(uploaded(answers, files, 'drive.avi')))
    pictures = [picture(answers.look('one', frame, 1.0, B)[1][0]) for frame in range(frames)]
    assert line == '' and frames == 3 and not np.array_equal(pictures[0], pictures[2])
    line, cards = answers.look('one', 3, 1.0, A, B)
    assert 'drive.avi has no frame 3 that can be read' in line and cards == [None, None]


@pytest.mark.parametrize('name', ['text.jpg', 'drawing.svg', 'packed.zip', 'no_frame.avi', 'large.png'])
def test_what_is_no_image_is_one_line_and_removed(name, answers, files):
    path = uploaded(answers, files, name)
    line, frames = answers.take_upload('one', str(path))
    assert re.fullmatch(f'<p class="wrong" role="alert">{name} [^<>]*</p>', line) and frames == 0
    assert list(answers.uploads.folder.iterdir()) == [] and answers.source('one').path == answers.examples[0]


def test_whatever_goes_wrong_is_one_line_of_text(answers, monkeypatch, capsys):
    line, cards = answers.look('one', 0, 0.3, ('<b>TTT</b>', 64, 20))
    assert '&lt;b&gt;TTT&lt;/b&gt;&#x27; is not a skip code' in line and cards == [None]

    def fail(*arguments):
        raise RuntimeError('of <the> device')

    monkeypatch.setattr(answers.playground, 'look', fail)
    line, cards = answers.look('one', 0, 0.3, A, B)
    assert 'RuntimeError: of &lt;the&gt; device' in line and cards == [None, None]
    assert 'error: RuntimeError: of <the> device' in capsys.readouterr().err  # and whoever runs the page sees it
