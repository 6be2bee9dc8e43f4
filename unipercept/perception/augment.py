"""Augmentation of whole batches on the device where they train, drawn from its generator: seeded, and resumed exactly.

What is drawn stays on the device, and nothing asks for it: a CUDA graph holds all of this
and draws anew in each replay.

Shapes: B batch, C channels, H rows, W columns, N samples or points, K classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from unipercept.perception.settings import Recipe
from unipercept.pipelines.mel import POWER_FLOOR

MAX_ANGLE = math.radians(30)  # of RandAugment at magnitude 10, as the further maxima
EQUALISER_KNOTS = 6
SOFTER = 12.0  # decibels
MAX_SHEAR, MAX_MOVE, MAX_COLOUR = 0.3, 0.33, 0.9


def one_hot(targets: Tensor, n_classes: int, smoothing: float) -> Tensor:
    """BxK: 1 - s + s/K on the class, s/K elsewhere. Source: Szegedy et al. (2016)."""
    hot = F.one_hot(targets, n_classes).float()
    return hot * (1 - smoothing) + smoothing / n_classes


def mix_waveforms(samples: Tensor, lengths: Tensor, labels: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """With probability `mixup` each sound gets another of the batch added: l x + (1 - l) y; labels likewise.

    The partner is cut to the length of the first, as the AST recipe has it.
    """
    share = _beta(len(samples), recipe.mixup_alpha, samples.device)
    share = torch.where(torch.rand(len(samples), device=samples.device) < recipe.mixup, share, torch.ones_like(share))
    partner = _order(len(samples), samples.device)
    inside = torch.arange(samples.shape[1], device=samples.device) < lengths[:, None]
    mixed = share[:, None] * samples + (1 - share[:, None]) * samples[partner] * inside
    return mixed, share[:, None] * labels + (1 - share[:, None]) * labels[partner]


def mix_between(
    samples: Tensor, lengths: Tensor, labels: Tensor, targets: Tensor, probability: float
) -> tuple[Tensor, Tensor]:
    """With a probability each sound is mixed with one of another class so that both are
    heard in a share drawn uniformly.

    Sounds differ in level by far more than the share does, so the louder is brought down by the ratio of their loudest
    tenths; the sum keeps the energy of its parts. The partner is cut to the length of the first. Where all of a batch
    are of one class, the partner is of that class.

    Source: Tokozume et al. (2018), Learning from Between-class Examples for Deep Sound Recognition, equation 2.
    """
    count = len(samples)
    preferred = torch.rand(count, count, device=samples.device) + (targets[:, None] != targets)
    partner = preferred.argmax(dim=1)
    level = _loudest(samples)
    share = torch.rand(count, device=samples.device).clamp(1e-3, 1 - 1e-3)
    share = torch.where(torch.rand(count, device=samples.device) < probability, share, torch.ones_like(share))
    weight = 1 / (1 + level / level[partner] * (1 - share) / share)
    first = (weight / (weight**2 + (1 - weight) ** 2).sqrt())[:, None]
    second = ((1 - weight) / (weight**2 + (1 - weight) ** 2).sqrt())[:, None]
    inside = torch.arange(samples.shape[1], device=samples.device) < lengths[:, None]
    mixed = first * samples + second * samples[partner] * inside
    return mixed, share[:, None] * labels + (1 - share[:, None]) * labels[partner]


def mix_within(samples: Tensor, lengths: Tensor, targets: Tensor, probability: float) -> Tensor:
    """With a probability each sound gets another of its class added, as loud as itself or up to `SOFTER`
    decibels less: two dogs are dogs.

    Loudness is that of `mix_between`, and the sum keeps the energy of its parts. The partner is cut to the length of
    the first. Sounds that are alone of their class stay as they are.
    """
    count = len(samples)
    preferred = torch.rand(count, count, device=samples.device) + 2 * (targets[:, None] == targets)
    partner = (preferred - 3 * torch.eye(count, device=samples.device)).argmax(dim=1)
    chosen = (targets[partner] == targets) & (torch.rand(count, device=samples.device) < probability) & (count > 1)
    share = 10 ** (-torch.rand(count, device=samples.device) * SOFTER / 20)
    share = torch.where(chosen, share, torch.zeros_like(share))[:, None]
    level = _loudest(samples)[:, None]
    inside = torch.arange(samples.shape[1], device=samples.device) < lengths[:, None]
    return (samples + share * level / level[partner] * samples[partner] * inside) / (1 + share**2).sqrt()


def _loudest(samples: Tensor) -> Tensor:
    """B root mean squares of the loudest of ten equal parts of BxN."""
    part = max(1, samples.shape[1] // 10)
    return samples.unfold(1, part, part).square().mean(dim=2).amax(dim=1).sqrt().clamp(min=1e-5)


def shift_waveforms(samples: Tensor, lengths: Tensor, largest: float) -> Tensor:
    """Each sound shifted circularly in time, within its own length, by up to a share of it."""
    count = samples.shape[1]
    move = ((torch.rand(len(samples), 1, device=samples.device) * 2 - 1) * largest * lengths[:, None]).long()
    position = torch.arange(count, device=samples.device)[None]
    source = torch.where(position < lengths[:, None], (position - move) % lengths[:, None], position)
    return samples.gather(1, source)


def change_speed(samples: Tensor, lengths: Tensor, largest: float, loops: bool = False) -> tuple[Tensor, Tensor]:
    """Each sound faster or slower, and so higher or lower in pitch, by up to a factor, cut to the original
    length; and the new lengths.

    With `loops`, a faster sound continues from its beginning, and lengths stay.

    Source: Ko et al. (2015), Audio augmentation for speech recognition. By linear interpolation.
    """
    if largest <= 1:
        return samples, lengths
    count, ends = samples.shape[1], lengths[:, None]
    factor = torch.exp((torch.rand(len(samples), 1, device=samples.device) * 2 - 1) * math.log(largest))
    place = torch.arange(count, device=samples.device)[None] * factor
    before = place.floor().long()
    share = place - before
    after = before + 1
    inside = place < ends
    if loops:
        before, after, inside = before % ends, after % ends, torch.arange(count, device=samples.device) < ends
    first = samples.gather(1, before.clamp(max=count - 1))
    second = samples.gather(1, after.clamp(max=count - 1))
    changed = torch.where(inside, torch.lerp(first, second, share), torch.zeros_like(first))
    return changed, lengths if loops else (lengths / factor[:, 0]).long().clamp(1, count)


def change_gain(samples: Tensor, largest: float) -> Tensor:
    """Each sound louder or softer by up to `largest` decibels."""
    if largest <= 0:
        return samples
    decibels = (torch.rand(len(samples), 1, device=samples.device) * 2 - 1) * largest
    return samples * 10 ** (decibels / 20)


def mask_spectrum(energies: Tensor, recipe: Recipe) -> Tensor:
    """A band of bins and a stretch of frames of each BxMxT log-mel set to 0, before normalisation.

    Source: SpecAugment.
    """
    batch, bins, frames = energies.shape
    for dim, size, largest in ((1, bins, recipe.frequency_mask), (2, frames, recipe.time_mask)):
        width = torch.rand(batch, 1, device=energies.device) * largest * size
        start = torch.rand(batch, 1, device=energies.device) * (size - width)
        place = torch.arange(size, device=energies.device)[None]
        masked = (place >= start) & (place < start + width)
        energies = energies.masked_fill(masked.unsqueeze(2 if dim == 1 else 1), 0.0)
    return energies


def equalise(energies: Tensor, decibels: float) -> Tensor:
    """BxMxT log-mel through a filter that is drawn for each: gains at six bins, normal with that
    deviation, straight between them.

    What is silent stays so: neither padding (0) nor the floor of the logarithm is moved.
    """
    if decibels <= 0:
        return energies
    batch, bins, _ = energies.shape
    knots = torch.randn(batch, 1, EQUALISER_KNOTS, device=energies.device) * decibels * math.log(10) / 10
    curve = F.interpolate(knots, bins, mode="linear", align_corners=True).transpose(1, 2)
    floor = math.log(POWER_FLOOR)
    heard = (energies > floor + 1e-3) & (energies != 0)
    return torch.where(heard, (energies + curve).clamp(min=floor), energies)


def add_noise(maps: Tensor, largest: float) -> Tensor:
    """Uniform noise in [0, a) with one a in [0, largest) for each map, as the released audio recipe adds it."""
    amplitude = torch.rand(len(maps), 1, 1, 1, device=maps.device) * largest
    return maps + torch.rand_like(maps) * amplitude


def turn_series(maps: Tensor, probability: float) -> Tensor:
    """Folded series Bx1xSxS, each reversed in time with a probability: rows and columns flipped. Drawn for each map."""
    backwards = torch.rand(len(maps), 1, 1, 1, device=maps.device) < probability
    return torch.where(backwards, maps.flip(2, 3), maps)


def augment_pictures(pixels: Tensor, recipe: Recipe, tiles: int = 1) -> Tensor:
    """BxCxHxW from 0 to 255: flip, shift, RandAugment and erasing.

    All frames of a video alike, be they `tiles` x `tiles` tiles or C / 3 in the channels.
    """
    frames = _unfolded(pixels, tiles)
    count = len(frames) // len(pixels)
    matrices = _geometry(len(pixels), recipe, pixels.device)
    frames = _warped(frames, matrices.repeat_interleave(count, dim=0))
    picked = _picked_operations(len(pixels), recipe, pixels.device).repeat_interleave(count, dim=0)
    frames = _coloured(frames, picked, recipe.magnitude, count)
    return _erased(_folded(frames, tiles, pixels.shape[1]), recipe.erasing, tiles)


def mix_pictures(pixels: Tensor, labels: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The batch mixed with itself in another order: by mixup, by cutmix or not at all; one draw a batch."""
    if len(pixels) < 2 or not recipe.mixup + recipe.cutmix:
        return pixels, labels
    device, (height, width) = pixels.device, pixels.shape[2:]
    partner = _order(len(pixels), device)
    draw, area, down, right = torch.rand(4, device=device)
    is_blended, is_cut = draw < recipe.mixup, (draw >= recipe.mixup) & (draw < recipe.mixup + recipe.cutmix)
    rows, columns = (height * area.sqrt()).floor(), (width * area.sqrt()).floor()
    top, left = (down * (height - rows + 1)).floor(), (right * (width - columns + 1)).floor()
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    inside = ((y >= top) & (y < top + rows))[:, None] & ((x >= left) & (x < left + columns))
    share = torch.where(is_blended, _beta(1, recipe.mixup_alpha, device), 1.0).expand(height, width)
    share = torch.where(is_cut & inside, 0.0, share)  # of each pixel, the same for all pictures
    return torch.lerp(pixels[partner], pixels, share), torch.lerp(labels[partner], labels, share.mean())


