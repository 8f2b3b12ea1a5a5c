"""What torch's long errors mean to a user."""

from __future__ import annotations

import errno
import re

import torch
from torch import nn


def explain(error: Exception, model: nn.Module | None) -> str | None:
    """One line for an error of a training that a user can do something about; None for any other.

    Args:
        error: what was raised.
        model: the detector, in DDP or not; None where there was none yet.
    """
    text = str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError):
        figures = '. '.join(text.split('. ')[:3]).rstrip('.')
        return (
            f'{figures}. Lower the need: activation checkpointing (--cfg-options model.backbone.with_cp=True), --amp, '
            'or a smaller train_dataloader.batch_size with a learning rate to match (--auto-scale-lr)'
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f'cannot write {error.filename or "logs"} ({error.strerror}): make room, then go on with --resume'
    unused = re.search(r'indices which did not receive grad for rank \d+: ([\d ]+)', text)
    if unused and model:
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        names = ', '.join(trained[int(index)].removeprefix('module.') for index in unused[1].split())
        return (
            f'no loss depends on {names}: freeze what is not trained (requires_grad=False), or, at the price of '
            'a slower step, --cfg-options find_unused_parameters=True'
        )
    return None
