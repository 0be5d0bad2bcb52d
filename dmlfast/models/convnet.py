"""`convnet`: a small network for small images, quick enough to train on a laptop's CPU."""

from collections.abc import Sequence

import torch
from torch import nn

from dmlfast.errors import UserError

STRIDES = (2, 2, 1, 2, 1)
GRID = 4


class ConvNet(nn.Module):
    """Five convolutions with batch norm, then an average over each cell of a 4 x 4 grid.

    The grid keeps where things are in the image: what tells two characters apart is often the
    place of an accent. Images of any size will do; 32 x 32 is what it is made for.

    Args:
        channels: of the images.
        widths: the number of filters of each convolution.
    """

    def __init__(self, channels: int, widths: Sequence[int] = (32, 64, 64, 128, 128)) -> None:
        super().__init__()
        if len(widths) != len(STRIDES) or min(widths) < 1:
            raise UserError(f"widths must be {len(STRIDES)} positive numbers, not {list(widths)}")
        self.options = {"widths": list(widths)}
        self.out_features = widths[-1] * GRID**2
        layers: list[nn.Module] = []
        for i, (width, stride) in enumerate(zip(widths, STRIDES, strict=True)):
            before, kernel = (widths[i - 1], 3) if i else (channels, 5)
            layers += [
                nn.Conv2d(before, width, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(GRID), nn.Flatten())
        # Channels last is a quarter faster on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) float -> (B, out_features)."""
        return self.layers(images)