def augment_points(points: Tensor, recipe: Recipe) -> Tensor:
    """BxNx3: turned, stretched, jittered, and a share of the points moved onto others (so that N stays)."""
    batch, count, _ = points.shape
    centre = points.mean(dim=1, keepdim=True)
    moved = points - centre
    radius = moved.square().sum(dim=2).amax(dim=1).sqrt()[:, None, None]
    if recipe.turn != "none":
        moved = torch.einsum("bnc,bdc->bnd", moved, _rotations(batch, recipe.turn, points.device))
    spread = math.log(recipe.stretch)
    moved = moved * torch.exp((torch.rand(batch, 1, 3, device=points.device) * 2 - 1) * spread)
    moved = moved + torch.randn_like(moved) * recipe.jitter * radius
    share = torch.rand(batch, 1, device=points.device) * recipe.dropped_points
    dropped = torch.rand(batch, count, device=points.device) < share
    other = torch.randint(0, count, (batch, count), device=points.device)
    source = torch.where(dropped, other, torch.arange(count, device=points.device)[None])
    return moved.gather(1, source[:, :, None].expand(-1, -1, 3)) + centre


def _order(count: int, device: torch.device) -> Tensor:
    """A permutation drawn on the device: torch.randperm may draw small ones on the host, which a
    CUDA graph would not repeat.
    """
    return torch.rand(count, device=device).argsort()


