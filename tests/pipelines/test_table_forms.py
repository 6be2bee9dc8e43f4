"""Tables of other libraries and programs: what names the rows is read from a file as from memory, cells that
are no numbers are named, cells that were merged count for the rows below.
"""

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest
import torch
import xarray as xr

from unipercept.errors import InputError
from unipercept.pipelines import table_file
from unipercept.pipelines.series_table import grid_of, read_grid

HOURS = pd.date_range("2024-01-01", periods=48, freq="h")
LOAD = np.random.default_rng(0).normal(50, 9, 48).round(2)
SHOPS = pd.DataFrame({"shop": np.repeat(["A", "B"], 48), "time": [*HOURS, *HOURS], "load": [*LOAD, *(LOAD + 100)]})


def check(grid, names=("load",), times=HOURS):
    assert grid.variables == tuple(names)
    assert np.array_equal(grid.time, times.to_numpy("datetime64[ns]"))
    np.testing.assert_allclose(grid.values[:, 0], LOAD, rtol=1e-12)


def says(grid, words):
    return any(words in note for note in grid.notes)


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
@pytest.mark.parametrize("index", [HOURS, HOURS.astype(str), HOURS.to_period("h")])
def test_the_index_of_a_frame_is_read_from_a_file_too(tmp_path, suffix, index):
    path = tmp_path / f"table.{suffix}"
    frame = pd.DataFrame({"load": LOAD}, index=pd.Index(index, name="when"))
    table = pa.Table.from_pandas(frame)
    frame.to_parquet(path) if suffix == "parquet" else pa.feather.write_feather(table, path)
    check(read_grid(path))


def test_levels_of_rows_and_columns_are_read_from_a_file_too(tmp_path):
    SHOPS.set_index(["shop", "time"]).to_parquet(tmp_path / "rows.parquet")
    grid = read_grid(tmp_path / "rows.parquet")
    check(grid, ("A", "B"))
    np.testing.assert_allclose(grid.values[:, 1], LOAD + 100)
    columns = pd.MultiIndex.from_tuples([("north", "load"), ("south", "load")])
    pd.DataFrame(np.c_[LOAD, LOAD], index=HOURS, columns=columns).to_parquet(tmp_path / "columns.parquet")
    check(read_grid(tmp_path / "columns.parquet"), ("north/load", "south/load"))


@pytest.mark.parametrize("chunk", [10, 100])
def test_names_of_rows_as_r_writes_them_may_be_dates(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(table_file, "CHUNK_ROWS", chunk)
    days = pd.date_range("2024-01-01", periods=48)
    rows = "".join(f'"{day:%Y-%m-%d}" {value}\n' for day, value in zip(days, LOAD, strict=True))
    (tmp_path / "table.txt").write_text('"load"\n' + rows, encoding="utf-8")
    check(read_grid(tmp_path / "table.txt"), times=days)


def test_lists_and_records_are_left_out_and_said():
    frame = pd.DataFrame({"time": HOURS, "load": LOAD, "box": [[1, 2]] * 48, "tags": [{"a": 1}] * 48})
    grid = grid_of(frame)
    check(grid)
    assert says(grid, "left out, as lists or records: box, tags")
    arrow = grid_of(frame.assign(box=pd.Series([[1, 2]] * 48, dtype=pd.ArrowDtype(pa.list_(pa.int64())))))
    assert says(arrow, "left out, as lists or records: box, tags")
    with pytest.raises(InputError, match="lists or records in all columns"):
        grid_of(frame[["box"]])


def test_durations_are_seconds():
    missing = pd.to_timedelta(LOAD, unit="s").to_series(index=range(48))
    missing[3] = pd.NaT
    for table in (
        pd.DataFrame({"t": HOURS, "took": missing.array}),
        xr.Dataset({"took": ("t", missing)}, {"t": HOURS}),
    ):
        grid = grid_of(table)
        np.testing.assert_allclose(grid.values[:, 0], np.where(np.arange(48) == 3, np.nan, LOAD), rtol=1e-9)
        assert says(grid, "durations are in seconds: took")


@pytest.mark.parametrize("levels", [["shop", "time"], ["time", "shop"]])
@pytest.mark.parametrize("ids", ["letters", "numbers"])
def test_merged_cells_count_for_the_rows_below(tmp_path, levels, ids):
    """pandas merges cells so; each series was averaged with the others, or all but the first left out."""
    pytest.importorskip("openpyxl")
    shops = SHOPS if ids == "letters" else SHOPS.assign(shop=np.repeat([7, 8], 48))
    shops.set_index(levels).sort_index().to_excel(tmp_path / "table.xlsx")
    grid = read_grid(tmp_path / "table.xlsx")
    check(grid, ("A", "B") if ids == "letters" else ("7", "8"))
    np.testing.assert_allclose(grid.values[:, 1], LOAD + 100)
    assert says(grid, f"empty cells hold the value above them: {levels[0]}")


def test_times_that_are_missing_here_and_there_are_not_filled_in():
    holes = HOURS.to_series(index=range(48)).where(np.random.default_rng(1).random(48) < 0.45)
    holes[0] = HOURS[0]
    grid = grid_of(pd.DataFrame({"time": holes, "load": LOAD}))
    assert not says(grid, "hold the value above")
    assert says(grid, f"{holes.isna().sum()} rows without a readable time were left out")


def test_xarray_variables_without_the_time_are_left_out():
    data = xr.Dataset(
        {"height": ("place", [1.0, 2.0]), "load": (("place", "time"), np.stack([LOAD, LOAD + 1]))},
        coords={"time": HOURS, "place": ["a", "b"]},
    )
    for table in (data, data.chunk({"time": 7})):
        grid = grid_of(table)
        check(grid, ("load/a", "load/b"))
        assert says(grid, "left out, as without dimension 'time': height")


def test_xarray_times_beside_a_numbered_dimension_are_the_times():
    check(grid_of(xr.Dataset({"load": ("obs", LOAD)}, coords={"time": ("obs", HOURS)})))


def test_tensors_and_structured_arrays_are_tables():
    records = pd.DataFrame({"time": HOURS, "load": LOAD}).to_records(index=False)
    check(grid_of(records))
    both = torch.tensor(np.c_[LOAD, LOAD]).T.contiguous().T.requires_grad_()
    np.testing.assert_array_equal(grid_of(both).values, both.detach().numpy())
    assert grid_of(torch.tensor(LOAD).bfloat16()).values.shape == (48, 1)


def test_polars_frames_are_tables():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"time": HOURS.to_numpy(), "load": LOAD})
    check(grid_of(frame))
    check(grid_of(frame.with_columns(polars.col("load").cast(polars.Decimal(12, 2)))))
    with pytest.raises(InputError, match="does not convert to pandas"):
        grid_of(frame.with_columns(polars.col("load").cast(polars.Int128)))
    with pytest.raises(InputError, match=r"got polars\.LazyFrame"):
        grid_of(frame.lazy())


