"""Damages what readers are given: all of it is refused in one line, or read as what it is. A short run is in the tests.

By hand: ``python tests/fuzz.py checkpoints --number 10000``, and so on; ``--help`` lists the readers.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import random
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from adn_mmdet import AdaptiveDepthResNet, SkipConfig, UserError
from adn_mmdet.checkpoints import convert_checkpoint, load_for_testing, load_from_local, load_norms, require_sound
from adn_mmdet.checkpoints.norms import norms_at, statistics_of
from adn_mmdet.results.compare import compare, print_comparison, write_comparison
from adn_mmdet.results.report import write_report
from adn_mmdet.results.rows import POINT, SCHEMA, add_row, of_weights, read_sub_nets

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


ODD_VALUES: list[Any] = [
    None, True, 0, -1, 1, 2.5, 38.3, 10**18, 10**400, 1e300, -1e-300, math.nan, math.inf, -math.inf, '', 'x', 'FFFF',
    'ffff', 'T' * 99, '\0', '\ud800', '[/x]', '[red]', 'a|b', '$\\frac{$', 'line\nline', '\x1b[2J', '名前',
    'n' * 10_000, [], {}, [[]], [None], {'': None}, [[[[[[]]]]]], ['circle'], [64, 64], [-64, 64], {'skip': 'TTTT'},
]  # fmt: skip


def a_result(skip: str, ap: float) -> dict[str, Any]:
    return {
        'skip': skip,
        'size': 64,
        'proposals': 100,
        'bbox_mAP': ap,
        'bbox_mAP_l': None,
        'segm_mAP': ap / 2,
        'gmacs': 1 + ap,
        'params_held_m': 44.4,
    }


def results_files() -> tuple[dict[str, Any], dict[str, Any]]:
    """What tools/test.py and tools/benchmark.py latency write: of two runs, and of the first one."""
    common = {'name': 'net', 'config': 'net.py', 'checkpoint_sha256': 'a' * 64, 'input_size': [64, 96]}
    run = {**common, 'annotations_sha256': 'b' * 64, 'classes': ['circle', 'square'], 'num_images': 6}
    other = {'run': {**run, 'norms_sha256': 'c' * 64}, 'rows': [a_result('TTTT', 0.2)]}
    rows = [a_result('FFFF', 0.4), a_result('TFFF', 0.3), a_result('TTTT', 0.1)]
    machine = {'device': 'CPU', 'threads': 2, 'versions': {'torch': '2.9'}, 'batch_size': 1, 'rounds': 10}
    flags = dict.fromkeys(('amp', 'channels_last', 'compile'), False)
    times = [
        {**{key: row[key] for key in POINT}, 'ms': 10 * row['gmacs'], 'ms_p90': 20.0, 'ratio': 1.0} for row in rows
    ]
    latency = {'schema': SCHEMA, 'kind': 'latency', 'run': {**common, **machine, **flags}, 'rows': times}
    return {'schema': SCHEMA, 'run': run, 'rows': rows, 'other_runs': [other]}, latency


def change_a_part(content: Any, generator: random.Random, odd_values: list[Any] = ODD_VALUES) -> Any:
    """Replace, remove, repeat or move one part of a file's content, at any level of it."""
    places: list[tuple[Any, Any]] = []
    parts = [content]
    while parts:
        part = parts.pop()
        keys = list(part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ())
        places += [(part, key) for key in keys]
        parts += [part[key] for key in keys]
    part, key = generator.choice(places)
    kind = generator.choice(['replace', 'replace', 'remove', 'repeat', 'move'])
    if kind == 'remove':
        del part[key]
    elif kind == 'repeat' and isinstance(part, list):
        part.append(copy.deepcopy(part[key]))
    elif kind == 'move':
        part[key] = copy.deepcopy(generator.choice(places)[0])
    else:
        part[key] = copy.deepcopy(generator.choice(odd_values))
    return content


def damage(content: dict[str, Any], generator: random.Random) -> bytes:
    """A file with a few parts changed; of each ten, two are cut, flipped, or in another encoding instead."""
    way = generator.random()
    if way < 0.1:
        return flip_or_cut(json.dumps(content).encode(), generator)
    if way < 0.2:
        encoding = generator.choice(['utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32', 'cp037'])
        return json.dumps(content).encode(encoding)
    for _ in range(generator.choice([1, 1, 2, 5])):
        content = change_a_part(content, generator)
    text = json.dumps(content).replace('1e+300', generator.choice(['1e300', '1e400', '[' * 2000, '9' * 5000]))
    return text.encode()


def strict_json(path: Path) -> Any:
    """What a file holds; NaN and Infinity, which are no JSON, are not read."""
    return json.loads(path.read_bytes(), parse_constant=lambda name: 1 / 0)


def compare_and_report(folder: Path, draw: bool) -> None:
    """What tools/compare.py and tools/report.py do with files; what they write is sound."""
    content = compare([folder], [folder / 'latency.json'], budget=('ms', 15))
    with nullcontext() if draw else patch('adn_mmdet.results.compare.plot_accuracy_against_cost', return_value=None):
        write_comparison(content, folder / 'out')
    with redirect_stdout(io.StringIO()) as printed:
        print_comparison(content)
    assert '\x1b' not in printed.getvalue() and 'nan' not in printed.getvalue()
    assert strict_json(folder / 'out' / 'compare.json')['rows'], 'a comparison of nothing'
    with nullcontext() if draw else patch('adn_mmdet.results.report.plot_accuracy_against_cost', return_value=None):
        write_report(folder)


