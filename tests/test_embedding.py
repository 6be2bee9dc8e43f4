"""EmbeddingMap: what is refused, and that every round trip is exact."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from unipercept import Axis, EmbeddingMap
from unipercept.embedding import MODALITIES
from unipercept.errors import InputError

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
UNITS = ["Hz", "s", "h", "hours", "days", "hours since 2000-01-01", "degrees_north", "1"]


def make_map(dtype=torch.float32, unit="s", batch=2, mask=True, seed=0) -> EmbeddingMap:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(batch, 3, 4, 5, generator=generator, dtype=torch.float64).to(dtype)
    coords = {
        "frequency": Axis("H", torch.rand(4, generator=generator, dtype=torch.float64), "Hz"),
        "time": Axis("W", torch.arange(5), unit),
        "period": Axis("W", torch.rand(5, generator=generator), "1"),
    }
    real = torch.rand(batch, 4, 5, generator=generator) > 0.5 if mask else None
    return EmbeddingMap(tensor, "audio", coords, real, {"rate": 16000, "pair": (1, 2.5), "none": None, "name": "käse"})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [True, False])
def test_safetensors_round_trip_is_exact(tmp_path, dtype, mask):
    emap = make_map(dtype, mask=mask)
    emap.save(tmp_path / "map.safetensors")
    assert EmbeddingMap.load(tmp_path / "map.safetensors").equals(emap)
    assert [p.name for p in tmp_path.iterdir()] == ["map.safetensors"]  # no temporary file is left


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_xarray_round_trip_is_exact(dtype, unit):
    emap = make_map(dtype, unit)
    assert EmbeddingMap.from_xarray(emap.to_xarray()).equals(emap)


@pytest.mark.parametrize("unit", UNITS)
def test_netcdf_round_trip_is_exact(tmp_path, unit):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("netCDF4")
    emap = make_map(unit=unit)
    emap.to_xarray().to_netcdf(tmp_path / "map.nc")
    with xarray.open_dataarray(tmp_path / "map.nc") as array:
        assert EmbeddingMap.from_xarray(array).equals(emap)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_round_trip_is_exact(tmp_path, dtype, zarr_format):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    emap = make_map(dtype, "days")
    emap.to_xarray().to_zarr(tmp_path / "map.zarr", zarr_format=zarr_format, consolidated=False)
    with xarray.open_zarr(tmp_path / "map.zarr", consolidated=False) as dataset:
        assert EmbeddingMap.from_xarray(dataset["embedding_map"]).equals(emap)


def test_a_transposed_dataarray_is_the_same_map():
    emap = EmbeddingMap(
        torch.arange(8.0).reshape(2, 1, 2, 2),
        "audio",
        {"frequency": Axis("H", torch.arange(2.0), "Hz"), "time": Axis("W", torch.arange(2.0), "s")},
        torch.tensor([[[True, False], [True, True]], [[False, False], [True, False]]]),
    )
    for dims in (("time", "frequency", "channel", "batch"), ("channel", "batch", "frequency", "time")):
        assert EmbeddingMap.from_xarray(emap.to_xarray().transpose(*dims)).equals(emap), dims


def test_a_dataarray_without_what_the_map_needs_is_refused():
    array = make_map().to_xarray()
    for changed, message in (
        (array.assign_attrs(dict.fromkeys(array.attrs)), "attributes are missing"),
        (array.assign_attrs(coords="not json"), "damaged"),
        (array.rename(time="t"), "lost its coordinates"),
        (array.isel(batch=0), "must have the dimensions batch, channel, frequency, time"),
    ):
        with pytest.raises(InputError, match=message):
            EmbeddingMap.from_xarray(changed)


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=6, max_size=6))
def test_any_float_survives_a_round_trip(tmp_path_factory, values):
    emap = EmbeddingMap(torch.tensor(values).reshape(1, 1, 2, 3), "image", metadata={"values": values})
    path = tmp_path_factory.mktemp("maps") / "map.safetensors"
    emap.save(path)
    assert EmbeddingMap.load(path).equals(emap)
    assert EmbeddingMap.from_xarray(emap.to_xarray()).equals(emap)


def test_xarray_dimensions_carry_the_names_and_units_of_the_axes():
    array = make_map(unit="s").to_xarray()
    assert array.dims == ("batch", "channel", "frequency", "time")
    assert array.coords["frequency"].attrs["units"] == "Hz"
    assert array.coords["period"].dims == ("time",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensor": torch.zeros(3, 4, 5)}, "needs a batch dimension"),
        ({"tensor": torch.zeros(1, 3, 4, 5, dtype=torch.int64)}, "floating point"),
        ({"tensor": torch.zeros(0, 3, 4, 5)}, "must not be empty"),
        ({"tensor": np.zeros((1, 3, 4, 5))}, "BxCxHxW"),
        ({"modality": "smell"}, "modality must be one of"),
        ({"coords": {"time": Axis("W", torch.zeros(4), "s")}}, "needs 5 values, got 4"),
        ({"coords": {"mask": Axis("W", torch.zeros(5), "s")}}, "needs a name"),
        ({"coords": {"time": torch.zeros(5)}}, "must be an Axis"),
        ({"mask": torch.ones(1, 4, 5)}, "mask must be bool"),
        ({"mask": torch.ones(1, 5, 4, dtype=torch.bool)}, "mask must be bool 1x4x5"),
        ({"coords": {"two words": Axis("W", torch.zeros(5), "s")}}, "needs a name"),
        ({"metadata": {"when": object()}}, "JSON values"),
        ({"metadata": [1, 2]}, "must be a mapping"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    parts = {"tensor": torch.zeros(1, 3, 4, 5), "modality": "image"} | change
    with pytest.raises(InputError, match=message) as caught:
        EmbeddingMap(**parts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("X", torch.zeros(3), "s"), "lies along"),
        (("H", torch.zeros(3, 1), "s"), "1-D tensor"),
        (("H", torch.zeros(3, dtype=torch.complex64), "s"), "real numbers"),
        (("H", torch.zeros(3), ""), "needs a unit"),
    ],
)
def test_an_axis_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Axis(*arguments)


def test_load_refuses_what_is_not_a_map(tmp_path):
    path = tmp_path / "map.safetensors"
    path.write_text("not a map")
    with pytest.raises(InputError, match="cannot read"):
        EmbeddingMap.load(path)
    save_file({"tensor": torch.zeros(1, 1, 2, 2)}, path)
    with pytest.raises(InputError, match="must be an EmbeddingMap of version 1"):
        EmbeddingMap.load(path)
    with pytest.raises(InputError, match="cannot read"):
        EmbeddingMap.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modality", "smell"),
        ("dtype", "float64"),
        ("coords", "{}"),
        ("coords", '{"time": {"dim": "W", "unit": "s"}, "lost": {"dim": "H", "unit": "s"}}'),
        ("coords", "not json"),
        ("version", "99"),
        ("format", "another"),
    ],
)
def test_load_refuses_a_header_that_does_not_match(tmp_path, key, value):
    emap = EmbeddingMap(torch.zeros(1, 1, 2, 3), "audio", {"time": Axis("W", torch.arange(3.0), "s")})
    header = emap._header() | {key: value}
    save_file(
        {"tensor": emap.tensor, "coords.time": emap.coords["time"].values}, tmp_path / "m.safetensors", metadata=header
    )
    with pytest.raises(InputError):
        EmbeddingMap.load(tmp_path / "m.safetensors")


def test_concat_then_select_gives_back_each_map():
    maps = [make_map(batch=1, seed=s, mask=s != 1) for s in range(3)]
    maps = [EmbeddingMap(m.tensor, m.modality, maps[0].coords, m.mask, {"seed": s}) for s, m in enumerate(maps)]
    joined = EmbeddingMap.concat(maps)
    assert len(joined) == 3
    assert [item["seed"] for item in joined.metadata["items"]] == [0, 1, 2]
    assert joined.mask[1].all()  # the map without a mask is real throughout
    for i, emap in enumerate(maps):
        assert torch.equal(joined.select(i).tensor, emap.tensor)
        assert joined.select(i).real_share().item() == pytest.approx(emap.real_share().item())
        assert joined.select(i).metadata == emap.metadata


def test_a_joined_picture_looks_as_it_did_alone():
    pictures = [
        EmbeddingMap(torch.randn(1, 3, 4, 4), "image", metadata={"source": s, "mean": [m] * 3, "std": [0.2] * 3})
        for s, m in (("a", 0.4), ("b", 0.6))
    ]
    joined = EmbeddingMap.concat(pictures)
    for i, picture in enumerate(pictures):
        assert joined.to_image(i).tobytes() == joined.select(i).to_image().tobytes() == picture.to_image().tobytes()


def test_concat_refuses_maps_on_other_axes():
    first = make_map()
    moved = EmbeddingMap(
        first.tensor, "audio", first.coords | {"time": Axis("W", torch.arange(5) + 1, "s")}, first.mask
    )
    with pytest.raises(InputError, match="'time' differs"):
        EmbeddingMap.concat([first, moved])
    with pytest.raises(InputError, match="one CxHxW"):
        EmbeddingMap.concat([first, EmbeddingMap(first.tensor[:, :1], "audio", first.coords)])
    with pytest.raises(InputError, match="at least one"):
        EmbeddingMap.concat([])


def test_maps_that_differ_in_one_part_are_not_equal():
    emap = make_map()
    assert emap.equals(make_map())
    other = emap.mask.clone()
    other[0, 0, 0] = ~other[0, 0, 0]
    for changed in ({"tensor": emap.tensor + 1}, {"mask": other}, {"mask": None}, {"metadata": {"seed": 5}}):
        assert not emap.equals(replace(emap, **changed)), changed


@pytest.mark.parametrize(("a", "b"), [(float("inf"), torch.finfo(torch.float32).max), (float("nan"), 0.0)])
def test_infinity_and_nan_equal_only_themselves(a, b):
    one, other = (EmbeddingMap(torch.full((1, 1, 1, 1), value), "image") for value in (a, b))
    assert one.equals(one.to(dtype=torch.float32))
    assert not one.equals(other)


def test_the_real_share_counts_cells():
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[0, 0], mask[1] = True, True
    assert EmbeddingMap(torch.zeros(2, 1, 3, 4), "audio", mask=mask).real_share().tolist() == [pytest.approx(1 / 3), 1]


def test_to_changes_type_and_device_and_keeps_the_axes_and_the_mask():
    emap = make_map().to("cpu", torch.float64)
    assert emap.tensor.dtype == torch.float64
    assert emap.coords["time"].values.dtype == torch.int64
    assert torch.equal(emap.mask, make_map().mask)
    moved = emap.to("meta")
    assert moved.tensor.device.type == moved.mask.device.type == "meta"


def test_concat_keeps_the_metadata_that_all_maps_share():
    assert EmbeddingMap.concat([make_map(), make_map()]).metadata == make_map().metadata


@pytest.mark.parametrize(
    ("channels", "columns", "rows"), [(1, 1, 1), (2, 1, 2), (3, 1, 1), (5, 2, 3), (16, 4, 4), (40, 4, 4)]
)
def test_to_image_tiles_up_to_sixteen_channels_in_reading_order(channels, columns, rows):
    maps = torch.randn(1, channels, 6, 7)
    image = EmbeddingMap(maps, "weather").to_image()
    assert (image.mode, image.size) == ("RGB", (7 * columns, 6 * rows))
    if channels == 3:
        return
    for i in range(columns * rows):
        tile = np.asarray(image)[i // columns * 6 :, i % columns * 7 :][:6, :7]
        alone = EmbeddingMap(maps[:, i : i + 1], "weather").to_image() if i < channels else np.full((6, 7, 3), 255)
        assert np.array_equal(tile, alone), i


def test_to_image_shows_the_frames_of_a_video_in_colour():
    emap = EmbeddingMap(torch.rand(1, 6, 4, 8), "video", metadata={"mean": [0.0] * 3, "std": [1.0] * 3})
    shown = np.asarray(emap.to_image()) / 255  # two frames, one above the other: a square
    frames = emap.tensor[0].reshape(2, 3, 4, 8).permute(0, 2, 3, 1).reshape(8, 8, 3).numpy()
    assert np.abs(shown - frames).max() <= 0.5 / 255 + 1e-6
    assert EmbeddingMap(torch.rand(1, 4, 4, 8), "video").to_image().size == (8, 16)  # no colours: tiled one by one


@pytest.mark.parametrize(("low", "high"), [(0, 1), (270, 310), (-1e-3, 1e-3)])
def test_a_channel_goes_from_dark_to_bright(low, high):
    rising = torch.linspace(low, high, 200).reshape(1, 1, 1, 200)
    shown = np.asarray(EmbeddingMap(rising, "weather").to_image()).astype(int)[0]
    assert (np.diff(shown[::20] @ [299, 587, 114]) > 0).all()
    assert np.abs(shown[0] - [68, 1, 84]).max() <= 1  # the two ends of viridis
    assert np.abs(shown[-1] - [253, 231, 37]).max() <= 1


@pytest.mark.parametrize("index", [-1, 2])
def test_to_image_refuses_an_item_that_is_not_there(index):
    with pytest.raises(InputError, match="items 0 to 1"):
        EmbeddingMap(torch.zeros(2, 1, 3, 3), "image").to_image(index)


def test_to_image_undoes_a_known_normalisation():
    colours = torch.rand(3, 4, 4)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    tensor = ((colours - mean[:, None, None]) / std[:, None, None])[None]
    emap = EmbeddingMap(tensor, "image", metadata={"mean": mean.tolist(), "std": std.tolist()})
    shown = np.asarray(emap.to_image()) / 255
    assert np.abs(shown - colours.permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6


def test_to_image_is_grey_where_there_is_no_real_input():
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[0, :, 2:] = False
    image = np.asarray(EmbeddingMap(torch.randn(1, 1, 4, 4), "audio", mask=mask).to_image())
    assert (image[:, 2:] == 128).all()
    assert not (image[:, :2] == 128).all()


def test_one_odd_cell_does_not_darken_the_rest():
    tensor = torch.linspace(0, 1, 400).reshape(1, 1, 20, 20)
    usual = np.asarray(EmbeddingMap(tensor, "audio").to_image())[5:15]
    tensor[0, 0, 0, 0] = 1e6
    assert np.abs(np.asarray(EmbeddingMap(tensor, "audio").to_image())[5:15].astype(int) - usual).max() < 8


def test_a_single_cell_stands_out_of_a_constant_map():
    tensor = torch.zeros(1, 1, 20, 20)
    tensor[0, 0, 3, 4] = 5
    image = np.asarray(EmbeddingMap(tensor, "audio").to_image()).astype(int)
    assert np.abs(image[3, 4] - [253, 231, 37]).max() <= 1
    image[3, 4] = image[0, 0]
    assert np.abs(image - [68, 1, 84]).max() <= 1


def test_constant_and_unknown_values_still_give_an_image():
    for tensor in (torch.zeros(1, 1, 3, 3), torch.full((1, 3, 3, 3), float("nan"))):
        assert EmbeddingMap(tensor, "image").to_image().size == (3, 3)


def test_html_card_escapes_what_came_from_a_file():
    html = EmbeddingMap(
        torch.zeros(1, 1, 2, 2), "image", metadata={"source": "<script>alert(1)</script>"}
    )._repr_html_()
    assert "<script>" not in html
    picture = html.partition("data:image/png;base64,")[2].partition("'")[0]
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (2, 2)


def test_html_card_states_the_share_of_real_input():
    mask = torch.tensor([[[True, False], [False, False]]])
    assert "<td>25.0%</td>" in EmbeddingMap(torch.zeros(1, 1, 2, 2), "audio", mask=mask)._repr_html_()


@pytest.mark.parametrize("modality", MODALITIES)
def test_header_is_plain_text(modality):
    header = EmbeddingMap(torch.zeros(1, 1, 2, 2), modality)._header()
    assert all(isinstance(value, str) for value in header.values())
    assert json.loads(header["metadata"]) == {}