def _beta(count: int, alpha: float, device: torch.device) -> Tensor:
    """Drawn from the global generator: torch.distributions does so too, but checks its arguments each time."""
    parameter = torch.full((count,), float(alpha), device=device)
    first, second = torch._standard_gamma(parameter), torch._standard_gamma(parameter)
    return first / (first + second).clamp(min=1e-12)


def _rotations(batch: int, kind: str, device: torch.device) -> Tensor:
    """Bx3x3. About z for "upright"; uniform over all rotations, from normal quaternions, for "all"."""
    if kind == "upright":
        angle = torch.rand(batch, device=device) * 2 * math.pi
        c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        return torch.stack([c, -s, zero, s, c, zero, zero, zero, one], dim=1).reshape(-1, 3, 3)
    w, x, y, z = F.normalize(torch.randn(batch, 4, device=device), dim=1).unbind(1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=1).reshape(-1, 3, 3)


def _unfolded(pixels: Tensor, tiles: int) -> Tensor:
    """The frames, those of one video side by side: (B T)x3xHxW."""
    if tiles == 1:
        return pixels.reshape(-1, 3, *pixels.shape[2:])
    batch, channels, height, width = pixels.shape
    cut = pixels.reshape(batch, channels, tiles, height // tiles, tiles, width // tiles)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // tiles, width // tiles)


def _folded(frames: Tensor, tiles: int, channels: int) -> Tensor:
    """The inverse."""
    height, width = frames.shape[2:]
    if tiles == 1:
        return frames.reshape(-1, channels, height, width)
    cut = frames.reshape(-1, tiles, tiles, channels, height, width)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, tiles * height, tiles * width)


