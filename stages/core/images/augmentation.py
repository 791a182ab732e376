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


def bent(pixels: Tensor, amount: float, background: float) -> Tensor:
    """Every image bent by a smooth random field of its own, bilinearly (Simard et al. 2003, elastic distortion).

    pixels: float32, (n, channels, height, width). amount: standard deviation, in pixels, of how far each of 4 x 4
    points moves along an axis; between them the field is bicubic. background: the value of what comes in from outside.
    """
    size = torch.tensor(pixels.shape[:1:-1])
    field = 2 * amount * torch.randn(len(pixels), 2, 4, 4) / size[:, None, None]
    field = functional.interpolate(field, tuple(pixels.shape[2:]), mode="bicubic", align_corners=True)
    still = functional.affine_grid(torch.eye(2, 3).repeat(len(pixels), 1, 1), list(pixels.shape), align_corners=False)
    grid = still + field.permute(0, 2, 3, 1)
    return functional.grid_sample(pixels - background, grid, align_corners=False) + background


def mixed(pixels: Tensor, labels: Tensor, amount: float) -> tuple[Tensor, Tensor]:
    """Images mixed in pairs, and their labels in the same shares (mixup: Zhang et al. 2018, arXiv:1710.09412).

    pixels: float32, (n, channels, height, width). labels: float32, (n, classes), each row of sum 1. amount: both
    parameters of the beta distribution that a batch's share is drawn from; 0 leaves all as it is.
    """
    if not amount:
        return pixels, labels
    share = torch.distributions.Beta(amount, amount).sample().item()
    return tuple(share * each + (1 - share) * each.roll(1, 0) for each in (pixels, labels))
