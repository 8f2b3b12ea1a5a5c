"""What the ranks of a distributed training must agree on."""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce


def any_rank(flag: bool) -> bool:
    """Whether a flag is set on any rank. All of them must ask at the same point."""
    flags = torch.tensor(int(flag))
    all_reduce(flags, op='max')
    return bool(flags)
