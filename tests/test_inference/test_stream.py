"""Live sources: those that are not there, stall, end, or change their size."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import mmcv
import numpy as np
import pytest

from adn_mmdet import UserError
from adn_mmdet.inference import list_inputs, stream
from adn_mmdet.inference.stream import Stream, is_stream
from adn_mmdet.inference.video import VideoWriter


class Camera:
    """OpenCV's capture of frames that are given; after them it hangs until it is let go, or ends.

    Before each of ``waits_before`` it waits until the one before was seen.
    """

    def __init__(self, frames, stalls=False, waits_before=None):
        self.frames, self.stalls = enumerate(frames), stalls
        self.waits_before = range(1, len(frames)) if waits_before is None else waits_before
        self.seen, self.hangs, self.released = threading.Semaphore(0), threading.Event(), threading.Event()

    def isOpened(self):
        return True

    def get(self, what):
        return 30.0

    def read(self):
        number, frame = next(self.frames, (None, None))
        if number in self.waits_before:
            self.seen.acquire(timeout=5)
        if frame is None and self.stalls:
            self.hangs.wait(5)
        return frame is not None, frame

    def release(self):
        self.released.set()


def frames_of(*sizes):
    return [np.full((height, width, 3), 9, np.uint8) for width, height in sizes]


@pytest.fixture
def camera(monkeypatch):
    """Puts a Camera in the place of OpenCV's."""

    def plug(camera):
        monkeypatch.setattr(stream, '_open', lambda source, timeout: camera)
        return camera

    return plug


def look(source, camera):
    found = []
    for frame in source:
        found.append(frame)
        camera.seen.release()
    return found


def test_what_is_a_live_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / '7').mkdir()
    live = [0, '0', '12', '/dev/video0', 'rtsp://u:p@host/1', 'RTSP://host', 'udp://@:1', 'http://host/a.m3u8?x=1']
    other = [True, -1, 0.5, '7', 'a.jpg', 'rtsp', 'http://host/a.jpg', 'http://host/a.mp4', '', None, '1.mp4']
    assert [is_stream(one) for one in live] == [True] * len(live)
    assert [is_stream(one) for one in other] == [False] * len(other)


def test_a_webcam_that_is_not_there_is_one_line(capfd):
    for source, message in (
        (97, 'webcam 97 cannot be opened: is it plugged in, and used by no other program?'),
        ('97', 'webcam 97 cannot be opened'),
        ('/dev/video97', '/dev/video97 cannot be opened: check the address'),
        ('rtsp://me:secret@127.0.0.1:9/1', '^rtsp://127.0.0.1:9/1 cannot be opened: check the address'),
    ):
        with pytest.raises(UserError, match=message):
            list_inputs(source)
    assert 'VIDEOIO' not in capfd.readouterr().err  # none of OpenCV's own lines
    with pytest.raises(UserError, match='timeout should be a positive number of seconds, but got 0'):
        Stream(0, timeout=0)


def test_a_stream_that_ends(camera):
    plugged = camera(Camera(frames_of((64, 48), (64, 48))))
    source = Stream('rtsp://host/street/1')
    assert (source.path, source.name, source.fps) == ('rtsp://host/street/1', 'rtsp_host_street_1', 30.0)
    assert [frame.shape for frame in look(source, plugged)] == [(48, 64, 3)] * 2
    assert plugged.released.wait(5)
    with pytest.raises(UserError, match='rtsp://host/street/1 has been read: open it again'):
        look(source, plugged)


def test_a_stream_that_stalls_is_given_up(camera):
    plugged = camera(Camera(frames_of((64, 48)), stalls=True))
    with pytest.warns(UserWarning, match='webcam 0 sent nothing for 0.2 s and is given up after frame 1'):
        assert len(look(Stream(0, timeout=0.2), plugged)) == 1
    plugged.hangs.set()
    assert plugged.released.wait(5)
    plugged = camera(Camera([], stalls=True))
    with pytest.raises(UserError, match='webcam 0 sent no frame within 0.1 s: check that it is on'):
        look(Stream(0, timeout=0.1), plugged)
    plugged.hangs.set()


def test_only_the_newest_frame_is_kept(camera):
    """However long one is looked at, nothing lags or piles up."""
    plugged = camera(Camera([np.full((2, 2, 3), number, np.uint8) for number in range(9)], waits_before=[1]))
    source = iter(Stream(0))
    first = next(source)
    plugged.seen.release()
    assert plugged.released.wait(5)  # the others came and went
    assert [int(frame[0, 0, 0]) for frame in (first, *source)] == [0, 8]


def test_frames_that_change_their_size_are_written_in_the_first_ones(tmp_path):
    with (
        pytest.warns(UserWarning, match='frames change from 64×48 to 32×32: in a.mp4 they are resized') as said,
        VideoWriter(tmp_path / 'a.mp4', 8.0) as writer,
    ):
        for frame in frames_of((64, 48), (32, 32), (32, 32), (64, 48)):
            writer.write(frame)
    written = mmcv.VideoReader(str(tmp_path / 'a.mp4'))
    assert (len(written), written.resolution) == (4, (64, 48)) and len(said) == 1


def test_what_a_live_source_sent_is_kept(tmp_path):
    for live in (True, False):
        with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / f'{live}.mp4', 8.0, live=live) as writer:
            writer.write(frames_of((64, 48))[0])
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ['True.mp4']


def test_a_real_stream(inferencer, shapes):
    """Motion JPEG over HTTP, as many cameras send it: predicted frame by frame, to its end."""
    _, picture = cv2.imencode('.jpg', cv2.imread(str(next((shapes / 'val').iterdir()))))

    class Sends(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Type', 'multipart/x-mixed-replace; boundary=frame')
            self.end_headers()
            for _ in range(30):
                head = f'--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n'
                self.wfile.write(head.encode() + picture.tobytes() + b'\r\n')

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Sends)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = []
        address = f'http://127.0.0.1:{server.server_port}/video.mjpg'
        results = inferencer(address, skip='TTTT', on_prediction=found.append)
    finally:
        server.shutdown()
        server.server_close()
    assert results['predictions'] == [] and 1 <= len(found) <= 30
    assert {one['skip'] for one in found} == {'TTTT'} and len(found[0]['scores']) > 0
