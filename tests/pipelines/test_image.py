"""Pictures of every format, mode and orientation become the map that the published evaluation makes."""

import io
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, features

from unipercept.errors import InputError
from unipercept.pipelines.image import ImageConfig, ImagePipeline
from unipercept.pipelines.picture import Picture

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def scene(width=97, height=61, seed=0):
    """HxWx3 bytes with no symmetry."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([40 + 2 * x, 200 - 2 * y, 90 + x - y], axis=-1) + rng.integers(-30, 30, (height, width, 3))
    return base.clip(0, 255).astype(np.uint8)


def shown(emap):
    """HxWx3 values from 0 to 255 that the map stands for."""
    return (emap.tensor[0].permute(1, 2, 0).numpy() * STD + MEAN) * 255


def embedded(path, **config):
    pipeline = ImagePipeline(ImageConfig(**config))
    return pipeline.embed(pipeline.read(path))


def one_line_error(call):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def cubic(t):
    """Keys' cubic with a = -1/2, Pillow's BICUBIC."""
    t = abs(t)
    if t < 1:
        return (1.5 * t - 2.5) * t * t + 1
    return ((-0.5 * t + 2.5) * t - 4) * t + 2 if t < 2 else 0.0


def resampling_matrix(n_in, n_out):
    """n_out x n_in: each output is a weighted mean around its centre, the kernel as wide as the reduction."""
    scale = n_in / n_out
    support = max(scale, 1.0)
    matrix = np.zeros((n_out, n_in))
    for o in range(n_out):
        centre = (o + 0.5) * scale
        for i in range(n_in):
            matrix[o, i] = cubic((i + 0.5 - centre) / support)
    return matrix / matrix.sum(axis=1, keepdims=True)


def reference(values, size):
    """The published evaluation transform in float64, from its description: HxWx3 of 0 to 255, not rounded."""
    height, width = values.shape[:2]
    if size >= 384:
        new_height = new_width = size
    else:
        side = int(size / 0.875)
        new_height = side if height <= width else int(side * height / width)
        new_width = side if width <= height else int(side * width / height)
    rows, columns = resampling_matrix(height, new_height), resampling_matrix(width, new_width)
    resized = np.einsum("oh,hwc,pw->opc", rows, values.astype(np.float64), columns, optimize=True)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return resized[top : top + size, left : left + size].clip(0, 255)


@pytest.mark.parametrize("size", [64, 224, 384, 400])
@pytest.mark.parametrize(("width", "height"), [(97, 61), (300, 411), (1, 1), (640, 480)])
def test_resize_and_crop_are_those_of_the_published_evaluation(tmp_path, size, width, height):
    values = scene(width, height)
    Image.fromarray(values).save(tmp_path / "a.png")
    emap = embedded(tmp_path / "a.png", size=size)
    assert emap.tensor.shape == (1, 3, size, size)
    # Pillow rounds to bytes after each of its two passes; between them the cubic's undershoot is clipped
    difference = np.abs(shown(emap) - reference(values, size))
    assert difference.mean() < 0.6
    assert np.quantile(difference, 0.99) < 3


def test_floating_point_is_resampled_without_rounding(tmp_path):
    values = np.random.default_rng(0).uniform(0.3, 0.7, (61, 97)).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    expected = reference(np.repeat(values[:, :, None] * 255, 3, axis=2), 64)
    assert np.abs(shown(embedded(tmp_path / "a.tiff", size=64)) - expected).max() < 1e-3


def test_the_constants_are_imagenets_and_in_the_metadata():
    emap = ImagePipeline().embed(Picture.from_array(np.full((50, 50, 3), 255, np.uint8)))
    assert emap.metadata["mean"] == [0.485, 0.456, 0.406]
    assert emap.metadata["std"] == [0.229, 0.224, 0.225]
    assert torch.allclose(emap.tensor[0, :, 0, 0], torch.tensor((1 - MEAN) / STD).float())
    assert np.array(emap.to_image()).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "a.webp"])
def test_every_exif_orientation_gives_the_upright_map(tmp_path, orientation, name):
    if name == "a.webp" and not features.check("webp"):
        pytest.skip("Pillow without WebP")
    upright = Image.fromarray(scene())
    T = Image.Transpose
    # how a camera held otherwise stores the upright scene
    stored_by = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}  # fmt: skip
    stored = upright.transpose(stored_by[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / name, exif=exif, **({"lossless": True} if name == "a.webp" else {"quality": 100}))
    emap = embedded(tmp_path / name, size=56)
    expected = ImagePipeline(ImageConfig(size=56)).embed(Picture.from_array(scene()))
    assert (emap.metadata["width"], emap.metadata["height"]) == (97, 61)
    assert np.abs(shown(emap) - shown(expected)).mean() < (12 if name == "a.jpg" else 1e-4)  # JPEG halves the chroma
    assert emap.coords["x"].equals(expected.coords["x"])


def modes():
    rgb = Image.fromarray(scene())
    alpha = Image.fromarray(scene(seed=1)[:, :, 0])
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    grey_alpha = rgb.convert("L")
    grey_alpha.putalpha(alpha)
    palette = rgb.quantize(16)
    transparent_palette = palette.copy()
    transparent_palette.info["transparency"] = 3
    return {
        "1": (rgb.convert("1"), "png"), "L": (rgb.convert("L"), "png"), "LA": (grey_alpha, "png"), "P": (palette, "gif"),
        "P+": (transparent_palette, "png"), "RGB": (rgb, "bmp"), "RGBA": (rgba, "png"), "CMYK": (rgb.convert("CMYK"), "tiff"),
        "ppm": (rgb, "ppm"), "tga": (rgb, "tga"),
        "webp": (rgba, "webp"), "tga+": (rgba, "tga"), "ico": (rgba.resize((48, 48)), "ico"), "jp2": (rgb, "jp2"), "qoi": (rgb, "qoi"),
        "pcx": (rgb, "pcx"), "sgi": (rgb, "sgi"), "dds": (rgb, "dds"), "icns": (rgba.resize((64, 64)), "icns"), "avif": (rgb, "avif"),
    }  # fmt: skip


@pytest.mark.parametrize("mode", list(modes()))
def test_every_mode_and_format_is_what_pillow_shows_on_white(tmp_path, mode):
    image, suffix = modes()[mode]
    path = tmp_path / f"a.{suffix}"
    try:
        image.save(path, **({"lossless": True} if suffix == "webp" else {}))
    except (KeyError, OSError, ValueError) as error:
        pytest.skip(f"this Pillow cannot write {suffix}: {error}")
    with Image.open(path) as opened:
        rgba = np.asarray(opened.convert("RGBA")).astype(np.float64)
    alpha = rgba[:, :, 3:] / 255
    on_white = (rgba[:, :, :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    emap = embedded(path, size=40)
    expected = ImagePipeline(ImageConfig(size=40)).embed(Picture.from_array(on_white))
    assert np.abs(shown(emap) - shown(expected)).max() < 2.01  # compositing rounds, then each pass does
    assert ("alpha" in emap.metadata) == bool((alpha < 1).any() or image.mode in ("RGBA", "LA"))


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBX", "La", "RGBa", "PA", "I;16B"])
def test_modes_that_few_files_have_are_read_from_memory(mode):
    rgba = modes()["RGBA"][0]
    pipeline = ImagePipeline(ImageConfig(size=40))
    if mode == "I;16B":
        values = (np.arange(64 * 64).reshape(64, 64) * 16).astype(">u2")
        found = pipeline.embed(Picture.from_image(Image.frombytes("I;16B", (64, 64), values.tobytes())))
        assert torch.equal(found.tensor, pipeline.embed(Picture.from_array(values.astype(np.uint16))).tensor)
        return
    if mode == "La":
        image, expected = rgba.convert("LA").convert("La"), rgba.convert("LA")
    elif mode == "PA":
        image = expected = rgba.convert("PA")
    else:
        expected = rgba if mode == "RGBa" else rgba.convert("RGB")
        image = expected.convert(mode)
    expected = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), expected.convert("RGBA")).convert("RGB")
    difference = shown(pipeline.embed(Picture.from_image(image))) - shown(pipeline.embed(Picture.from_image(expected)))
    assert np.abs(difference).mean() < 2


def test_lab_is_converted_and_not_taken_for_rgb(tmp_path):
    path = tmp_path / "a.tiff"
    Image.merge("LAB", [Image.new("L", (9, 9), v) for v in (128, 128, 128)]).save(path)
    values = shown(embedded(path, size=8))
    assert np.abs(values - 119).max() < 3  # L* = 50 without colour is mid grey, 119 in sRGB


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(ramp).save(tmp_path / name)
        emap = embedded(tmp_path / name, size=56)
        assert np.abs(shown(emap) - reference(np.repeat(ramp[:, :, None] / 257, 3, axis=2), 56)).max() < 1e-2
        assert "16 bit" in emap.metadata["value_scaling"]
    in_memory = ImagePipeline(ImageConfig(size=56)).embed(Picture.from_array(ramp))
    assert torch.allclose(in_memory.tensor, emap.tensor, atol=1e-6)


def grey_tiff(data, bits, photometric, height=64, width=64):
    """A little-endian TIFF of one uncompressed strip of unsigned grey."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def planar_tiff(colours, bits):
    """A little-endian TIFF of three uncompressed planes; `colours` is 3xHxW."""
    height, width = colours.shape[1:]
    data, size = colours.astype(f"<u{bits // 8}").tobytes(), height * width * bits // 8
    extra = struct.pack("<3I3I3I", bits, bits, bits, *(8 + size * i for i in range(3)), size, size, size)
    at = 8 + len(data)
    tags = {256: width, 257: height, 258: at, 259: 1, 262: 2, 273: at + 12, 277: 3, 278: height, 279: at + 24, 284: 2}
    entries = b"".join(struct.pack("<HHII", t, 4, 3 if v >= at else 1, v) for t, v in tags.items())
    return b"II*\0" + struct.pack("<I", at + 36) + data + extra + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_sixteen_bit_planes_that_pillow_misreads_are_refused(tmp_path):
    colours = scene().transpose(2, 0, 1)
    (tmp_path / "8.tiff").write_bytes(planar_tiff(colours, 8))
    expected = ImagePipeline(ImageConfig(size=56)).embed(Picture.from_array(scene()))
    assert torch.equal(embedded(tmp_path / "8.tiff", size=56).tensor, expected.tensor)
    (tmp_path / "16.tiff").write_bytes(planar_tiff(colours.astype(np.uint16) * 257, 16))
    assert "16-bit colours in separate planes" in one_line_error(lambda: embedded(tmp_path / "16.tiff"))


