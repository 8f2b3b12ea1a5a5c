import pytest

from adn_mmdet import versions
from adn_mmdet.versions import diagnose, installed_versions, prove

UPSTREAM = {'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0'}
ONEDL = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1'}


@pytest.mark.parametrize('found', [UPSTREAM, ONEDL, installed_versions()], ids=['upstream', 'onedl', 'installed'])
def test_stacks_that_go_together(found):
    assert diagnose(found) is None


@pytest.mark.parametrize(
    'found, message',
    [
        ({}, 'found none of them: run `make setup`'),
        (UPSTREAM | {'mmcv': '2.2.0'}, 'needs .*mmcv >=2.1,<2.2.*found .*mmcv 2.2.0.*make setup'),
        ({k: v for k, v in ONEDL.items() if k != 'onedl-mmcv'}, 'needs .*onedl-mmcv'),
        (UPSTREAM | ONEDL, 'upstream and fork are both installed .*make clean'),
    ],
    ids=['none', 'version', 'missing', 'mixed'],
)
def test_the_diagnosis_names_what_was_found_and_what_to_run(found, message, monkeypatch):
    monkeypatch.setattr(versions, 'installed_versions', lambda: found)
    with pytest.raises(ImportError, match=message):
        versions.require_stack()


@pytest.mark.parametrize(
    'module, message',
    [
        ('cv2', 'libGL.*opencv-python-headless'),
        ('mmcv._ext', 'no compiled ops.*pip cache remove mmcv; make clean setup'),
    ],
)
def test_broken_libraries(module, message, monkeypatch):
    def import_module(name):
        if name == module:
            raise ImportError(f'{name}: undefined symbol')

    monkeypatch.setattr(versions.importlib, 'import_module', import_module)
    with pytest.raises(ImportError, match=message):
        versions.require_stack()


def test_this_stack_works():
    assert 'compiled ops work' in prove()