def test_arrow_streams_are_tables(tmp_path):
    table = pa.table({"time": HOURS.to_numpy(), "load": LOAD})
    with pa.ipc.new_stream(tmp_path / "table.arrow", table.schema) as stream:
        stream.write_table(table)
    check(read_grid(tmp_path / "table.arrow"))


def test_json_and_pages_are_refused_by_name_also_packed(tmp_path):
    frame = pd.DataFrame({"time": HOURS, "load": LOAD})
    frame.to_json(tmp_path / "table.jsonl.gz", orient="records", lines=True, compression="gzip", date_format="iso")
    with pytest.raises(InputError, match="is JSON; write the table as CSV"):
        read_grid(tmp_path / "table.jsonl.gz")
    page = io.StringIO()
    frame.to_html(page)
    (tmp_path / "export.xls").write_text(page.getvalue(), encoding="utf-8")
    with pytest.raises(InputError, match=r"is HTML or XML; .* save it as \.xlsx"):
        read_grid(tmp_path / "export.xls")


def test_blanks_around_the_names_of_columns_do_not_count(tmp_path):
    rows = "".join(f"{time} , {value}\n" for time, value in zip(HOURS, LOAD, strict=True))
    (tmp_path / "table.csv").write_text("time , load \n" + rows, encoding="utf-8")
    check(read_grid(tmp_path / "table.csv", targets=("load",)))


@pytest.mark.parametrize(("clock", "start"), [("%H%M%S", 0), ("%H%M", 0), ("%H%M%S", 10), ("%H%M", 10)])
def test_brokers_files_have_dates_and_times_of_day_as_digits(tmp_path, clock, start):
    """Each time of day became a series; and columns in angle brackets are no HTML."""
    times = HOURS[(HOURS.hour >= start) & (HOURS.hour < start + 12)]
    rows = "".join(f"ABC,60,{t:%Y%m%d},{t:{clock}},{v}\n" for t, v in zip(times, LOAD, strict=False))
    (tmp_path / "abc.txt").write_text("<TICKER>,<PER>,<DATE>,<TIME>,<CLOSE>\n" + rows, encoding="utf-8")
    grid = read_grid(tmp_path / "abc.txt", targets=("<CLOSE>",))
    assert grid.variables == ("<CLOSE>",)
    assert np.array_equal(grid.values[np.searchsorted(grid.time, times.to_numpy("datetime64[ns]")), 0], LOAD[:24])


def test_hours_that_end_at_2400_and_response_times():
    ends = pd.DataFrame({"date": HOURS.normalize(), "time": [f"{h + 1:02d}00" for h in HOURS.hour], "load": LOAD})
    check(grid_of(ends), times=HOURS + pd.Timedelta(hours=1))
    measured = pd.DataFrame({"date": HOURS.normalize(), "response_time": np.arange(48) % 60 + 100, "load": LOAD})
    assert "response_time" in grid_of(measured).variables


def test_a_first_column_of_large_numbers_with_gaps_stays_as_it_is():
    values = np.where(np.arange(48) % 3 == 0, 1e20, np.nan)
    grid = grid_of(pd.DataFrame({"id": values, "load": LOAD}))
    assert "id" in grid.variables