def packed_12_bits(values):
    first, second = values.reshape(-1, 2).T.astype(np.uint32)
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()


@pytest.mark.parametrize("kind", ["32 bits", "12 bits", "white is zero"])
def test_grey_tiff_that_pillow_misreads_is_the_same_picture_as_its_sixteen_bits(tmp_path, kind):
    twelve = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    ramp = (twelve << 4 | twelve >> 8).astype("<u2")  # 0 to 65535
    made = {
        "32 bits": (ramp.astype("<u4") * 65537, 32, 1),  # the upper half would be negative with a sign
        "12 bits": (packed_12_bits(twelve), 12, 1),  # read as 16 bits: nearly black
        "white is zero": (~ramp, 16, 0),  # read as black is zero: the negative
    }[kind]
    data, bits, photometric = made
    (tmp_path / "a.tiff").write_bytes(grey_tiff(bytes(data), bits, photometric))
    expected = ImagePipeline(ImageConfig(size=56)).embed(Picture.from_array(ramp.astype(np.uint16)))
    assert torch.allclose(embedded(tmp_path / "a.tiff", size=56).tensor, expected.tensor, atol=1e-4)


def test_sixteen_bit_colour_says_that_it_was_read_as_eight(tmp_path):
    rows = b"".join(b"\0" + struct.pack(">12H", *([60_000, 30_000, 0] * 4)) for _ in range(4))
    (tmp_path / "a.png").write_bytes(png(4, 4, rows, depth=16))
    emap = embedded(tmp_path / "a.png", size=8)
    assert "16 bit" in emap.metadata["depth"]
    assert np.abs(shown(emap) - [60_000 / 257, 30_000 / 257, 0]).max() < 1


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_without_a_scale_are_stretched_by_their_range_and_it_is_said(tmp_path, dtype):
    values = np.linspace(-500, 1500, 64 * 64).reshape(64, 64).astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    emap = embedded(tmp_path / "a.tiff", size=56)
    expected = reference(np.repeat(((values + 500.0) / 2000 * 255)[:, :, None], 3, axis=2), 56)
    assert np.abs(shown(emap) - expected).max() < 1e-2
    assert "[-500, 1500]" in emap.metadata["value_scaling"]


