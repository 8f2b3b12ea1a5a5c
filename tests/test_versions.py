import pytest

from adn_mmdet import versions
from adn_mmdet.versions import diagnose, installed_versions, prove

UPSTREAM = {'mmengine': '0.10.7', 'mmcv-lite': '2.1.0', 'mmdet': '3.3.0'}
COMPILED = {'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0'}
ONEDL = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1'}


@pytest.mark.parametrize(
    'found',
    [UPSTREAM, COMPILED, ONEDL, installed_versions()],
    ids=['upstream', 'compiled', 'onedl', 'installed'],
)
def test_stacks_that_go_together(found):
    assert diagnose(found) is None


@pytest.mark.parametrize(
    'found, message',
    [
        ({}, 'found none of them: run `make setup`'),
        (UPSTREAM | {'mmcv-lite': '2.2.0'}, 'needs .*mmcv-lite >=2.1,<2.2.*found .*mmcv-lite 2.2.0.*make setup'),
        (COMPILED | {'mmcv': '2.2.0'}, 'needs .*mmcv >=2.1,<2.2.*found .*mmcv 2.2.0.*make setup'),
        ({k: v for k, v in ONEDL.items() if k != 'onedl-mmcv'}, 'needs .*onedl-mmcv'),
        (UPSTREAM | ONEDL, 'overwrite each other: .*mmdet 3.3.0.*onedl-mmdetection 3.5.1.*make clean'),
        (UPSTREAM | COMPILED, 'overwrite each other: .*mmcv-lite 2.1.0.*mmcv 2.1.0.*make clean'),
    ],
    ids=['none', 'version', 'compiled version', 'missing', 'mixed', 'mmcv twice'],
)
def test_the_diagnosis_names_what_was_found_and_what_to_run(found, message, monkeypatch):
    monkeypatch.setattr(versions, 'installed_versions', lambda: found)
    with pytest.raises(ImportError, match=message):
        versions.require_stack()


@pytest.mark.parametrize(
    'module, error, message',
    [
        ('cv2', ImportError('libGL.so.1: cannot open shared object file'), 'libGL.*opencv-python-headless'),
        ('mmcv._ext', ModuleNotFoundError("No module named 'mmcv._ext'"), 'mmcv has no operators .*run `make setup`'),
        ('mmcv._ext', ImportError('undefined symbol'), 'do not fit this torch .*make clean setup`'),
    ],
    ids=['no libGL', 'no operators', 'built for another torch'],
)
def test_broken_libraries(module, error, message, monkeypatch):
    def import_module(name):
        if name == module:
            raise error

    monkeypatch.setattr(versions.importlib, 'import_module', import_module)
    with pytest.raises(ImportError, match=message) as raised:
        versions.require_stack()
    assert '\n' not in str(raised.value)


def test_this_stack_works():
    assert 'operators work on' in prove()
