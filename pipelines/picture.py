"""Picture files and arrays as planes ready to be resized: orientation, transparency and depth are settled here.

A picture's header is checked before anything is decoded. Values are on the scale 0 to 255 whatever the file's depth:
16-bit grey is divided by 257 (65535 becomes 255) and kept as floating point, not clipped; 32-bit integers and floats
are stretched by their own range, unless floats lie in [0, 1]. Pillow reads 16-bit colour as 8-bit; the metadata say so.
Colour profiles (ICC) are not applied, as in the published evaluation.
"""

import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from unipercept.errors import InputError, one_line
from unipercept.pipelines.base import as_array
from unipercept.pipelines.files import check_file, open_error

ORIENTATION_TAG = 0x0112  # EXIF and TIFF
BITS_TAG, PHOTOMETRIC_TAG, PLANAR_TAG, SAMPLE_FORMAT_TAG = 258, 262, 284, 339  # TIFF
WHITE_IS_ZERO, UNSIGNED, SEPARATE_PLANES = 0, 1, 2
UPRIGHT = {  # EXIF orientation to what undoes it; those from FIRST_QUARTER_TURN on swap width and height
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FIRST_QUARTER_TURN = 5
DRAFT_PIXELS = 1 << 25  # a JPEG larger than this (33 megapixels) is decoded at 1/2, 1/4 or 1/8 where that is enough
BLOCK_ROWS = 64
EXPECTED = "a picture"


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture: a plane "RGB" or "L" of bytes, or one or three planes "F" with values from 0 to 255.

    `width` and `height` are those of the file after its orientation is applied; the planes may be smaller by a whole
    factor where a huge JPEG was decoded at reduced size.
    """

    planes: tuple[Image.Image, ...]
    width: int
    height: int
    metadata: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_image(
        image: Image.Image, source: str = "", background: tuple[int, int, int] = (255, 255, 255)
    ) -> "Picture":
        """A picture that Pillow holds; its EXIF orientation is applied, alpha is composited on `background`.

        Raises:
            InputError: it cannot be decoded, is empty, or holds values that are not finite.
        """
        picture = _settle(image, {"source": source}, background)
        return replace(picture, planes=tuple(plane.copy() for plane in picture.planes))

    @staticmethod
    def from_array(
        values: "NDArray[Any] | Tensor", source: str = "", background: tuple[int, int, int] = (255, 255, 255)
    ) -> "Picture":
        """A picture from HxW or HxWxC (arrays), or HxW or CxHxW (tensors); C is 1, 3, or 4 with alpha (uint8 only).

        uint8 is 0 to 255, uint16 0 to 65535, floating point 0 to 1 or, where it leaves that, its own range.

        Raises:
            InputError: another shape or type, no pixels, or values that are not finite.
        """
        array = as_array(values)
        if isinstance(values, Tensor) and array.ndim == 3:
            array = array.transpose(1, 2, 0)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        is_rgba = array.ndim == 3 and array.shape[2] == 4 and array.dtype == np.uint8
        if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3) or is_rgba) or 0 in array.shape:
            raise InputError(
                f"a picture must be HxW or HxWx3 (or uint8 HxWx4; tensors CxHxW), got {array.dtype} of shape {array.shape}"
            )
        metadata = {"source": source, "mode": f"{array.dtype} array"}
        height, width = array.shape[:2]
        if array.dtype == np.uint8:
            image = Image.fromarray(np.ascontiguousarray(array))
            return _settle(image, metadata, background)
        scaled, scaling = _to_byte_range(array, source or "the array")
        channels = [scaled] if scaled.ndim == 2 else [scaled[:, :, c] for c in range(3)]
        planes = tuple(Image.fromarray(np.ascontiguousarray(channel)) for channel in channels)
        return Picture(planes, width, height, {**metadata, "value_scaling": scaling})


def open_picture(
    path: str | Path, *, max_pixels: int, draft_size: int, background: tuple[int, int, int] = (255, 255, 255)
) -> Picture:
    """Read the first frame of a file.

    Args:
        path: any format that Pillow reads, but EPS: it is a program, run by Ghostscript.
        max_pixels: larger pictures are refused by their header, before anything is decoded.
        draft_size: a JPEG of more than 33 megapixels may be decoded at reduced size, its short side at least this long.
        background: what shows through where the picture is transparent.

    Raises:
        InputError: the path cannot be read, is no picture, too large, damaged, or holds values that are not finite.
    """
    path = check_file(path)
    image = _open(path)
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise InputError(
                f"{path} is {width}x{height} ({width * height / 1e6:.0f} megapixels); at most {max_pixels / 1e6:.0f} "
                "are read: make it smaller, or raise ImageConfig(max_pixels=...)"
            )
        if width < 1 or height < 1:
            raise InputError(f"{path} has no pixels ({width}x{height})")
        return _settle(image, {"source": str(path), "draft_size": draft_size}, background)


def _open(path: Path) -> Image.Image:
    Image.init()
    if _is_heic(path):
        _learn_heic(path)
    try:
        with warnings.catch_warnings():  # `max_pixels` decides what is too large
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path, formats=[name for name in list(Image.OPEN) if name != "EPS"])
    except Image.DecompressionBombError as error:  # Pillow's own limit, for who raised max_pixels above it
        raise open_error(path, EXPECTED, f"too many pixels ({error})") from error
    except UnidentifiedImageError as error:
        raise open_error(
            path, EXPECTED, "no format that Pillow knows (is it cut short, or of another kind?)"
        ) from error
    except Exception as error:  # on damaged headers, Pillow's format plugins raise whatever their parsing trips over
        raise open_error(path, EXPECTED, error) from error


def _is_heic(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(64)
    brands = head[8 : int.from_bytes(head[:4], "big")]
    return head[4:8] == b"ftyp" and any(brand in brands for brand in (b"heic", b"heix", b"heim", b"heis"))


def _learn_heic(path: Path) -> None:
    """Pillow reads what phones of Apple take through a package of its own."""
    try:
        heif = import_module("pillow_heif")
    except ImportError as error:
        raise InputError(
            f"{path} is a HEIC picture: `pip install pillow-heif` makes them readable, or save it as JPEG"
        ) from error
    heif.register_heif_opener()


def _settle(image: Image.Image, metadata: dict[str, Any], background: tuple[int, int, int]) -> Picture:
    """Decode, turn upright, and bring to planes of 0 to 255."""
    width, height = image.size
    try:
        metadata |= _described(image)
        if image.format == "JPEG" and width * height > DRAFT_PIXELS and "draft_size" in metadata:
            image.draft(None, (metadata["draft_size"], metadata["draft_size"]))
            metadata["decoded_size"] = list(image.size)
        _check_planes(image, metadata["source"])
        image.load()
        orientation = _orientation(image, metadata)  # TIFF turned itself upright in load(), and now says 1
        planes = tuple(
            plane.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else plane
            for plane in _planes(image, metadata, background)
        )
    except InputError:
        raise
    except Exception as error:  # on damaged data, Pillow's decoders raise whatever they trip over
        raise open_error(metadata["source"] or "the picture", EXPECTED, error) from error
    metadata.pop("draft_size", None)
    if "decoded_size" not in metadata:
        width, height = planes[0].size
    elif orientation >= FIRST_QUARTER_TURN:
        width, height = height, width
    return Picture(planes, width, height, metadata)


def _check_planes(image: Image.Image, source: str) -> None:
    """Refuse what Pillow reads wrongly: uncompressed planes of 16 bits, of which it takes every byte for a pixel."""
    tags = getattr(image, "tag_v2", {})
    codecs = {str(tile[0]) for tile in getattr(image, "tile", [])}
    if tags.get(PLANAR_TAG) == SEPARATE_PLANES and max(tags.get(BITS_TAG, (1,))) > 8 and codecs == {"raw"}:
        raise InputError(
            f"{source or 'the picture'} holds {max(tags[BITS_TAG])}-bit colours in separate planes, which Pillow misreads; "
            "save it with interleaved colours, or as PNG"
        )


def _orientation(image: Image.Image, metadata: dict[str, Any]) -> int:
    try:
        orientation = int(image.getexif().get(ORIENTATION_TAG, 1))
    except (SyntaxError, ValueError, TypeError, struct.error) as error:  # the pixels are sound all the same
        metadata["exif"] = f"damaged, orientation not known ({one_line(error)})"
        return 1
    if orientation in UPRIGHT:
        metadata["exif_orientation"] = orientation
    return orientation


def _planes(image: Image.Image, metadata: dict[str, Any], background: tuple[int, int, int]) -> tuple[Image.Image, ...]:
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bit in a wider type
            values = values.astype(np.uint16)
        if image.format == "TIFF":
            values = _as_tiff_means(values, getattr(image, "tag_v2", {}))
        scaled, metadata["value_scaling"] = _to_byte_range(values, metadata["source"] or "the picture")
        return (Image.fromarray(scaled),)
    if image.has_transparency_data:
        metadata["alpha"] = f"composited on RGB {list(background)}"
        straight = image.convert("LA") if image.mode == "La" else image
        rgba = straight if straight.mode == "RGBA" else straight.convert("RGBA")
        flat = Image.new("RGB", image.size, background)
        flat.paste(rgba, mask=rgba)
        return (flat,)
    if image.mode in ("1", "L"):
        return (image.convert("L"),)
    if image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return (_present(ImageCms.applyTransform(image, to_rgb)),)
    return (image if image.mode == "RGB" else image.convert("RGB"),)


def _as_tiff_means(values: NDArray[Any], tags: Mapping[int, Any]) -> NDArray[Any]:
    """Undo what Pillow overlooks in grey TIFFs: 32 bits without a sign, 12 bits in 16, 16 bits where 0 is white."""
    if values.dtype == np.int32 and tags.get(SAMPLE_FORMAT_TAG, (UNSIGNED,)) == (UNSIGNED,):
        return values.view(np.uint32)
    if values.dtype.kind == "u" and tags.get(BITS_TAG) == (12,):
        values = values << 4 | values >> 8  # 4095 becomes 65535
    if values.dtype.kind == "u" and tags.get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO:
        values = ~values
    return values


def _present(image: Image.Image | None) -> Image.Image:
    assert image is not None  # it is None only when a transform works in place
    return image


def _to_byte_range(values: NDArray[Any], source: str) -> tuple[NDArray[np.float32], str]:
    """Values as float32 from 0 to 255, and how they were scaled."""
    if values.dtype == np.bool_:
        return _scaled(values, 0, 255), "255 * value"
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return _scaled(values, 0, 1 / 257), "value / 257 (16 bit)"
    if values.dtype.kind not in "iuf":
        raise InputError(f"{source} must hold integers or real numbers, got {values.dtype}")
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise InputError(f"{source} holds values that are not finite (NaN or infinite); replace them first")
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return _scaled(values, 0, 255), "255 * value"
    scale = 255 / (high - low) if high > low else 0.0
    return _scaled(values, low, scale), f"stretched from its own range [{low:g}, {high:g}] to [0, 255]"


def _scaled(values: NDArray[Any], low: float, scale: float) -> NDArray[np.float32]:
    """(values - low) * scale, in float64 block by block: a large picture is not held in float64 whole."""
    scaled = np.empty(values.shape, np.float32)
    for first in range(0, len(values), BLOCK_ROWS):
        block = slice(first, first + BLOCK_ROWS)
        scaled[block] = (values[block].astype(np.float64) - low) * scale
    return scaled


def _described(image: Image.Image) -> dict[str, Any]:
    """Facts about the file, for the metadata."""
    frames = int(getattr(image, "n_frames", 1))
    described: dict[str, Any] = {"format": image.format, "mode": image.mode}
    if frames > 1:
        described |= {
            "n_frames": frames,
            "frame": 0,
            "frame_note": f"the first of {frames} frames; the others are left out",
        }
    if image.info.get("icc_profile"):
        described["icc_profile"] = "present, not applied"
    if image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", [])):
        described["depth"] = "16 bit a channel, read as 8 bit"
    return described