def _geometry(batch: int, recipe: Recipe, device: torch.device) -> Tensor:
    """Bx2x3 of the flips, shifts and, of RandAugment's operations, those that move pixels:
    two of three are of this kind.
    """

    def signed() -> Tensor:
        return torch.rand(batch, device=device) * 2 - 1

    strength = recipe.magnitude / 10 * (torch.rand(batch, 3, device=device) < min(1.0, recipe.random_augment / 3))
    angle, shear, move = (signed() * strength[:, i] * m for i, m in enumerate((MAX_ANGLE, MAX_SHEAR, MAX_MOVE)))
    mirror = torch.where(torch.rand(batch, device=device) < recipe.flip, -1.0, 1.0)
    c, s = angle.cos(), angle.sin()
    x, y = signed() * 2 * recipe.shift + move, signed() * 2 * recipe.shift
    return torch.stack([mirror * c, -s + shear, x, mirror * s, c, y], dim=1).reshape(-1, 2, 3)


def _warped(pixels: Tensor, matrices: Tensor) -> Tensor:
    grid = F.affine_grid(matrices.to(pixels), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _picked_operations(batch: int, recipe: Recipe, device: torch.device) -> Tensor:
    """Bx3 bool: brightness, contrast, saturation."""
    return torch.rand(batch, 3, device=device) < min(1.0, recipe.random_augment / 3)


def _coloured(pixels: Tensor, picked: Tensor, magnitude: int, repeats: int) -> Tensor:
    count = len(pixels) // repeats
    factors = 1 + (torch.rand(count, 3, device=pixels.device) * 2 - 1) * MAX_COLOUR * magnitude / 10
    factors = torch.where(picked, factors.repeat_interleave(repeats, dim=0), torch.ones((), device=pixels.device))
    brightness, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    pixels = pixels * brightness
    grey = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = grey + (pixels - grey) * contrast
    luma = pixels.mean(dim=1, keepdim=True)
    return (luma + (pixels - luma) * saturation).clamp(0, 255)


def _erased(pixels: Tensor, probability: float, tiles: int) -> Tensor:
    """A rectangle of 2 to 33 % of the area, with sides in a ratio of 0.3 to 3.3, filled with
    noise; in every tile the same.
    """
    batch, _, height, width = pixels.shape
    high, wide = height // tiles, width // tiles
    device = pixels.device
    area = (0.02 + 0.31 * torch.rand(batch, device=device)) * high * wide
    ratio = torch.exp((torch.rand(batch, device=device) * 2 - 1) * math.log(3.3))
    rows, columns = (area * ratio).sqrt().clamp(max=high), (area / ratio).sqrt().clamp(max=wide)
    top, left = torch.rand(batch, device=device) * (high - rows), torch.rand(batch, device=device) * (wide - columns)
    y, x = torch.arange(height, device=device) % high, torch.arange(width, device=device) % wide
    in_rows = (y >= top[:, None]) & (y < (top + rows)[:, None])
    in_columns = (x >= left[:, None]) & (x < (left + columns)[:, None])
    chosen = torch.rand(batch, device=device) < probability
    inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None] & chosen[:, None, None, None]
    return torch.where(inside, torch.rand_like(pixels) * 255, pixels)
