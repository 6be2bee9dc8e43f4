"""Recordings of one set on the device: training batches, evaluation of a network on them, and their frozen embeddings.

Shapes: I items, R recordings, B batch, V views, K classes, D width of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unipercept.backbone import UniRepLKNet
from unipercept.perception import augment
from unipercept.perception.packs import MapMaker, Packs, as_samples
from unipercept.perception.scores import soft_cross_entropy
from unipercept.perception.settings import MapSettings, Recipe
from unipercept.train import TrainConfig
from unipercept.train.randomness import preserved_randomness

BATCH = 64  # items at a time in evaluation
VOTING_STRETCH = 1.05  # of a sound's speed
HEARD_AS_IT_IS: dict[str, Any] = {"frequency_mask": 0.0, "time_mask": 0.0, "equaliser": 0.0, "gain": 0.0, "noise": 0.0}
IMBALANCE = 1.5  # counts that differ by more are balanced
STRIDE = 32  # of the last stage: a map of this size is one cell there
LOOKED_AT_EVERY = 10  # steps between readings of the loss when the GPU runs ahead: each is a synchronisation


class Task:
    """Training and validation items on the device, and the loss of a batch of positions in them."""

    def __init__(
        self, train: Packs, validation: Packs, maps: MapSettings, recipe: Recipe, n_classes: int, device: torch.device
    ) -> None:
        self.recipe, self.maps, self.n_classes = recipe, maps, n_classes
        self.maker = MapMaker(maps)
        train, validation = train.to(device), validation.to(device)  # they may come from different ones
        self.values = torch.cat([train.values, validation.values])
        self.lengths = torch.cat([train.lengths, validation.lengths])
        self.targets = torch.cat([train.item_targets(), validation.item_targets()])
        self.n_train, self._oldest = len(train.values), 0
        self.traits = None if train.traits is None else train.traits.clone()
        self.n_quantities = train.n_quantities
        self.class_weights = _class_weights(train.targets[train.targets >= 0], n_classes, recipe).to(device)

    @property
    def n_traits(self) -> int:
        """T, the number of traits that are learnt besides the class."""
        return 0 if self.traits is None else self.traits.shape[1]

    def renew(self, values: Tensor, targets: Tensor, traits: Tensor | None = None) -> None:
        """Replace the oldest training items by new ones."""
        rows = (torch.arange(len(values), device=self.values.device) + self._oldest) % self.n_train
        self.values[rows], self.targets[rows] = values.to(self.values.device), targets.to(self.values.device)
        if self.traits is not None and traits is not None:
            self.traits[rows] = traits.to(self.traits.device)
        self._oldest = (self._oldest + len(values)) % self.n_train

    def training_positions(self) -> Positions:
        """Positions of the training items."""
        return Positions(0, self.n_train, self.values.device)

    def validation_positions(self) -> Positions:
        """Positions of the validation items, which follow them."""
        return Positions(self.n_train, len(self.values), self.values.device)

    def config(self, device: str, run_ahead: bool = False) -> TrainConfig:
        """The recipe as the configuration of `fit`."""
        recipe = self.recipe
        per_epoch = -(-self.n_train // recipe.batch_size)
        epochs = max(recipe.epochs, math.ceil(recipe.min_steps / per_epoch))
        every = max(1, epochs // 30) * per_epoch  # some thirty validations a run
        return TrainConfig(
            epochs=epochs,
            batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            warmup_steps=int(recipe.warmup * epochs * per_epoch),
            ema_decay=recipe.ema_decay,
            clip_gradient_norm=recipe.clip_gradient_norm,
            precision="float32" if device == "cpu" else "bf16",
            seed=recipe.seed,
            device=device,
            run_ahead=run_ahead,
            log_every=LOOKED_AT_EVERY if run_ahead else 1,
            validate_every=every,
            checkpoint_every=every,
            monitor="accuracy",
            monitor_mode="max",
        )

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Cross-entropy with soft labels, weighted by class, of positions; their items are
        augmented while the model trains.
        """
        (rows,) = batch
        if model.training and len(rows) == 1 and self.maps.size <= STRIDE:  # what an epoch may leave for its last batch
            rows = torch.cat([rows, (rows + 1) % self.n_train])  # batch statistics need two cells
        made, weighted = self.training_batch(rows) if model.training else self._plain_batch(rows)
        return soft_cross_entropy(model(made), weighted)

    def training_batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Augmented maps and their soft labels, weighted by class, zeros for an item without a class; followed by
        the traits, if there are any.
        """
        labels = augment.one_hot(self.targets[rows].clamp(min=0), self.n_classes, self.recipe.label_smoothing)
        labels = labels * (self.targets[rows] >= 0)[:, None]
        # Rendered and filtered in single precision: points in half precision would have no normals left.
        with torch.autocast(rows.device.type, enabled=False):
            made, labels = self._augmented(rows, labels)
        labels = self._weighted(labels)
        return made, labels if self.traits is None else torch.cat([labels, self.traits[rows]], dim=1)

    def unmixed_maps(self, rows: Tensor) -> Tensor:
        """Maps augmented as in training but not mixed with others: the distribution that the network will meet."""
        with torch.autocast(rows.device.type, enabled=False):
            return _augmented_maps(self.maker, as_samples(self.values[rows]), self.lengths[rows], self.recipe)[0]

    def _plain_batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        labels = augment.one_hot(self.targets[rows], self.n_classes, self.recipe.label_smoothing)
        with torch.autocast(rows.device.type, enabled=False):
            made, _ = self.maker(self.values[rows], self.lengths[rows])
        return made, self._weighted(labels)

    def _weighted(self, labels: Tensor) -> Tensor:
        return labels.repeat_interleave(self.maker.n_views, dim=0) * self.class_weights

    def metrics(self, model: nn.Module, batch: tuple[Tensor]) -> dict[str, Tensor]:
        """Accuracy of the items, views averaged."""
        (rows,) = batch
        with torch.autocast(rows.device.type, enabled=False):
            made, weights = self.maker(self.values[rows], self.lengths[rows])
        probabilities = model(made).float().softmax(dim=1) * weights[:, None]
        said = probabilities.reshape(len(rows), -1, self.n_classes).sum(dim=1).argmax(dim=1)
        return {"accuracy": (said == self.targets[rows]).float().mean()}

    def _augmented(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        values, lengths = as_samples(self.values[rows]), self.lengths[rows]
        if self.maps.modality == "audio":
            values, lengths = _varied_sounds(values, lengths, self.recipe)
            values, labels = augment.mix_waveforms(values, lengths, labels, self.recipe)
            if self.recipe.within:
                values = augment.mix_within(values, lengths, self.targets[rows], self.recipe.within)
            if self.recipe.between:
                values, labels = augment.mix_between(values, lengths, labels, self.targets[rows], self.recipe.between)
            return _masked_maps(self.maker, values, lengths, self.recipe)[0], labels
        made, _ = _augmented_maps(self.maker, values, lengths, self.recipe)
        if self.maps.modality in ("image", "video"):
            made, labels = augment.mix_pictures(made, labels, self.recipe)
        return made, labels


class Positions:
    """Batches of item positions on the device: all that a step receives, so one CUDA graph can hold the whole step,
    augmentation included.
    """

    def __init__(self, first: int, end: int, device: torch.device) -> None:
        self.first, self.end, self.device = first, end, device

    def __len__(self) -> int:
        return self.end - self.first

    def __getitem__(self, index: int) -> tuple[Tensor]:
        """A batch of one."""
        return self.batch([index])

    def batch(self, indices: Sequence[int]) -> tuple[Tensor]:
        """B positions."""
        return ((torch.tensor(indices) + self.first).to(self.device, non_blocking=True),)


@contextmanager
def recomputing_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, forward passes recompute the batch norms' statistics as plain means over all of them: averaged weights
    need statistics of their own.

    Source: Wu and Johnson (2021), Rethinking "Batch" in BatchNorm, section 3.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    try:
        with torch.no_grad():
            yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def recompute_statistics(network: nn.Module, task: Task, n_batches: int = 20) -> None:
    """Recompute a network's batch norm statistics on training items, augmented but not mixed."""
    with recomputing_statistics(network):
        for _ in range(n_batches):
            made = task.unmixed_maps(torch.randperm(task.n_train, device=task.values.device)[: task.recipe.batch_size])
            with torch.autocast(made.device.type, torch.bfloat16, enabled=made.is_cuda):
                network(made)
    network.eval()


