"""SafeRunner: mmengine's Runner, which goes on from a checkpoint that was read and checked before."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from ..backbones.features import unwrap
from ..checkpoints import read_weights, require_fit
from ..datasets.parsed import build_dataloader
from ..errors import UserError
from .preemption import shield_workers
from .resume import Found
from .resumed_settings import describe_differences, require_fitting_state


class SafeRunner(Runner):
    """Its data loaders name images that cannot be read, and their workers outlive signals to the whole group."""

    found: Found | None = None  # to be resumed

    @staticmethod
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
        """As mmengine's; the annotations are those that were checked."""
        return shield_workers(build_dataloader(dataloader, *args, **kwargs))

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """As mmengine's, in one line where it fails on what it finds.

        Raises:
            UserError: the checkpoint does not fit, or its parts are not of the shape that a training saves.
        """
        try:
            super().resume(filename, *args, **kwargs)
        except (UserError, OSError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a foreign or damaged content leads to
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
            raise UserError(
                f'{filename} cannot be resumed by this config ({reason}): use the config it was saved by, or start '
                f'from its weights alone with load_from={filename}'
            ) from error

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As mmengine's; a checkpoint to resume is not read again, and has to fit in all its parts.

        Raises:
            UserError: it does not.
        """
        if self.found is None:
            return super().load_checkpoint(filename, *args, **kwargs)
        (path, content), self.found = self.found, None
        model = unwrap(self.model)
        self._require_fit(model, content, path)
        for line in describe_differences(content['meta'].get('cfg'), self.cfg, path):
            self.logger.warning(line)
        self.call_hook('after_load_checkpoint', checkpoint=content)
        model.load_state_dict(content['state_dict'], strict=False)  # the names have been compared
        self.logger.info(f'Load checkpoint from {path}')
        return content

    def _require_fit(self, model: nn.Module, content: dict[str, Any], path: str) -> None:
        own, weights = model.state_dict(), read_weights(content, path)
        require_fit(own, weights, path)
        if weights.keys() != content['state_dict'].keys():  # saved with the names of a wrapper
            content['state_dict'] = weights
        require_fitting_state(content, self.optim_wrapper, self.param_schedulers, path)
        if 'ema_state_dict' not in content:
            return
        if not any(hasattr(hook, 'ema_model') for hook in self.hooks):
            raise UserError(
                f'{path} holds averaged weights beside those that were trained: add the EMAHook that it was saved '
                f'with to custom_hooks, or start from the average with load_from={path}'
            )
        average = {name: value for name, value in content['ema_state_dict'].items() if name.startswith('module.')}
        require_fit(own, read_weights(average, path), f'{path} (ema_state_dict)')
