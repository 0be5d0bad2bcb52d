"""Random changes to a batch of images that leave what they show the same."""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class AffineJitter(nn.Module):
    """Rotates, moves, scales and slants each image of a batch by a random amount of its own.

    Nothing is mirrored. What comes in from outside an image is black.

    Args:
        rotation: the largest angle, in degrees, either way.
        translation: the largest way, as a share of the image's size, in each direction.
        scale: the largest change in size, as a share of it, up or down.
        shear: the largest slant, as the way to the side per way up, as in oblique type.
    """

    def __init__(self, rotation: float, translation: float, scale: float, shear: float) -> None:
        super().__init__()
        self.rotation = math.radians(rotation)
        self.translation = translation
        self.scale = scale
        self.shear = shear

    def forward(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Jitters a batch; a generator in the same state gives the same images on any device.

        Args:
            images: (B, C, H, W), uint8 or float in [0, 1], on any device.
            generator: where all random numbers come from, on its own device.

        Returns:
            (B, C, H, W) float32 in [0, 1], on the device of the images.
        """
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        shape = (5, len(images))
        amount = 2 * torch.rand(shape, generator=generator, device=generator.device) - 1
        turn, grow, slant, right, down = amount.to(images.device, non_blocking=True)
        # An affine map from where a pixel is written to where it is read, (B, 2, 3), in units of
        # half the image's size: slant, then turn and scale, then move.
        angle, scale, slant = self.rotation * turn, 1 + self.scale * grow, self.shear * slant
        cos, sin = scale * angle.cos(), scale * angle.sin()
        move = 2 * self.translation
        x = torch.stack([cos, cos * slant - sin, move * right], dim=1)
        y = torch.stack([sin, sin * slant + cos, move * down], dim=1)
        maps = torch.stack([x, y], dim=1)
        grid = F.affine_grid(maps, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)
