"""A held budget, on a simulated clock: a frame takes its point's time × the load of the moment."""

import weakref
from itertools import groupby
from types import SimpleNamespace

import mmcv
import pytest
from test_inference.test_stream import Camera

from adn_mmdet import UserError
from adn_mmdet.inference import held, stream
from adn_mmdet.inference.stream import Stream
from adn_mmdet.points import point_in_force
from adn_mmdet.results.pareto import Point

FRONT = [Point(10.0, 0.2, 'TTTT'), Point(20.0, 0.3, 'TTFF@32'), Point(40.0, 0.4, 'FFFF')]
MS = {point.skip: point.cost for point in FRONT}


@pytest.fixture
def machine(inferencer, monkeypatch):
    """Calibrated to FRONT; ``loads`` are those of the frames to come, after the three calls of the warm-up."""
    clock = SimpleNamespace(seconds=0.0, loads=[], calls=[])
    forward = inferencer.forward

    def timed(inputs, **kwargs):
        point = str(point_in_force(inferencer.model))
        load = clock.loads.pop(0) if clock.loads and len(clock.calls) >= 3 else 1.0
        clock.calls.append(point)
        clock.seconds += 1e-3 * MS[point] * load
        return forward(inputs, **kwargs)

    monkeypatch.setattr(inferencer, 'forward', timed)
    monkeypatch.setattr(held, 'time', SimpleNamespace(perf_counter=lambda: clock.seconds))
    inferencer.fronts[1] = FRONT
    return clock


@pytest.fixture
def frames(video):
    return list(mmcv.VideoReader(video))


def test_the_point_follows_the_load(inferencer, machine, frames, tmp_path):
    """Down within three frames, up within twenty; what ran is in the log, and predictions are those of their points."""
    machine.loads = [1.0] * 5 + [1.8] * 10 + [1.0] * 30
    log = tmp_path / 'logs' / 'ran.csv'
    found = list(inferencer([frames[0]] * 45, budget_ms=45, hold=True, log=log))
    runs = [(point, len(list(group))) for point, group in groupby(one['point'] for one in found)]
    assert machine.calls[:3] == list(MS)  # each ran once before
    assert runs[:2] == [('FFFF', 6), ('TTFF@32', 27)] and runs[2][0] == 'FFFF'
    assert [one['frame_ms'] for one in found[4:8]] == pytest.approx([40, 72, 36, 36])
    head, *lines = log.read_text().splitlines()
    assert head == 'frame,point,ms' and lines[5] == '5,FFFF,72.000' and len(lines) == 45
    expected = {point: inferencer(frames[0], point=point)['predictions'][0] for point in MS}
    for one in found:
        assert (one['scores'], one['bboxes']) == (expected[one['point']]['scores'], expected[one['point']]['bboxes'])


def test_one_frame_is_held_at_a_time(inferencer, machine, video, tmp_path):
    """Nothing runs before it is asked for; a video that is left early is written so far."""
    kept, most, handed = [], 0, []
    options = dict(budget_ms=45, hold=True, return_datasamples=True, on_prediction=lambda one: handed.append(one.point))
    predictions = inferencer(video, out_dir=tmp_path, pred_score_thr=2.0, **options)
    assert not machine.calls
    for prediction in predictions:
        kept.append(weakref.ref(prediction))
        most = max(most, sum(other() is not None for other in kept))
        assert prediction.frame_ms == pytest.approx(MS[prediction.point])
        if len(kept) == 3:
            break
    predictions.close()
    assert most <= 2 and handed == ['FFFF'] * 3
    assert len(mmcv.VideoReader(str(tmp_path / 'vis' / 'drive.mp4'))) == 3
    assert str(inferencer.backbone.resolve_skip()) == 'FFFF'


def test_a_stream_that_changes_its_size_is_written(inferencer, machine, frames, tmp_path, monkeypatch):
    camera = Camera([frames[0], frames[1][:32, :48], frames[2]], stalls=True)
    monkeypatch.setattr(stream, '_open', lambda source, timeout: camera)
    with pytest.warns(UserWarning) as said:
        for prediction in inferencer(Stream(0, timeout=0.2), budget_ms=45, hold=True, out_dir=tmp_path):
            camera.seen.release()
            assert prediction['frame_ms'] == pytest.approx(40) and len(prediction['scores']) > 0
    camera.hangs.set()
    texts = [str(warning.message) for warning in said]
    assert [text for text in texts if 'frames change from 64×64 to 48×32: in webcam_0.mp4 they are resized' in text]
    assert [text for text in texts if 'webcam 0 sent nothing for 0.2 s and is given up after frame 3' in text]
    assert len(mmcv.VideoReader(str(tmp_path / 'vis' / 'webcam_0.mp4'))) == 3


def test_a_budget_that_cannot_be_held_is_said_once(inferencer, machine, frames):
    with pytest.warns(UserWarning, match='budget of 9 ms cannot be held: even TTTT, the fastest, takes longer') as said:
        found = list(inferencer(frames, budget_ms=9, hold=True))
    assert len(said) == 1 and {one['point'] for one in found} == {'TTTT'} and len(found) == 4


def test_what_is_wrong_is_said_at_once(inferencer, machine, video, tmp_path):
    (tmp_path / 'notes.csv').write_text('mine\n')
    for arguments, message in (
        (dict(), 'hold=True holds a budget: give budget_ms=MILLISECONDS'),
        (dict(budget_ms=45, skip='TTTT'), 'skip=TTTT and budget_ms=45 were both given'),
        (dict(skip='TTTT'), 'hold=True holds a budget'),
        (dict(budget_ms=0), 'budget_ms should be a positive number'),
        (dict(budget_ms=45, batch_size=2), 'held frame by frame, but got batch_size=2'),
        (dict(budget_ms=45, return_vis=True), 'return_vis=True keeps all pictures'),
        (dict(budget_ms=45, log=tmp_path), 'is a folder: give the name of a file'),
        (dict(budget_ms=45, log=tmp_path / 'notes.csv'), 'notes.csv is no log of frames'),
        (dict(budget_ms=45, out_dir=tmp_path / 'notes.csv'), 'cannot write to'),
    ):
        with pytest.raises(UserError, match=message):
            inferencer(video, hold=True, **arguments)
    with pytest.raises(UserError, match='log=FILE says what a held budget ran: give hold=True as well'):
        inferencer(video, budget_ms=45, log=tmp_path / 'ran.csv')
    assert (tmp_path / 'notes.csv').read_text() == 'mine\n' and not machine.calls
    assert sorted(path.name for path in tmp_path.iterdir()) == ['drive.avi', 'notes.csv']


def test_a_live_source_is_timed_from_its_frames_on(inferencer, machine, frames, monkeypatch):
    """A camera's frames come when they come: to wait for them is no load. A file is read, which takes time."""

    def waiting(images):
        for image in images:
            machine.seconds += 1.0
            yield image

    for live, waited in ((True, 0.0), (False, 1.0)):
        source = waiting(frames[:2])
        monkeypatch.setattr(held, 'Stream', type(source) if live else type(None))
        (start, frame) = next(held._timed(source))
        assert machine.seconds - start == waited and frame is frames[0]