def add_a_row(folder: Path, generator: random.Random) -> None:
    """What tools/test.py does; no other row is lost."""
    file = folder / 'sub_nets.json'
    before = file.read_bytes()
    try:
        add_row(folder, {'name': 'net', 'checkpoint_sha256': 'd' * 64}, a_result('FFFF', generator.random()))
    except UserError:
        assert file.read_bytes() == before, 'a file that was refused is not as it was'
        raise
    held, after = json.loads(before.decode('utf-8-sig')), strict_json(file)
    assert after['rows'][-1]['skip'] == 'FFFF' and len(after['rows']) == 1
    runs = [{'run': part['run'], 'rows': part['rows']} for part in [held, *held.get('other_runs', [])]]
    assert after['other_runs'] == runs, 'rows of another run were lost'


def results(number: int, seed: int, folder: Path) -> Outcomes:
    """Change, cut and flip a ``sub_nets.json`` and a latency file, then compare, report and add rows."""
    generator, outcomes = random.Random(seed), Outcomes()
    (folder / 'out').mkdir()
    for _ in range(number):
        contents = dict(zip(('sub_nets.json', 'latency.json'), results_files()))
        damaged = generator.choice([('sub_nets.json',), ('latency.json',), tuple(contents)])
        for name, content in contents.items():
            raw = damage(content, generator) if name in damaged else json.dumps(content).encode()
            (folder / name).write_bytes(raw)
        for use in (
            lambda: compare_and_report(folder, draw=generator.random() < 0.01),
            lambda: of_weights(read_sub_nets(folder), 'a' * 64),
            lambda: add_a_row(folder, generator),
        ):
            try:
                use()
            except UserError as error:
                assert str(error).isprintable() and len(str(error)) < 1000, error
                outcomes['refused'] += 1
            else:
                outcomes['used'] += 1
    return outcomes


ODD_TENSORS: list[Any] = [
    torch.tensor(1.0), torch.tensor(3), torch.ones(0), torch.ones(8), torch.full((8,), -1.0), torch.ones(8).long(),
    torch.full((8,), math.nan), torch.ones(8).half(), torch.ones(8, dtype=torch.complex64), torch.ones(8) > 0,
    torch.ones(8, device='meta'), torch.ones(8).to_sparse(), torch.ones(2, 8), torch.ones(1).expand(8), np.ones(8),
]  # fmt: skip


def contents(number: int, seed: int, folder: Path) -> Outcomes:
    """Save weights and norms with parts that are changed, missing or odd, then load and convert them."""
    generator, outcomes, path = random.Random(seed), Outcomes(), folder / 'fuzzed.pth'
    backbone = AdaptiveDepthResNet(50, base_channels=8)
    uses: dict[Callable[[], Any], dict[str, Any]] = {
        lambda: load_for_testing(backbone, path): dict(state_dict=backbone.state_dict(), meta={'epoch': 1}),
        lambda: convert_checkpoint(path, folder / 'out.pth'): dict(model=backbone.state_dict(), epoch=1),
        lambda: load_norms(backbone, path, 'a' * 64, [SkipConfig.base_net(4)]): dict(
            skip='TTTT', checkpoint_sha256='a' * 64, num_images=6, statistics=statistics_of(norms_at(backbone, 'TTTT'))
        ),
    }
    for _ in range(number):
        use = generator.choice(list(uses))
        content = copy.deepcopy(uses[use])
        for _ in range(generator.choice([1, 1, 2, 5])):
            content = change_a_part(content, generator, ODD_VALUES + ODD_TENSORS * 2)
        torch.save(content, path)
        try:
            use()
        except UserError as error:
            assert '\n' not in str(error) and len(str(error)) < 1000, error
            outcomes['refused'] += 1
        else:
            require_sound(backbone.state_dict(), 'what was loaded')
            outcomes['used'] += 1
    return outcomes


def pickles(number: int, seed: int, folder: Path) -> Outcomes:
    """Change bytes of a checkpoint's pickle, and give it the checksum of what it then is."""
    path, generator, outcomes = folder / 'fuzzed.pth', random.Random(seed), Outcomes()
    torch.save(a_checkpoint(), path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in parts if name.endswith('data.pkl'))
    methods = dict(vars(HistoryBuffer)), dict(HistoryBuffer._statistics_methods)
    for _ in range(number):
        changed = bytearray(parts[name])
        for _ in range(generator.choice([1, 1, 3, 10])):
            changed[generator.randrange(len(changed))] = generator.choice([generator.randrange(256), *b'RbQ\x81s.0'])
        with zipfile.ZipFile(path, 'w') as archive:
            for part, content in {**parts, name: bytes(changed)}.items():
                archive.writestr(part, content)
        try:
            require_sound(load_from_local(path), 'what was loaded')
            outcomes['used'] += 1
        except UserError as error:
            assert str(path) in str(error) and '\n' not in str(error), error
            outcomes['refused'] += 1
        assert methods == (dict(vars(HistoryBuffer)), HistoryBuffer._statistics_methods), 'a method was replaced'
    return outcomes


READERS: dict[str, Callable[[int, int, Path], Outcomes]] = {
    'checkpoints': checkpoints,
    'contents': contents,
    'pickles': pickles,
    'results': results,
}


def main() -> None:
    """Run the command line."""
    from fuzz_inputs import READERS as OF_INPUTS

    readers = READERS | OF_INPUTS
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('reader', choices=readers)
    parser.add_argument('--number', type=int, default=10_000)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = readers[args.reader](args.number, args.seed, Path(folder))
    print(f'{args.number} of {args.reader}: {dict(outcomes)}; no other outcome')


if __name__ == '__main__':
    main()