def logits_of(
    network: nn.Module,
    packs: Packs,
    maps: MapSettings,
    device: torch.device,
    *,
    votes: int = 1,
    recipe: Recipe | None = None,
    batch_size: int = BATCH,
    half: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of every map of a set, its weight and its recording: (I V)xK, (I V), (I V), on the CPU.

    Args:
        votes: versions of each recording: the original and votes - 1 augmented by `recipe` without mixing; sounds are
            shifted and slightly changed in speed, but not filtered, masked or changed in level.
        half: run the network, not the making of maps, in bfloat16.
    """
    maker = MapMaker(maps)
    network.eval()
    if recipe is not None and maps.modality == "audio":
        recipe = recipe.changed(**HEARD_AS_IT_IS, stretch=min(recipe.stretch, VOTING_STRETCH))
    logits, weights, owners = [], [], []
    for vote in range(votes):
        for rows in torch.split(torch.arange(len(packs.values)), batch_size):
            values, lengths = packs.values[rows].to(device), packs.lengths[rows].to(device)
            with torch.inference_mode(), preserved_randomness(1_000 * vote + int(rows[0])):
                if vote and recipe is not None:
                    made, share = _augmented_maps(maker, as_samples(values), lengths, recipe)
                else:
                    made, share = maker(values, lengths)
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    logits.append(network(made).float().cpu())
            weights.append(share.cpu())
            owners.append(packs.recording[rows].cpu().repeat_interleave(maker.n_views))
    return torch.cat(logits), torch.cat(weights), torch.cat(owners)


class _WithoutHead(nn.Module):
    """A network's pooled features. The network, which others may use at the same time, stays as it is."""

    def __init__(self, network: UniRepLKNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, maps: Tensor) -> Tensor:
        return self.network.forward_head(self.network.forward_features(maps), pre_logits=True)


def features_of(network: UniRepLKNet, packs: Packs, maps: MapSettings, device: torch.device) -> Tensor:
    """Frozen vectors of a set: RxD, pooled over items and views as `encode` pools them, of length 1."""
    found, weights, owners = logits_of(_WithoutHead(network), packs, maps, device)
    total = torch.zeros(len(packs), found.shape[1], dtype=torch.float64)
    total.index_add_(0, owners, found.double() * weights.double()[:, None])
    return F.normalize(total, dim=1).float()


def _augmented_maps(maker: MapMaker, values: Tensor, lengths: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Maps of a batch with everything of the recipe but mixing."""
    modality = maker.settings.modality
    if modality == "audio":
        return _masked_maps(maker, *_varied_sounds(values, lengths, recipe), recipe)
    if modality == "pointcloud":
        return maker(augment.augment_points(values, recipe), lengths)
    if modality == "timeseries":
        made, share = maker(values, lengths)
        return augment.add_noise(augment.turn_series(made, recipe.flip), recipe.noise), share
    is_grid = modality == "video" and maker.settings.folding == "grid"
    tiles = math.isqrt(maker.settings.n_frames) if is_grid else 1
    made = maker.normalised(augment.augment_pictures(values.float(), recipe, tiles))
    return made, made.new_ones(len(made))


def _varied_sounds(samples: Tensor, lengths: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """BxN moved in time, faster or slower, louder or softer."""
    samples = augment.shift_waveforms(samples, lengths, recipe.shift)
    samples, lengths = augment.change_speed(samples, lengths, recipe.stretch, recipe.loops)
    return augment.change_gain(samples, recipe.gain), lengths


def _masked_maps(maker: MapMaker, samples: Tensor, lengths: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Maps of sounds as they are, filtered, masked and with noise; their shares of real input."""
    energies, real = maker.energies(samples, lengths)
    energies = augment.mask_spectrum(augment.equalise(energies, recipe.equaliser), recipe)
    return augment.add_noise(maker.scaled(energies), recipe.noise), real.float().mean(dim=1)


def _class_weights(targets: Tensor, n_classes: int, recipe: Recipe) -> Tensor:
    """K weights of mean 1 over the recordings: inverse counts, or ones."""
    counts = torch.bincount(targets, minlength=n_classes).float().clamp(min=1)
    is_uneven = bool(counts.max() > IMBALANCE * counts.min())
    if recipe.balance == "none" or (recipe.balance == "auto" and not is_uneven):
        return torch.ones(n_classes)
    return counts.sum() / (n_classes * counts)
