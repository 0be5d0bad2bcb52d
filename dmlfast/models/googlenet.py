"""`bvlc-googlenet`: Inception v1 as Caffe's BVLC reference model has it."""

import torch
from torch import nn

from dmlfast.models.backbone import Preprocessing

PREPROCESSING = Preprocessing(
    mean=(123 / 255, 117 / 255, 104 / 255),  # Caffe subtracts (104, 117, 123) from BGR in 0..255
    std=(1 / 255,),
    image_size=224,
    crop_pct=224 / 256,
)
OUT_FEATURES = 1024

# Filters of the branches: 1x1; 3x3 and its reduction; 5x5 and its reduction; behind the pooling.
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Convolutions of three sizes and a pooling beside each other, joined channel by channel."""

    def __init__(self, channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, three_reduced, three, five_reduced, five, pooled = widths
        self.conv_1x1 = nn.Conv2d(channels, one, 1)
        self.conv_3x3_reduce = nn.Conv2d(channels, three_reduced, 1)
        self.conv_3x3 = nn.Conv2d(three_reduced, three, 3, padding=1)
        self.conv_5x5_reduce = nn.Conv2d(channels, five_reduced, 1)
        self.conv_5x5 = nn.Conv2d(five_reduced, five, 5, padding=2)
        self.pool_proj = nn.Conv2d(channels, pooled, 1)
        self.pool = nn.MaxPool2d(3, 1, padding=1)
        self.out_channels = one + three + five + pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, out_channels, H, W)."""
        branches = [
            self.conv_1x1(x),
            self.conv_3x3(self.conv_3x3_reduce(x).relu()),
            self.conv_5x5(self.conv_5x5_reduce(x).relu()),
            self.pool_proj(self.pool(x)),
        ]
        return torch.cat(branches, dim=1).relu()


class BVLCGoogLeNet(nn.Module):
    """GoogLeNet with local response normalisation and without batch norm, up to pool5.

    It takes RGB: `dmlfast.models.caffe` turns the filters of the first layer, which are BGR in
    Caffe's files, when it reads them. There are no auxiliary heads and there is no classifier.

    Args:
        channels: of the images.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3)
        self.conv2_reduce = nn.Conv2d(64, 64, 1)
        self.conv2 = nn.Conv2d(64, 192, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
        width = 192
        for name, widths in INCEPTIONS.items():
            inception = Inception(width, widths)
            self.add_module(f"inception_{name}", inception)
            width = inception.out_channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.constant_(module.bias, 0.2)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) float -> (B, 1024)."""
        x = self.norm(self.pool(self.conv1(images).relu()))
        x = self.conv2(self.conv2_reduce(x).relu()).relu()
        x = self.pool(self.norm(x))
        for name in INCEPTIONS:
            x = self.get_submodule(f"inception_{name}")(x)
            if name in ("3b", "4e"):
                x = self.pool(x)
        return x.mean(dim=(2, 3))
