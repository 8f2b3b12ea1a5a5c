"""An ADN ResNet written by hand from the paper, with torchvision's names: what checkpoints of the authors hold."""

from __future__ import annotations

import torch
from tiny import randomize_norms
from torch import Tensor, nn

BLOCKS = {'resnet50': (3, 4, 6, 3), 'resnet101': (3, 4, 23, 3)}
MANDATORY = {'resnet50': (2, 2, 3, 2), 'resnet101': (2, 2, 12, 2)}


class Block(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int, mandatory: bool, vd: bool) -> None:
        super().__init__()
        outputs, self.mandatory = 4 * planes, mandatory
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        for suffix in ('', '_skip') if mandatory else ('',):
            for number, channels in enumerate((planes, planes, outputs), 1):
                self.add_module(f'bn{number}{suffix}', nn.BatchNorm2d(channels))
        self.downsample = None
        if inputs != outputs:
            pool = [nn.AvgPool2d(2, 2, ceil_mode=True)] if vd and stride == 2 else []
            conv = nn.Conv2d(inputs, outputs, 1, 1 if pool else stride, bias=False)
            self.downsample = nn.Sequential(*pool, conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, skip: bool) -> Tensor:
        bn1, bn2, bn3 = (
            getattr(self, f'bn{number}' + ('_skip' if skip and self.mandatory else '')) for number in (1, 2, 3)
        )
        out = bn3(self.conv3(bn2(self.conv2(bn1(self.conv1(x)).relu())).relu()))
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class AuthorsResNet(nn.Module):
    """``arch`` is 'resnet50', 'resnet50vd', …; ``mandatory`` blocks a stage, None for those of the paper."""

    def __init__(self, arch: str, mandatory: tuple[int, ...] | None = None, width: int = 8) -> None:
        super().__init__()
        plain, vd = arch.removesuffix('vd'), arch.endswith('vd')
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for number, (count, kept) in enumerate(zip(BLOCKS[plain], mandatory or MANDATORY[plain]), 1):
            planes = width * 2 ** (number - 1)
            stage = nn.Sequential()
            for index in range(count):
                stage.append(Block(inputs, planes, 2 if number > 1 and index == 0 else 1, index < kept, vd))
                inputs = 4 * planes
            self.add_module(f'layer{number}', stage)
        self.fc = nn.Linear(inputs, 10)

    def features(self, x: Tensor, code: str) -> list[Tensor]:
        """The outputs of the four stages at a skip code."""
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        outputs = []
        for stage, letter in zip((self.layer1, self.layer2, self.layer3, self.layer4), code):
            for block in stage:
                if block.mandatory or letter == 'F':
                    x = block(x, letter == 'T')
            outputs.append(x)
        return outputs


def authors_resnet(arch: str, **kwargs: object) -> AuthorsResNet:
    """In eval mode, with norms all different, and the same weights every time."""
    torch.manual_seed(0)
    model = AuthorsResNet(arch, **kwargs).eval()
    randomize_norms(model)
    return model