def test_a_constant_float_picture_is_black_and_nan_is_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 7.0, np.float32)).save(tmp_path / "flat.tiff")
    assert np.abs(shown(embedded(tmp_path / "flat.tiff"))).max() < 1e-4
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    assert "not finite" in one_line_error(lambda: embedded(tmp_path / "nan.tiff"))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame_is_read_and_it_is_said(tmp_path, suffix):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    emap = embedded(tmp_path / f"a.{suffix}", size=16)
    assert np.abs(shown(emap) - [255, 0, 0]).max() < 3
    assert (emap.metadata["n_frames"], emap.metadata["frame"]) == (3, 0)


@pytest.mark.parametrize("size", [56, 384])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (300, 700), (2000, 100)])
def test_axes_say_where_a_cell_lies_on_the_original(size, width, height):
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    for values, name in ((x / width, "x"), (y / height, "y")):
        emap = ImagePipeline(ImageConfig(size=size)).embed(Picture.from_array(values))
        found = shown(emap)[:, :, 0] / 255 * (width if name == "x" else height)
        expected = emap.coords[name].values.numpy()
        inner = slice(4, -4)  # at the border of the picture the kernel has one side only
        along = found.mean(axis=0) if name == "x" else found.mean(axis=1)
        assert np.abs(along - expected)[inner].max() < 0.02 * max(width, height) / size


