import os
import time

import cv2
import numpy as np
import pytest

from adn_mmdet import UserError
from adn_mmdet.files import locked
from adn_mmdet.web import uploads
from adn_mmdet.web.uploads import LEFT_AFTER, Source, Uploads, open_source, read_frame, upload_folder

BAD = {
    'text.jpg': 'text.jpg cannot be read as an image',
    'nothing.png': 'nothing.png cannot be read as an image',
    'drawing.svg': 'drawing.svg should be an image (.jpg',
    'drawing.png': 'drawing.png cannot be read as an image',
    'packed.zip': 'packed.zip should be an image (.jpg',
    'packed.jpg': 'packed.jpg cannot be read as an image',
    'cut.mp4': 'cut.mp4 is no video that OpenCV can read',
    'no_frame.avi': 'no_frame.avi is no video that OpenCV can read',
    'large.png': 'large.png has 6000×5000 pixels, which are 30 megapixels, but 25 at most are shown',
    'gone.png': 'gone.png was removed: upload it again',
}


@pytest.mark.parametrize('name', BAD)
def test_what_cannot_be_looked_at_is_one_line_without_its_folder(name, files):
    with pytest.raises(UserError) as error:
        open_source(files / name)
    assert BAD[name] in (line := str(error.value)) and str(files) not in line and '\n' not in line


def test_images_and_frames(files, examples, monkeypatch):
    assert open_source(files / 'image.png') == (files / 'image.png', 1)
    assert np.array_equal(read_frame(files / 'image.png', 7), cv2.imread(str(examples[1])))
    video = open_source(files / 'drive.avi')
    assert video.num_frames == 3
    frames = [read_frame(video.path, number) for number in range(3)]
    assert all(frame.shape == (64, 64, 3) for frame in frames) and not np.array_equal(frames[0], frames[2])
    with pytest.raises(UserError, match='drive.avi has no frame 3 that can be read'):
        read_frame(video.path, 3)
    monkeypatch.setattr(uploads, 'MOST_PIXELS', 1000)
    with pytest.raises(UserError, match='drive.avi has 64×64 pixels'):
        open_source(video.path)


def put(folder, name='a/image.png'):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b'image')
    return path


def test_an_upload_goes_with_the_last_session_that_looks_at_it(tmp_path, examples):
    held = Uploads(tmp_path)
    path = put(tmp_path)
    for session in ('one', 'two'):  # of the same content: a page opened twice
        held.hold(session, Source(path))
    held.release('one')
    assert path.exists() and held.of('one') is None and held.of('two') == (path, 1)
    other = put(tmp_path, 'b/image.png')
    held.hold('two', Source(other))
    assert not path.parent.exists() and other.exists()
    held.hold('two', Source(other))  # the same once more
    assert other.exists()
    held.hold('two', Source(examples[0]))
    assert not other.exists()
    held.release('two')
    held.release('unknown')
    assert examples[0].exists() and list(tmp_path.iterdir()) == []


def test_a_refused_upload_goes_unless_somebody_looks_at_it(tmp_path, examples):
    held, path = Uploads(tmp_path), put(tmp_path)
    held.hold('one', Source(path))
    held.refuse(path)
    assert path.exists()
    held.release('one')
    held.refuse(put(tmp_path))
    held.refuse(examples[0])
    assert list(tmp_path.iterdir()) == [] and examples[0].exists()


def test_parts_of_closed_connections_go(tmp_path, examples):
    old, new = tmp_path / 'old', tmp_path / 'new'
    for part in (old, new):
        part.write_bytes(b'part')
    os.utime(old, (time.time() - LEFT_AFTER - 1,) * 2)
    Uploads(tmp_path).hold('one', Source(examples[0]))
    assert list(tmp_path.iterdir()) == [new]


def test_the_folder_is_removed_and_so_are_those_of_killed_processes(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    killed, running, elsewhere = (tmp_path / name for name in ('adn_mmdet_web_a', 'adn_mmdet_web_b', 'others'))
    for folder in (killed, running, elsewhere):
        put(tmp_path, f'{folder.name}/image.png')
    with locked(running):
        for folder in (killed, running, elsewhere):
            os.utime(folder, (time.time() - 100,) * 2)
        with pytest.raises(RuntimeError), upload_folder() as folder:
            put(folder)
            assert sorted(tmp_path.iterdir()) == sorted([running, elsewhere, folder])
            raise RuntimeError
    assert sorted(tmp_path.iterdir()) == [running, elsewhere] and (running / 'image.png').exists()
