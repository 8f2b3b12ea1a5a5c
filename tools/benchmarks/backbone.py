"""The backbone alone, beside stock mmdet's and what is exported, and the switch of its depths."""

from __future__ import annotations

from functools import partial

import torch
from benchmarks.ratios import DEVICE, Timings
from mmdet.models import ResNet

from adn_mmdet import AdaptiveDepthResNet, SkipConfig
from adn_mmdet.cost.timing import interleaved_medians
from adn_mmdet.export.hubconf import backbone
from adn_mmdet.export.stock_backbone import stage_blocks


def time_backbone(
    shape: tuple[int, int], batch_size: int, rounds: int, depth: int, skip: str, fused: bool = False
) -> Timings:
    """Seconds of stock ResNet and of each code, and the ratios to stock and to the first code.

    Args:
        shape: height and width of the images, which are noise.
        batch_size: images a call.
        rounds: timed calls of each.
        depth: 50 or 101.
        skip: a comma list of codes.
        fused: time each code as tools/export_sub_net.py --fuse ships it, too.

    Raises:
        UserError: ``skip`` is not valid.
    """
    codes = [str(code) for code in SkipConfig.parse_list(skip, 4)]
    adaptive = AdaptiveDepthResNet(depth).to(DEVICE).eval()
    stock = ResNet(depth).to(DEVICE)
    stock.eval()
    images = torch.rand(batch_size, 3, *shape, device=DEVICE)
    reference = f'stock ResNet-{depth}'
    functions = {reference: partial(stock, images)} | {code: partial(adaptive, images, code) for code in codes}
    for code in codes if fused else ():
        blocks = stage_blocks(adaptive, SkipConfig.parse(code))
        exported = backbone('ResNet', blocks, fused=True, depth=depth).to(DEVICE)
        exported.eval()
        functions[f'{code}, fused'] = partial(exported, images)
    with torch.inference_mode():
        seconds = interleaved_medians(functions, rounds)

    def switch() -> None:  # microseconds, far below a round of the above: timed by the thousand
        for _ in range(1000):
            adaptive.set_skip('TFTF')

    pairs = [(code, other) for other in (reference, codes[0]) for code in codes if code != other]
    pairs += [(f'{code}, fused', code) for code in codes if fused]
    ratios = {f'{code} / {other}': seconds[code] / seconds[other] for code, other in pairs}
    seconds['set_skip'] = interleaved_medians({'set_skip': switch}, rounds)['set_skip'] / 1000
    return seconds, ratios
