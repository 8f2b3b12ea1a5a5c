import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
from tiny import build, small_images, tiny_config

from adn_mmdet.files import file_sha256
from adn_mmdet.inference import AnyDepthInferencer
from adn_mmdet.web import Playground

APS = {('FFFF', 64, 20): 0.4, ('TTFF', 64, 20): 0.2, ('TTTT', 64, 20): 0.3, ('TTTT', 32, 20): 0.25}
GMACS = dict(zip(APS, (8.0, 7.0, 6.0, 2.0)))


@pytest.fixture(scope='session')
def net(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Paths of a narrow Mask R-CNN: its config, random weights, and results at four points."""
    folder = tmp_path_factory.mktemp('net')
    cfg = small_images(tiny_config('mask_rcnn'))
    cfg.dump(config := folder / 'tiny.py')
    meta = dict(dataset_meta=dict(classes=cfg.test_dataloader.dataset.metainfo.classes))
    torch.save(dict(state_dict=build(cfg).state_dict(), meta=meta), checkpoint := folder / 'tiny.pth')
    about = dict(name='tiny', checkpoint_sha256=file_sha256(checkpoint), annotations_sha256='a', classes=['circle'],
                 num_images=6, input_size=[64, 64], size=64, proposals=20)  # fmt: skip
    rows = [dict(zip(('skip', 'size', 'proposals'), at), bbox_mAP=ap, gmacs=GMACS[at]) for at, ap in APS.items()]
    (results := folder / 'sub_nets.json').write_text(json.dumps(dict(schema=2, run=about, rows=rows)))
    return SimpleNamespace(config=str(config), checkpoint=str(checkpoint), results=str(results))


@pytest.fixture(scope='session')
def inferencer(net: SimpleNamespace) -> AnyDepthInferencer:
    return AnyDepthInferencer(net.config, net.checkpoint, 'cpu', show_progress=False)


@pytest.fixture(scope='session')
def playground(net: SimpleNamespace, inferencer: AnyDepthInferencer) -> Playground:
    return Playground(inferencer, net.results)


@pytest.fixture(scope='session')
def examples(shapes: Path) -> list[Path]:
    return sorted((shapes / 'val').iterdir())[:3]


@pytest.fixture(scope='session')
def files(tmp_path_factory: pytest.TempPathFactory, examples: list[Path]) -> Path:
    """A folder of what users upload: one image, a video of three frames, and what is neither."""
    folder = tmp_path_factory.mktemp('files')
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    packed = b'PK\5\6' + bytes(18)  # an empty archive
    for name, content in {
        'image.png': examples[1].read_bytes(),
        'text.jpg': b'no image',
        'nothing.png': b'',
        'drawing.svg': svg,
        'drawing.png': svg,
        'packed.zip': packed,
        'packed.jpg': packed,
        'cut.mp4': b'\0\0\0\x18ftypmp42' + bytes(100),
        'large.png': cv2.imencode('.png', torch.zeros(5000, 6000, dtype=torch.uint8).numpy())[1].tobytes(),
    }.items():
        (folder / name).write_bytes(content)
    for name, frames in (('drive.avi', examples), ('no_frame.avi', [])):
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*'MJPG'), 8.0, (64, 64))
        for frame in frames:
            writer.write(cv2.imread(str(frame)))
        writer.release()
    return folder