def png(width, height, rows, depth=8):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_huge_header_is_refused_before_anything_is_decoded(tmp_path):
    path = tmp_path / "huge.png"
    path.write_bytes(png(50_000, 50_000, b"\0" * 100))
    assert "huge.png" in one_line_error(lambda: ImagePipeline().read(path))
    path.write_bytes(png(3_000, 2_000, b"\0" * 100))
    message = one_line_error(lambda: ImagePipeline(ImageConfig(max_pixels=5_000_000)).read(path))
    assert "3000x2000" in message
    assert "max_pixels" in message


@pytest.mark.parametrize(("width", "height"), [(1, 50_000), (50_000, 1), (20_000, 30)])
def test_a_ribbon_is_not_blown_up_before_its_crop(width, height):
    values = np.broadcast_to(np.uint8(90), (height, width, 3))
    assert np.abs(shown(ImagePipeline().embed(Picture.from_array(values))) - 90).max() < 1


def test_the_ribbon_path_is_the_ordinary_one():
    values = scene(160, 20)  # 8:1 exactly: resized whole; a column more: only what the crop shows
    wider = np.concatenate([values, values[:, -1:]], axis=1)
    assert (
        np.abs(
            shown(ImagePipeline(ImageConfig(size=56)).embed(Picture.from_array(wider))) - reference(wider, 56)
        ).mean()
        < 1
    )


def test_a_huge_jpeg_is_decoded_at_reduced_size_and_lands_where_it_should(tmp_path):
    small = Image.fromarray(scene(600, 450)).resize((7200, 5400))
    exif = Image.Exif()
    exif[0x0112] = 6
    small.save(tmp_path / "a.jpg", exif=exif)
    emap = embedded(tmp_path / "a.jpg")
    assert emap.metadata["decoded_size"] == [1800, 1350]
    assert (emap.metadata["width"], emap.metadata["height"]) == (5400, 7200)
    full = ImagePipeline().embed(Picture.from_image(small.transpose(Image.Transpose.ROTATE_270)))
    assert emap.coords["x"].equals(full.coords["x"])
    assert np.abs(shown(emap) - shown(full)).mean() < 2


