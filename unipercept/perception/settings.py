"""How recordings become the maps of a run, and how a run trains: frozen settings that are printed into its folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from unipercept.errors import InputError
from unipercept.pipelines.audio import AUDIOSET, AudioConfig
from unipercept.pipelines.image import ImageConfig
from unipercept.pipelines.pointcloud import DEFAULT_VIEWS, PointCloudConfig
from unipercept.pipelines.timeseries import TimeSeriesConfig
from unipercept.pipelines.video import VideoConfig

MODALITIES = ("image", "audio", "video", "pointcloud", "timeseries")
MAX_CELLS = 1 << 24  # of a map: a picture of 4096 x 4096
MAX_SAMPLES = 1 << 24  # of a window of sound: 17 minutes at 16 kHz; points of a cloud
# Of a video whose frames are stacked to see motion: 16 frames are half a second apart. In one map of 30 s they were two
# seconds apart, and the turning earth, which moves by a sixth of the picture between them, was a shaking camera.
STACKED_SECONDS = 8.0
Tuning = Literal["full", "head", "linear"]

# Four fifths of the channels and five of the twelve blocks of UniRepLKNet-A, kernels of 7: 3 ms a 64x64 map, forward
# and backward, on two CPU cores, where A takes 27 ms.
SMALL = "small"
SMALL_SIZES: dict[str, Any] = {
    "depths": (1, 1, 2, 1),
    "dims": (32, 64, 128, 256),
    "kernel_sizes": ((3,), (7,), (7, 7), (7,)),
}
# For pictures of a few hundred pixels, enlarged so that the first stage works on the pixels themselves: half
# of the blocks are in the second stage, where 28x28 pixels are still 14x14 cells; a last stage of 4x4 cells
# needs neither depth nor width.
FINE = "fine"
FINE_SIZES: dict[str, Any] = {
    "depths": (2, 6, 3, 1),
    "dims": (64, 128, 256, 256),
    "kernel_sizes": ((3,) * 2, (7,) * 6, (7,) * 3, (7,)),
}
OWN_SIZES = {SMALL: SMALL_SIZES, FINE: FINE_SIZES}


@dataclass(frozen=True)
class MapSettings:
    """How a recording becomes maps; enough to make the pipeline again.

    Args:
        modality: one of `MODALITIES`.
        size: side of a picture, a frame, a view or a folded series in cells; mel bins of a sound.
        length: frames of a sound's window.
        sample_rate: Hz; sounds are resampled to it.
        n_frames: frames of a video map; in a grid a square.
        folding: how they become one map: "grid", of up to 64 s of video, or "stack", of up to 8 s, in which the first
            convolution sees motion.
        n_points: points of a cloud.
        with_scale: a cloud's size in its file's units is a channel.
    """

    modality: str
    size: int = 64
    length: int = 128
    sample_rate: int = 16_000
    n_frames: int = 16
    folding: Literal["grid", "stack"] = "grid"
    n_points: int = 2_048
    with_scale: bool = True

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise InputError(f"classifiers are trained on {', '.join(MODALITIES)}; got {self.modality!r}")
        if self.folding not in ("grid", "stack"):
            raise InputError(f'folding must be "grid" or "stack", got {self.folding!r}')
        self.pipeline_config()
        self._check_is_bounded()

    def _check_is_bounded(self) -> None:
        """Settings may come from a file, which must not be able to exhaust the memory."""
        cells = {"audio": self.size * self.length, "video": self.n_frames * self.size**2}.get(
            self.modality, self.size**2
        )
        samples = self.length * self.sample_rate // 100 if self.modality == "audio" else self.n_points
        if cells > MAX_CELLS or samples > MAX_SAMPLES:
            raise InputError(
                f"a map may have {MAX_CELLS:,} cells and be made of {MAX_SAMPLES:,} samples or points; "
                f"these settings ask for {cells:,} and {samples:,}"
            )

    @property
    def in_channels(self) -> int:
        """C of the maps."""
        frames = self.n_frames if self.folding == "stack" else 1
        return {"audio": 1, "timeseries": 1, "pointcloud": 4 if self.with_scale else 3, "video": 3 * frames}.get(
            self.modality, 3
        )

    def pipeline_config(self) -> Any:
        """The settings of the modality's pipeline."""
        if self.modality == "image":
            return ImageConfig(size=self.size, crop_ratio=1.0)
        if self.modality == "video":
            seconds = STACKED_SECONDS if self.folding == "stack" else VideoConfig.segment_seconds
            return VideoConfig(n_frames=self.n_frames, size=self.size, folding=self.folding, segment_seconds=seconds)
        if self.modality == "pointcloud":
            return PointCloudConfig(
                size=self.size, views=DEFAULT_VIEWS, n_points=self.n_points, with_scale=self.with_scale
            )
        if self.modality == "timeseries":
            return TimeSeriesConfig(size=self.size)
        return AudioConfig(
            sample_rate=self.sample_rate,
            target_length=self.length,
            n_mels=self.size,
            normalisation=AUDIOSET,
            pads_to_window=True,
        )

    def to_json(self) -> str:
        """One line, for the header of a weights file."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> MapSettings:
        """The inverse of `to_json`.

        Raises:
            InputError: it was not written by `to_json`.
        """
        try:
            return MapSettings(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise InputError(f"not the settings of a map: {error}") from error


@dataclass(frozen=True)
class Recipe:
    """How a run trains. Probabilities are within [0, 1]; 0 disables an augmentation.

    Args:
        architecture: a name of `OWN_SIZES` or of `VARIANTS`.
        min_steps: least number of updates; epochs are added for small sets.
        warmup: share of the steps.
        layer_decay: factor on the learning rate from each layer to the one below it; 1 for none.
        mixup, cutmix: probability that a batch is mixed so. Sources: Zhang et al. (2018); Yun et al. (2019).
        mixup_alpha: of the Beta distribution of the share. Waveforms are mixed as the AST
            recipe does, with Beta(10, 10).
        between: probability that a sound is mixed with one of another class, by loudness.
            Source: Tokozume et al. (2018).
        within: probability that a sound gets another of its class added.
        random_augment: operations per picture. Source: Cubuk et al. (2020), RandAugment.
        magnitude: their strength, 0 to 10.
        flip: probability of mirroring left and right (a series: of running backwards); 0 where that
            matters (digits, camera motion).
        shift: largest move of a picture, or of a sound in time, as a share of its width.
        erasing: probability. Source: Zhong et al. (2020).
        frequency_mask, time_mask: largest share of bins and frames masked. Source: Park et al. (2019), SpecAugment.
        noise: largest amplitude of uniform noise on a normalised map.
        turn: "none", "upright" (about the vertical) or "all" rotations of a cloud.
        stretch: largest factor of a cloud's stretch along each axis, and of a sound's speed; 1 for none.
        gain: largest change of a sound's level in decibels.
        equaliser: deviation, in decibels, of the gain of bands of a sound. Source: Nam et al. (2022), FilterAugment.
        loops: a sound made faster is repeated from its beginning instead of ending early: for ambience, not for words.
        jitter: deviation of each point, in radii of the cloud.
        dropped_points: largest share.
        balance: weigh the classes' losses by the inverse of their counts, "auto" where counts differ by more than half.
    """

    architecture: str = SMALL
    epochs: int = 60
    min_steps: int = 400
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    layer_decay: float = 1.0
    drop_path: float = 0.1
    ema_decay: float | None = 0.99
    label_smoothing: float = 0.1
    clip_gradient_norm: float | None = 5.0
    mixup: float = 0.0
    mixup_alpha: float = 0.4
    between: float = 0.0
    within: float = 0.0
    cutmix: float = 0.0
    random_augment: int = 0
    magnitude: int = 5
    flip: float = 0.0
    shift: float = 0.0
    erasing: float = 0.0
    frequency_mask: float = 0.0
    time_mask: float = 0.0
    noise: float = 0.0
    turn: Literal["none", "upright", "all"] = "none"
    stretch: float = 1.0
    gain: float = 0.0
    equaliser: float = 0.0
    loops: bool = False
    jitter: float = 0.0
    dropped_points: float = 0.0
    balance: Literal["auto", "none", "always"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (
            "warmup", "drop_path", "label_smoothing", "mixup", "between", "within", "cutmix", "flip", "shift",
            "erasing", "dropped_points", "frequency_mask", "time_mask",
        )  # fmt: skip
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} of a recipe must lie within [0, 1], got {getattr(self, name)!r}")
        if min(self.epochs, self.batch_size) < 1 or self.learning_rate <= 0 or self.stretch < 1:
            raise InputError(
                "a recipe needs epochs and batch_size of at least 1, a positive learning rate, and stretch >= 1, got "
                f"{self.epochs}, {self.batch_size}, {self.learning_rate:g}, {self.stretch:g}"
            )
        if self.mixup_alpha <= 0:
            raise InputError(f"mixup_alpha of a recipe must be positive, got {self.mixup_alpha:g}")
        if min(self.gain, self.equaliser) < 0:
            raise InputError(
                f"gain and equaliser of a recipe are decibels of at least 0, got {self.gain:g} and {self.equaliser:g}"
            )

    def to_json(self) -> str:
        """All settings, one a line."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def changed(self, **changes: Any) -> Recipe:
        """The recipe with some settings replaced.

        Raises:
            InputError: there is no such setting.
        """
        known = {field.name for field in fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise InputError(f"a recipe has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return replace(self, **changes)


# After the released recipes (docs/decisions/0010-perception.md lists what was corrected), scaled to small sets.
RECIPES = {
    "image": Recipe(mixup=0.3, cutmix=0.3, random_augment=2, magnitude=5, flip=0.5, shift=0.1, erasing=0.25),
    "audio": Recipe(
        learning_rate=4e-3,
        mixup=0.2,
        mixup_alpha=10.0,
        shift=0.1,
        frequency_mask=0.2,
        time_mask=0.15,
        noise=0.1,
    ),
    "video": Recipe(mixup=0.1, random_augment=1, magnitude=3, erasing=0.1),
    "pointcloud": Recipe(turn="upright", stretch=1.2, jitter=0.01, dropped_points=0.3, drop_path=0.1),
    "timeseries": Recipe(noise=0.05),
    # Sounds that are the same wherever one begins to listen: rain, machines, animals.
    "ambience": Recipe(
        batch_size=64,
        between=0.5,
        shift=0.5,
        stretch=1.25,
        loops=True,
        gain=6.0,
        equaliser=5.0,
        frequency_mask=0.25,
        time_mask=0.2,
    ),
}
