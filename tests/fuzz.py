"""Damages what readers are given: all of it is refused in one line, or read as it was. A short run is in the tests.

By hand: ``python tests/fuzz.py checkpoints --number 10000``.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from adn_mmdet import UserError
from adn_mmdet.checkpoints import load_from_local

Outcomes = Counter[str]


def same(one: Any, other: Any) -> bool:
    """Whether two contents of checkpoints are equal, of the same types, and tensors to the bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, HistoryBuffer):
        return all(map(np.array_equal, one.data, other.data))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def a_checkpoint() -> dict[str, Any]:
    """A small one, of all kinds of parts that mmengine saves."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1).half())
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return dict(
        state_dict=net.state_dict(),
        optimizer=optimizer.state_dict(),
        message_hub=dict(log_scalars={'train/loss': history}),
        meta=dict(iter=4, seed=1, random=torch.get_rng_state()),
    )


def flip_or_cut(content: bytes, generator: random.Random) -> bytes:
    """One bit of it the other way round; of each ten, one is cut off instead."""
    place = generator.randrange(len(content))
    if generator.random() < 0.1:
        return content[:place]
    flipped = content[place] ^ 1 << generator.randrange(8)
    return content[:place] + bytes([flipped]) + content[place + 1 :]


def checkpoints(number: int, seed: int, folder: Path) -> Outcomes:
    """Flip single bits of a checkpoint, and cut it off."""
    path, generator, outcomes = folder / 'fuzzed.pth', random.Random(seed), Outcomes()
    torch.save(a_checkpoint(), path)
    whole, expected = path.read_bytes(), load_from_local(path)
    for _ in range(number):
        path.write_bytes(flip_or_cut(whole, generator))
        try:
            content = load_from_local(path)
        except UserError as error:
            assert str(path) in str(error) and '\n' not in str(error), error
            outcomes['refused'] += 1
        else:
            assert same(content, expected), f'other content was read of {path}'
            outcomes['read as it was'] += 1
    return outcomes


READERS: dict[str, Callable[[int, int, Path], Outcomes]] = {'checkpoints': checkpoints}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('reader', choices=READERS)
    parser.add_argument('--number', type=int, default=10_000)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = READERS[args.reader](args.number, args.seed, Path(folder))
    print(f'{args.number} of {args.reader}: {dict(outcomes)}; no other outcome')


if __name__ == '__main__':
    main()