def test_arrays_tensors_and_pillow_images_are_the_same_picture():
    values = scene()
    pipeline = ImagePipeline()
    expected = pipeline.embed(Picture.from_array(values)).tensor
    assert torch.equal(pipeline.embed(Picture.from_array(torch.from_numpy(values).permute(2, 0, 1))).tensor, expected)
    assert torch.equal(pipeline.embed(Picture.from_image(Image.fromarray(values))).tensor, expected)
    floats = pipeline.embed(Picture.from_array(values.astype(np.float32) / 255)).tensor
    assert (floats - expected).abs().mean() < 0.02  # bytes are rounded after each pass
    halves = (torch.from_numpy(values).permute(2, 0, 1) / 255).bfloat16()
    assert (pipeline.embed(Picture.from_array(halves)).tensor - expected).abs().mean() < 0.02


@pytest.mark.parametrize(
    "values",
    [np.zeros((2, 2, 2), np.uint8), np.zeros(3), np.zeros((0, 4)), np.zeros((4, 4), complex), np.zeros((4, 4, 4)), np.full((4, 4), "a")],
)  # fmt: skip
def test_arrays_that_are_no_picture_are_refused(values):
    one_line_error(lambda: Picture.from_array(values))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp"])
def test_a_truncated_file_is_refused_in_one_line(tmp_path, suffix):
    buffer = io.BytesIO()
    Image.fromarray(scene(300, 200)).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    assert "cut." in one_line_error(lambda: embedded(path))


def test_a_heic_picture_says_what_reads_it_and_is_read_once_that_is_there(tmp_path, monkeypatch):
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match="pip install pillow-heif"):
        ImagePipeline().read(path)
    asked = []
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=lambda: asked.append(True)))
    with pytest.raises(InputError, match="no format that Pillow knows"):
        ImagePipeline().read(path)
    assert asked == [True]


def test_a_foreign_path_is_refused_in_one_line(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    for name in ("text.png", "empty.png", "none.png", "a.eps", "."):
        one_line_error(lambda name=name: ImagePipeline().read(tmp_path / name))


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_never_give_anything_but_a_map_or_one_line(tmp_path, seed):
    rng = np.random.default_rng(seed)
    suffix = ("png", "jpg", "gif", "webp", "tiff")[seed % 5]
    buffer = io.BytesIO()
    Image.fromarray(scene()).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
    data = bytearray(buffer.getvalue())
    for position in rng.integers(8, 120 if seed % 2 else len(data), 4):
        data[position] = rng.integers(256)
    (tmp_path / f"a.{suffix}").write_bytes(data)
    try:
        emap = embedded(tmp_path / f"a.{suffix}", max_pixels=4_000_000)
    except InputError as error:
        message = str(error)
    else:
        message = ""
        assert torch.isfinite(emap.tensor).all()
    assert "\n" not in message


def test_damaged_exif_does_not_hide_a_sound_picture(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.jpg", exif=b"Exif\0\0not a TIFF header")
    assert torch.isfinite(embedded(tmp_path / "a.jpg").tensor).all()


def test_threads_read_and_embed_alike(tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(16)]
    for i, path in enumerate(paths):
        Image.fromarray(scene(320, 240, seed=i)).save(path)
    pipeline = ImagePipeline()
    alone = [pipeline.embed(pipeline.read(path)) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda path: pipeline.embed(pipeline.read(path)), paths))
    assert all(a.equals(b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("settings", [{"size": 0}, {"crop_ratio": 0.0}, {"std": (1.0, 0.0, 1.0)}, {"mean": (0.0,)}])
def test_impossible_settings_are_refused(settings):
    one_line_error(lambda: ImageConfig(**settings))


def test_a_picture_that_is_read_gets_no_warning_of_its_size(tmp_path, recwarn):
    """Pillow warns above 89 megapixels, which cameras of phones reach; `max_pixels` is what refuses."""
    Image.new("L", (9_500, 9_500)).save(tmp_path / "large.png")
    assert ImagePipeline().read(tmp_path / "large.png") is not None
    assert not [warning for warning in recwarn if "Bomb" in warning.category.__name__]
