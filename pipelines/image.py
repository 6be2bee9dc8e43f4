"""Picture to map. H is y, W is x, three channels R, G, B normalised with ImageNet's mean and standard deviation.

Shapes: B batch, C channels, H rows, W columns.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unipercept.devices import on_cpu
from unipercept.embedding import Axis, EmbeddingMap
from unipercept.errors import InputError
from unipercept.pipelines.base import PerceptionModel, Pipeline, check_raw
from unipercept.pipelines.picture import Picture, open_picture

# Of ImageNet's training pictures, R G B on the scale 0 to 1: the constants of the published checkpoints.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_RATIO = 0.875  # share of the short side that the centre crop keeps, below 384
NO_CROP_FROM = 384  # at this size and above, the published evaluation squeezes the whole picture into the square
MAX_PIXELS = 178_956_970  # twice Pillow's MAX_IMAGE_PIXELS: where Pillow too refuses
MAX_ASPECT = 8  # beyond it, only what the crop shows is resized: 1x50000 would grow to 256x12800000 first
DRAFT_MARGIN = 4  # a huge JPEG is decoded to no less than so many times the working size


@dataclass(frozen=True)
class ImageConfig:
    """How a picture becomes a map.

    Args:
        size: height and width of the map in pixels.
        crop_ratio: size / crop_ratio is the short side before the centre crop, where size < 384.
        max_pixels: pictures with more are refused by their header. Pillow refuses above 178,956,970 by itself.
        background: R, G, B from 0 to 255 behind transparent pixels.
        mean, std: R, G, B on the scale 0 to 1; the map is (value - mean) / std.
    """

    size: int = 224
    crop_ratio: float = CROP_RATIO
    max_pixels: int = MAX_PIXELS
    background: tuple[int, int, int] = (255, 255, 255)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.crop_ratio <= 1 or self.max_pixels < 1:
            raise InputError(
                "ImageConfig needs size >= 1, 0 < crop_ratio <= 1 and max_pixels >= 1, "
                f"got {self.size}, {self.crop_ratio:g}, {self.max_pixels}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or not min(self.std) > 0:
            raise InputError(f"ImageConfig needs three means and three positive stds, got {self.mean} and {self.std}")

    @property
    def resized_side(self) -> int:
        """The short side before the crop; the size itself where nothing is cropped."""
        return self.size if self.size >= NO_CROP_FROM else int(self.size / self.crop_ratio)


class ImagePipeline(Pipeline[Picture]):
    """Picture to a 1x3xHxW map, resized and cropped as the published evaluation does it.

    Below 384 the short side is resized to size / 0.875 (bicubic) and the centre is cropped; from 384 on the picture is
    resized straight to size x size, whatever its aspect. Grey is repeated over the three channels. The axes "y" and "x"
    give each cell's centre in pixels of the upright original (its first pixel spans 0 to 1), so that a result can be
    drawn on it.
    """

    modality = "image"

    def __init__(self, config: ImageConfig = ImageConfig(), *, model: PerceptionModel | None = None) -> None:
        super().__init__(model)
        self.config = config

    def read(self, path: str | Path) -> Picture:
        return open_picture(
            path,
            max_pixels=self.config.max_pixels,
            draft_size=DRAFT_MARGIN * self.config.resized_side,
            background=self.config.background,
        )

    @on_cpu
    def embed(self, raw: Picture) -> EmbeddingMap:
        check_raw(raw, Picture, "Picture.from_array")
        config = self.config
        size, (left, top, right, bottom) = config.size, self._window(raw.width, raw.height)
        planes = [self._resized(plane) for plane in raw.planes]
        values = planes[0] if len(planes[0]) == 3 else torch.cat(planes).expand(3, -1, -1).clone()
        mean, std = (torch.tensor(three, dtype=torch.float32)[:, None, None] for three in (config.mean, config.std))
        values.div_(255).sub_(mean).div_(std)  # in place: fresh memory takes longer than the arithmetic
        share = (torch.arange(size, dtype=torch.float64) + 0.5) / size
        return EmbeddingMap(
            values[None],
            self.modality,
            {
                "y": Axis("H", top + share * (bottom - top), "px"),
                "x": Axis("W", left + share * (right - left), "px"),
            },
            metadata={
                **raw.metadata,
                "width": raw.width,
                "height": raw.height,
                "mean": list(config.mean),
                "std": list(config.std),
                "resize": "whole picture"
                if size >= NO_CROP_FROM
                else f"short side to {config.resized_side}, centre crop",
            },
        )

    def _resized(self, plane: Image.Image) -> Tensor:
        """The plane as the map sees it: 3xHxW of RGB or 1xHxW, float32 from 0 to 255."""
        size = self.config.size
        if size >= NO_CROP_FROM:
            return _to_tensor(plane.resize((size, size), Image.Resampling.BICUBIC))
        if max(plane.size) > MAX_ASPECT * min(plane.size):
            box = self._window(*plane.size)
            return _to_tensor(plane.resize((size, size), Image.Resampling.BICUBIC, box=box))
        width, height = _resized_size(*plane.size, self.config.resized_side)
        left, top = round((width - size) / 2), round((height - size) / 2)
        resized = plane.resize((width, height), Image.Resampling.BICUBIC)
        return _to_tensor(resized.crop((left, top, left + size, top + size)))

    def _window(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture that the map shows, in its pixels: left, top, right, bottom."""
        size = self.config.size
        if size >= NO_CROP_FROM:
            return 0, 0, width, height
        new_width, new_height = _resized_size(width, height, self.config.resized_side)
        left, top = round((new_width - size) / 2), round((new_height - size) / 2)
        x, y = width / new_width, height / new_height
        return left * x, top * y, (left + size) * x, (top + size) * y


def _resized_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height once the short side is `side`, the long one cut to a whole number, as torchvision does."""
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _to_tensor(plane: Image.Image) -> Tensor:
    values = np.asarray(plane)
    if values.ndim == 3:
        return torch.from_numpy(values.transpose(2, 0, 1).astype(np.float32, order="C"))
    # Bicubic overshoots; bytes are clipped by Pillow, floats are not.
    return torch.from_numpy(values.astype(np.float32))[None].clamp_(0, 255)
