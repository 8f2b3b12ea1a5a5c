"""Configs of one sub-network for mmdet alone: nothing in them is of this package."""

from __future__ import annotations

import inspect
import math
import pprint
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry, root
from torch import nn

from ..backbones import AdaptiveDepthBackbone, PredictingSSDHead
from ..errors import UserError
from ..skip_config import SkipConfig
from .stock_backbone import HERE, from_hub, stock_backbone

# mmengine's own {{ fileDirname }} is pasted into the text as it is, where a quote or a backslash breaks it.
# mmengine takes an import of anything that is not built into Python for its other kind of config.
PREAMBLE = """import sys

__here = sys.modules['os'].path.dirname(sys._getframe().f_code.co_filename)
"""
PACKAGE = __name__.partition('.')[0]


def stock_config(cfg: Config, backbone: AdaptiveDepthBackbone, code: SkipConfig, fused: bool) -> Config:
    """Take this package out of a config.

    Args:
        cfg: a config of a detector without parts; it is left as it is.
        backbone: its backbone, which :func:`~adn_mmdet.export.stock_backbone.require_exported` lets pass.
        code: the sub-network.
        fused: whether its batch norms are part of its convolutions.

    Returns:
        The config; its hooks, loops and metrics are the stock ones that this package's extend. What mmdet's classes
        cannot be told to build comes from the ``hubconf.py`` that has to lie beside the config.

    Raises:
        UserError: a module of this package has no stock one in its place.
    """
    own = own_types()
    # What configs/ compose the backbone of is in it by now.
    variables = [
        key
        for key, value in cfg.items()
        if isinstance(value, dict) and issubclass(own.get(_name(value), object), nn.Module)
    ]
    content = cfg.to_dict()
    content['model']['backbone'] = stock_backbone(content['model']['backbone'], backbone, code, fused)
    for key in ('work_dir', *variables):  # the folder was that of another run
        content.pop(key, None)
    content = _without_package(content, own)
    content['resume'] = False
    imports = content.get('custom_imports', {}).get('imports', [])
    imports = [name for name in ([imports] if isinstance(imports, str) else imports) if name.split('.')[0] != PACKAGE]
    if imports:
        content['custom_imports']['imports'] = imports
    else:
        content.pop('custom_imports', None)
    return Config(content)


def config_text(cfg: Config, title: str, folder: str | None = None) -> str:
    """Write a config as a Python file that is read as the same values, whatever letters they hold.

    Args:
        cfg: its values are plain ones, or classes.
        title: a comment for its first line.
        folder: what :data:`HERE` stands for; None finds it when the file is read.
    """
    here = '__here' if folder is None else repr(folder)
    lines = (
        f'{key} = {pprint.pformat(_exact(value, here), width=110, sort_dicts=False)}' for key, value in cfg.items()
    )
    text = '\n'.join([f'# {" ".join(title.split())}', '' if folder else PREAMBLE, *lines, ''])
    return text.replace('{{', r'{\x7b')  # so that mmengine puts nothing there; two of them are in texts alone


class _Code(str):
    """An expression, in the place of the value that it has."""

    __repr__ = str.__str__


def _exact(value: Any, here: str) -> Any:
    """A value whose ``repr`` is read as the value."""
    if isinstance(value, dict):
        return {key: _exact(entry, here) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_exact(entry, here) for entry in value)
    if isinstance(value, str) and value.startswith(HERE):
        return _Code(f'{here} + {value[len(HERE) :]!r}')
    if isinstance(value, float) and not math.isfinite(value):
        return _Code(f"float('{value}')")
    return f'{value.__module__}.{value.__qualname__}' if isinstance(value, type) else value


def own_types() -> dict[str, type]:
    """What this package has registered, by name."""
    registries = [registry for registry in vars(root).values() if isinstance(registry, Registry)]
    registered = {name: kind for registry in registries for name, kind in registry.module_dict.items()}
    classes = {name: kind for name, kind in registered.items() if isinstance(kind, type)}
    return {name: kind for name, kind in classes.items() if kind.__module__.split('.')[0] == PACKAGE}


def _without_package(value: Any, own: dict[str, type]) -> Any:
    """A part of a config, in which each own type is replaced by the stock one that it extends, or left out."""
    if isinstance(value, (list, tuple)):
        return type(value)(_without_package(item, own) for item in value if not _is_dropped(item, own))
    if not isinstance(value, dict):
        return value
    kept = {key: _without_package(item, own) for key, item in value.items() if not _is_dropped(item, own)}
    kind = own.get(_name(value))
    if kind is PredictingSSDHead:
        return from_hub('ssd_head', **{key: item for key, item in kept.items() if key != 'type'})
    if kind:
        stock = _stock_type(kind)
        if issubclass(kind, nn.Module) and not stock.__module__.startswith('mmdet'):
            raise UserError(f'{kind.__name__} cannot be exported, as mmdet has no such class: run it with {PACKAGE}')
        kept['type'] = stock.__name__
        known = inspect.signature(stock).parameters
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
            kept = {key: item for key, item in kept.items() if key == 'type' or key in known}
    return kept


def _is_dropped(value: Any, own: dict[str, type]) -> bool:
    """Whether a part of a config has no counterpart: a hook of this package, or weights to start from."""
    if not isinstance(value, dict):
        return False
    kind = own.get(_name(value))
    return _name(value) == 'Pretrained' or bool(kind and _stock_type(kind).__name__ == 'Hook')


def _name(value: dict[str, Any]) -> str:
    """A config's ``type``, a name of any scope or a class, without its scope."""
    kind = value.get('type', '')
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def _stock_type(kind: type) -> type:
    """The nearest base class that is not of this package."""
    return next(base for base in kind.__mro__ if base.__module__.split('.')[0] != PACKAGE)
