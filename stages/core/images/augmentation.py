"""Images changed at random so that a model sees no image twice."""

import torch
from torch import Tensor
from torch.nn import functional


def warped(pixels: Tensor, rotation: float, zoom: float, shift: float, background: float) -> Tensor:
    """Every image rotated, stretched and moved by amounts of its own, by bilinear interpolation.

    pixels: float32, (n, channels, height, width). rotation: degrees at most, either way. zoom: by how much each side is
    at most longer or shorter, as a share of it. shift: pixels at most, along each axis. background: the value of what
    comes in from outside. Amounts are drawn by torch's own generator.
    """
    amounts = 2 * torch.rand(5, len(pixels)) - 1
    angle, sides = amounts[0] * torch.pi * rotation / 180, 1 + zoom * amounts[1:3]
    size = torch.tensor(pixels.shape[:1:-1])  # width, height: the order of the grid's axes, which run from -1 to 1
    moved = 2 * shift * amounts[3:] / size[:, None]
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2, -1) * sides[:, None]
    where = torch.cat([turned, moved[:, None]], 1).permute(2, 0, 1)
    grid = functional.affine_grid(where, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels - background, grid, align_corners=False) + background
