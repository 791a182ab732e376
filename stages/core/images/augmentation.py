"""Images changed at random so that a model sees no image twice."""

import torch
from torch import Tensor
from torch.nn import functional


def warped(
    pixels: Tensor, rotation: float, zoom: float, shear: float, shift: float, contrast: float, background: float
) -> Tensor:
    """Every image rotated, stretched, slanted, moved and made paler or darker by amounts of its own, bilinearly.

    pixels: float32, (n, channels, height, width). All amounts are the largest ones, either way. rotation: degrees.
    zoom: how much longer or shorter a side gets, as a share of it. shear: the slant, as a share of the height. shift:
    pixels along each axis. contrast: the share by which the distance from the background changes. background: the
    value of what comes in from outside. Amounts are drawn by torch's own generator.
    """
    amounts = 2 * torch.rand(7, len(pixels)) - 1
    angle, sides = amounts[0] * torch.pi * rotation / 180, 1 + zoom * amounts[1:3]
    size = torch.tensor(pixels.shape[:1:-1])  # width, height: the order of the grid's axes, which run from -1 to 1
    moved = 2 * shift * amounts[3:5] / size[:, None]
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2, -1) * sides[:, None]
    turned[:, 1] += shear * amounts[5] * turned[:, 0]
    where = torch.cat([turned, moved[:, None]], 1).permute(2, 0, 1)
    grid = functional.affine_grid(where, list(pixels.shape), align_corners=False)
    strength = (1 + contrast * amounts[6])[:, None, None, None]
    return functional.grid_sample(strength * (pixels - background), grid, align_corners=False) + background
