"""Out-of-distribution detection: how far a recording lies from the training recordings of a head.

A head names one of its classes whatever it sees. Two views of a recording tell whether its answer means anything.
`content` is the embedding, pooled features of length 1, compared with the means of the classes. `texture` is the mean
and deviation of each channel after the second stage, where features are not yet specific to the classes: photographs
differ there from pictures of clothes even if the last layer takes them for a bag. For each view the training
recordings are modelled as Gaussians. The larger of the two distances counts, in units of the distance within which
95 % of the validation recordings lie.

Classes share a covariance if recordings are few. If each class has `OWN_FROM` or more, each has a covariance of its
own, in both views: types of series differ in how similar their members are, and with a shared covariance a third of
the seasonal series were out of distribution, and hardly any trend.

Shapes: R recordings, B maps, C channels, H rows, W columns, D numbers of a view, K classes, J directions; G
covariances: K, or 1 that all share.

Source: the distance within classes is that of Lee et al. (2018), A Simple Unified Framework for Detecting
Out-of-Distribution Samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unipercept.atomic import atomic_path
from unipercept.errors import WeightsError, one_line

N_DIRECTIONS = 32  # of a covariance that are kept; the rest counts as alike in all directions
OWN_DIRECTIONS = 16  # of the covariance of a class, likewise
OWN_FROM = 200  # recordings of each class
RECORDINGS_A_DIRECTION = 6  # at least
USUAL = 0.95  # share of the validation recordings that counts as usual
# Of a view's median one: a channel that is dead in training is no proof of being out of distribution.
SMALLEST_SCALE = 0.01
TEXTURE_STAGE = 1  # the second
BESIDE = "familiar.safetensors"


@dataclass(frozen=True)
class Gaussian:
    """Recordings of K classes about their means.

    Args:
        scale: D deviations, by which a view is divided first.
        means: KxD, scaled.
        directions: GxJxD of length 1 at right angles: the widest of each covariance.
        variances: Gx(J + 1), of these and of any other direction.
    """

    scale: Tensor
    means: Tensor
    directions: Tensor
    variances: Tensor

    def distance(self, views: Tensor) -> Tensor:
        """R Mahalanobis distances from RxD to the nearest class, per square root of D."""
        return self.distances(views).amin(dim=1)

    def distances(self, views: Tensor) -> Tensor:
        """RxK: those to each class."""
        away = (views.double() / self.scale.double()) - self.means.double()[:, None]  # KxRxD
        along = (away @ self.directions.double().transpose(1, 2)).square()
        others = (away.square().sum(dim=2) - along.sum(dim=2)).clamp(min=0)
        variances = self.variances.double()[:, None]
        squared = (along / variances[..., :-1]).sum(dim=2) + others / variances[..., -1]
        return (squared / views.shape[1]).sqrt().T


@dataclass(frozen=True)
class Familiarity:
    """The training recordings of a head, in both views.

    Args:
        limits: 3: the 95 % quantile of the distance of content, that of texture, and that of the larger of the two
            distances, each divided by its own quantile.
    """

    content: Gaussian
    texture: Gaussian
    limits: Tensor

    def ood_score(self, vectors: Tensor, textures: Tensor) -> Tensor:
        """R scores from vectors and textures: 1 at the 95 % quantile of the validation recordings, more beyond it."""
        return self._worse(vectors, textures) / self.limits[2].double()

    def _worse(self, vectors: Tensor, textures: Tensor) -> Tensor:
        content = self.content.distance(vectors) / self.limits[0].double()
        return torch.maximum(content, self.texture.distance(textures) / self.limits[1].double())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to store; means and directions in half precision."""
        views = {"content": self.content, "texture": self.texture}
        found = {
            f"{view}.{field.name}": getattr(gaussian, field.name)
            for view, gaussian in views.items()
            for field in fields(Gaussian)
        }
        return {
            **{
                name: value.half() if name.endswith(("means", "directions")) else value.float()
                for name, value in found.items()
            },
            "limits": self.limits.float(),
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Familiarity:
        """The inverse of `tensors`, to half precision."""

        def view(name: str) -> Gaussian:
            found = {field.name: tensors[f"{name}.{field.name}"].float() for field in fields(Gaussian)}
            if found["directions"].ndim == 2:  # files of when all classes shared a covariance
                found |= {key: found[key][None] for key in ("directions", "variances")}
            return Gaussian(**found)

        return Familiarity(view("content"), view("texture"), limits=tensors["limits"].float())


def fit_familiarity(train: tuple[Tensor, Tensor], targets: Tensor, validation: tuple[Tensor, Tensor]) -> Familiarity:
    """Fit to (vectors, textures) of the training recordings with their R classes, and of the validation recordings.

    Only the limits come from validation. They are measured on the statistics as stored, in half precision, so that
    they hold for what is read back from a file.
    """
    if int(torch.unique(targets, return_counts=True)[1].min()) >= OWN_FROM:
        gaussians = (_fitted_each(train[0], targets), _fitted_each(train[1], targets))
    else:
        gaussians = (_fitted(train[0], targets), _fitted(train[1], torch.zeros_like(targets)))
    unlimited = Familiarity.from_tensors(Familiarity(*gaussians, limits=torch.ones(3)).tensors())
    own = [
        gaussian.distance(views).quantile(USUAL)
        for gaussian, views in zip((unlimited.content, unlimited.texture), validation, strict=True)
    ]
    single = Familiarity(unlimited.content, unlimited.texture, torch.stack([*own, own[0].new_ones(())]).float())
    both = single._worse(*validation).quantile(USUAL)
    return Familiarity(single.content, single.texture, torch.stack([*own, both]).float())


def save_beside(weights: Path, found: Familiarity) -> None:
    """Write a model's statistics into the folder of its weights."""
    with atomic_path(weights.with_name(BESIDE)) as temporary:
        save_file({name: value.contiguous() for name, value in found.tensors().items()}, temporary)


def familiarity_beside(weights: Path) -> Familiarity | None:
    """Read what `save_beside` wrote; None if there is no such file.

    Raises:
        WeightsError: the file is damaged.
    """
    path = weights.with_name(BESIDE)
    if not path.is_file():
        return None
    try:
        return Familiarity.from_tensors(load_file(path))
    except (SafetensorError, KeyError) as error:
        raise WeightsError(
            f"{path} is damaged ({one_line(error, 100)}); delete it to go on without out-of-distribution notices"
        ) from error


def look_familiar(network: nn.Module, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled features BxD and textures Bx2C of maps, from one pass of a network in stages."""
    stages: list[Tensor] = network.forward_stages(maps)  # type: ignore[operator]
    pooled: Tensor = network.forward_head(stages[-1], pre_logits=True)  # type: ignore[operator]
    return pooled, texture_of(stages[TEXTURE_STAGE])


def texture_of(stage: Tensor) -> Tensor:
    """Bx2C: the mean of each channel of BxCxHxW, and the logarithm of its deviation."""
    values = stage.float()
    return torch.cat([values.mean(dim=(2, 3)), values.std(dim=(2, 3), correction=0).clamp(min=1e-6).log()], dim=1)


def _fitted(views: Tensor, targets: Tensor) -> Gaussian:
    """A Gaussian of RxD views for the classes that occur, with one shared covariance."""
    scale, means, within = _centred(views, targets)
    directions, variances = _widest(within, N_DIRECTIONS)
    return Gaussian(scale, means, directions[None], variances[None])


def _fitted_each(views: Tensor, targets: Tensor) -> Gaussian:
    """The same with a covariance for each class, in units in which 95 % of the class's own
    recordings are nearer than 1.
    """
    scale, means, within = _centred(views, targets)
    present = torch.unique(targets)
    found = [_widest(within[targets == one], OWN_DIRECTIONS) for one in present]
    plain = Gaussian(scale, means, *(torch.stack(parts) for parts in zip(*found, strict=True)))
    distances = plain.distances(views)
    radii = torch.stack([distances[targets == one, place].quantile(USUAL) for place, one in enumerate(present)])
    return Gaussian(scale, means, plain.directions, plain.variances * radii.square()[:, None])


def _centred(views: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """D scales, KxD scaled means of the classes that occur, RxD scaled differences from them."""
    views, present = views.double(), torch.unique(targets)
    deviation = views.std(dim=0, correction=0)
    scale = deviation.clamp(min=max(float(SMALLEST_SCALE * deviation.median()), 1e-6))
    scaled = views / scale
    means = torch.stack([scaled[targets == one].mean(dim=0) for one in present])
    return scale, means, scaled - means[torch.searchsorted(present, targets)]


def _widest(within: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` directions JxD, and J + 1 variances, of RxD about 0."""
    variances, vectors = torch.linalg.eigh(within.T @ within / len(within))
    kept = max(1, min(count, len(variances) - 1, len(within) // RECORDINGS_A_DIRECTION))
    rest = variances[:-kept].clamp(min=0).mean().clamp(min=1e-6)
    widest = torch.cat([variances[-kept:].flip(0).clamp(min=rest), rest[None]])
    return F.normalize(vectors[:, -kept:].T.flip(0), dim=1), widest
