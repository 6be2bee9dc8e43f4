"""EmbeddingMap: what is refused, and that every round trip is exact."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
        ({"metadata": {"when": object()}}, "JSON values"),
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
    for i, emap in enumerate(maps):
        assert torch.equal(joined.select(i).tensor, emap.tensor)
        assert joined.select(i).real_share().item() == pytest.approx(emap.real_share().item())


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


def test_the_real_share_counts_cells():
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[0, 0], mask[1] = True, True
    assert EmbeddingMap(torch.zeros(2, 1, 3, 4), "audio", mask=mask).real_share().tolist() == [pytest.approx(1 / 3), 1]


def test_to_changes_type_and_keeps_the_axes():
    emap = make_map().to("cpu", torch.float64)
    assert emap.tensor.dtype == torch.float64
    assert emap.coords["time"].values.dtype == torch.int64


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 40])
def test_to_image_shows_every_pixel_of_up_to_sixteen_channels(channels):
    image = EmbeddingMap(torch.randn(1, channels, 6, 7), "weather").to_image()
    tiles = 1 if channels == 3 else min(channels, 16)
    assert image.mode == "RGB"
    assert image.width % 7 == 0
    assert image.height % 6 == 0
    assert (image.width // 7) * (image.height // 6) >= tiles


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


def test_constant_and_unknown_values_still_give_an_image():
    for tensor in (torch.zeros(1, 1, 3, 3), torch.full((1, 3, 3, 3), float("nan"))):
        assert EmbeddingMap(tensor, "image").to_image().size == (3, 3)


def test_html_card_escapes_what_came_from_a_file():
    html = EmbeddingMap(
        torch.zeros(1, 1, 2, 2), "image", metadata={"source": "<script>alert(1)</script>"}
    )._repr_html_()
    assert "<script>" not in html
    assert "data:image/png;base64," in html


@pytest.mark.parametrize("modality", MODALITIES)
def test_header_is_plain_text(modality):
    header = EmbeddingMap(torch.zeros(1, 1, 2, 2), modality)._header()
    assert all(isinstance(value, str) for value in header.values())
    assert json.loads(header["metadata"]) == {}
