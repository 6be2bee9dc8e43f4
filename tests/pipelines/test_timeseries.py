"""Series: tables of every shape become one even grid, repairs are said, and the map gives back every value."""

import numpy as np
import pandas as pd
import pytest
import torch

from unipercept.errors import InputError
from unipercept.pipelines.series_table import grid_of, read_series
from unipercept.pipelines.timeseries import TimeSeriesConfig, TimeSeriesPipeline, row_length, series_of

LENGTH = 240


def make_frame(length=LENGTH) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    time = pd.date_range("2024-01-01", periods=length, freq="h")
    daily = np.sin(np.arange(length) * 2 * np.pi / 24)
    return pd.DataFrame({"date": time, "load": 5 + daily, "heat": 2 * daily + 0.1 * rng.normal(size=length)})


def read(path):
    return TimeSeriesPipeline().read(path)


def write(tmp_path, text: str, name="table.csv", encoding="utf-8"):
    (tmp_path / name).write_bytes(text.encode(encoding))
    return tmp_path / name


@pytest.mark.parametrize(
    "name", ["t.csv", "t.csv.gz", "t.csv.xz", "t.csv.bz2", "t.parquet", "t.feather", "t.tsv", "t.dat"]
)
def test_every_format_gives_the_same_series(tmp_path, name):
    frame, path = make_frame(), tmp_path / name
    if "parquet" in name:
        frame.to_parquet(path)
    elif "feather" in name:
        frame.to_feather(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if "tsv" in name else ",")
    series = read(path)
    assert series.variables == ("load", "heat")
    assert series.step == 3600
    assert np.allclose(series.values, frame[["load", "heat"]], atol=1e-6)
    assert np.array_equal(series.time, frame["date"].to_numpy("datetime64[ns]"))


def test_a_frame_needs_no_file():
    frame = make_frame()
    for table in (frame, frame.set_index("date"), frame.set_index("date")["load"]):
        assert read(table).step == 3600


def test_semicolons_and_decimal_commas_are_read(tmp_path):
    path = write(tmp_path, "Zeit;Wärme\n2024-01-01;1,5\n2024-01-02;2,5\n2024-01-03;3,5\n", encoding="latin-1")
    series = read(path)
    assert series.variables == ("Wärme",)
    assert series.values[:, 0].tolist() == [1.5, 2.5, 3.5]
    assert series.step == 86400


def test_comments_before_the_table_are_passed_over(tmp_path):
    series = read(write(tmp_path, "# source: somebody\n# licence, too\ndate,x\n2024-01-01,1\n2024-01-02,2\n"))
    assert series.variables == ("x",)
    assert series.step == 86400


def test_day_first_and_month_first_are_settled_over_the_column(tmp_path):
    days = read(write(tmp_path, "d,x\n" + "".join(f"{d:02}/01/2024,{d}\n" for d in range(1, 21))))
    months = read(write(tmp_path, "d,x\n" + "".join(f"01/{d:02}/2024,{d}\n" for d in range(1, 21))))
    assert np.array_equal(days.time, months.time)
    with pytest.raises(InputError, match="write them as YYYY-MM-DD"):
        read(write(tmp_path, "d,x\n01/02/2024,1\n02/02/2024,2\n03/02/2024,3\n"))


@pytest.mark.parametrize("factor", [1, 1000])
def test_seconds_since_1970_are_times(tmp_path, factor):
    rows = "".join(f"{(1_700_000_000 + 60 * i) * factor},{i % 5}\n" for i in range(50))
    assert read(write(tmp_path, "timestamp,x\n" + rows)).step == 60


def test_a_table_without_times_has_numbered_steps(tmp_path):
    series = read(write(tmp_path, "1.5,2\n2.5,3\n3.5,5\n"))
    assert series.variables == ("column_0", "column_1")
    assert series.time.tolist() == [0, 1, 2]
    assert "no time column" in " ".join(series.notes)


def test_gaps_are_filled_masked_and_said():
    frame = make_frame().drop(index=[10, 11, 50]).reset_index(drop=True)
    frame.loc[100, "load"] = np.nan
    series = read(frame)
    assert len(series) == LENGTH
    assert np.isfinite(series.values).all()
    assert (~series.observed).sum() == 2 * 3 + 1
    assert any("3 steps were missing" in note for note in series.notes)
    assert any("7 missing values" in note for note in series.notes)
    emap = TimeSeriesPipeline(TimeSeriesConfig(min_side=1)).embed(series)
    assert int((~emap.mask).sum()) == 7


def test_unsorted_and_repeated_rows_are_mended_and_said():
    frame = make_frame()
    shuffled = pd.concat([frame, frame.iloc[[3]]]).sample(frac=1, random_state=0)
    series = read(shuffled)
    assert np.allclose(series.values, read(frame).values)
    assert any("sorted" in n for n in series.notes)
    assert any("1 row repeats" in n for n in series.notes)


def test_a_clock_change_leaves_no_gap():
    zone = pd.date_range("2024-03-30", periods=72, freq="h", tz="Europe/Berlin")
    series = read(pd.DataFrame({"t": zone, "x": range(72)}))
    assert len(series) == 72
    assert series.observed.all()
    assert any("kept in UTC" in n for n in series.notes)


def test_months_are_even_steps():
    series = read(pd.DataFrame({"t": pd.date_range("2020-01-01", periods=24, freq="MS"), "x": range(24)}))
    assert len(series) == 24
    assert series.observed.all()


def test_days_without_a_value_and_one_stray_row_leave_months_months():
    """A table of prices: the first of each month, dividends on other days with no price,
    and today's price at the end.
    """
    months = pd.date_range("2015-01-01", periods=90, freq="MS")
    dividends = months[1::3] + pd.Timedelta(days=8)
    prices = pd.Series(np.arange(90.0), months)
    table = pd.concat([prices, pd.Series(np.nan, dividends), pd.Series(7.0, months[-1:] + pd.Timedelta(days=20))])
    series = read(table.sort_index().rename_axis("t").rename("x").reset_index())
    assert np.array_equal(series.time, months.to_numpy())
    assert np.array_equal(series.values[:, 0], prices)
    assert series.observed.all()
    assert any("30 rows without any value were left out" in note for note in series.notes)


def test_values_beyond_single_precision_count_as_missing_and_are_said(recwarn):
    series = read(pd.DataFrame({"x": [1.0, 2.0, 1e300, 4.0]}))
    assert series.observed[:, 0].tolist() == [True, True, False, True]
    assert any("1 value beyond 3.4e38 counted as missing" in note for note in series.notes)
    assert not recwarn.list


def test_text_columns_are_left_out_and_constant_ones_named():
    series = read(make_frame().assign(place="here", zero=0.0))
    assert series.variables == ("load", "heat", "zero")
    assert any("left out" in n and "place" in n for n in series.notes)
    assert any("constant: zero" in n for n in series.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("date,x\n2024-01-01,1\n", "1 row of data"),
        ("date,x\n", "0 rows"),
        ("a,b\nx,y\nz,w\n", "no column of numbers"),
        ("date,x\n2024-01-01,\n2024-01-02,\n", "no value at all in x"),
        ('[{"date": "2024-01-01", "x": 1}]', "is JSON; write the table as CSV"),
        ("a,b\n1,2\n3,4,5\n6,7\n", "line 3 has 3 cells where the table has 2"),
        ("a,b\n1,\0\n", "not text"),
        ("", "0 bytes"),
        ("date,x\n2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n2031-01-01,4\n", "1 time lies far from all others"),
    ],
)
def test_what_is_no_series_ends_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read(write(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cut.parquet", "cut.feather"])
def test_a_cut_table_ends_in_one_line(tmp_path, name):
    path = tmp_path / name
    make_frame().to_parquet(path) if "parquet" in name else make_frame().to_feather(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot read"):
        read(path)


@pytest.mark.parametrize("folding", ["period", "square"])
@pytest.mark.parametrize("length", [2, 25, 240, 241])
def test_the_map_gives_back_every_value(folding, length):
    series = read(make_frame(length))
    emap = TimeSeriesPipeline(TimeSeriesConfig(folding=folding)).embed(series)
    assert emap.tensor.shape[:2] == (2, 1)
    assert min(emap.tensor.shape[2:]) >= 64
    assert np.abs(series_of(emap).numpy() - series.values).max() < 2e-6


@pytest.mark.parametrize("length", [2, 25, 61, 240, 1000, 2048])
def test_a_square_map_gives_back_every_value(length):
    rng = np.random.default_rng(length)
    series = read(rng.normal(size=(length, 2)).cumsum(axis=0))
    emap = TimeSeriesPipeline(TimeSeriesConfig(size=64)).embed(series)
    assert emap.tensor.shape == (2, 1, 64, 64)
    assert np.abs(series_of(emap).numpy() - series.values).max() < 1e-4


@pytest.mark.parametrize(("period", "length", "row"), [(24, 2000, 48), (7, 60, 7), (500, 2000, 45), (1000, 2000, 45)])
def test_rows_of_a_square_map_are_whole_cycles_or_even_parts_of_one(period, length, row):
    assert row_length(period, length) == row
    assert max(row, -(-length // row)) <= 64


def test_a_square_map_of_more_steps_holds_averages_and_masks_what_is_none():
    values = np.arange(4000.0)
    values[1000:2000] = np.nan
    emap = TimeSeriesPipeline(TimeSeriesConfig(size=64, period=100)).embed(read(values[:, None]))
    assert emap.tensor.shape == (1, 1, 64, 64)
    rows, columns = emap.metadata["cells"]
    assert (rows, columns) == (80, 50)
    assert abs(float(emap.tensor.mean())) < 1e-3  # shrinking keeps the mean
    assert abs(float(emap.mask.float().mean()) - 0.75) < 0.02
    with pytest.raises(InputError, match="averages"):
        series_of(emap)


def test_an_average_of_mostly_missing_steps_counts_as_missing():
    values = np.arange(4000.0).reshape(80, 50)
    values[np.arange(80) % 4 > 0] = np.nan
    emap = TimeSeriesPipeline(TimeSeriesConfig(size=16, period=100)).embed(read(values.reshape(-1, 1)))
    assert not emap.mask.any()


def test_padding_of_a_square_map_is_masked_and_weighs_nothing():
    series = read(np.arange(350.0)[:, None])
    small, large = (TimeSeriesPipeline(TimeSeriesConfig(size=size, period=19)).embed(series) for size in (16, 38))
    assert small.metadata["cells"] == large.metadata["cells"] == [19, 19]
    # Eleven cells of the last row are padding: their neighbours above, alone, make what is shown of both.
    assert float(small.tensor[0, 0, -1].min()) > 1.5
    assert not large.mask[0, -2:, 16:].any()
    assert int((~large.mask).sum()) == 11 * 4


def test_rows_are_days_for_hourly_data_with_a_daily_cycle():
    emap = TimeSeriesPipeline(TimeSeriesConfig(min_side=1)).embed(read(make_frame()))
    assert emap.metadata["period"] == 24
    assert emap.tensor.shape == (2, 1, 10, 24)
    assert emap.coords["phase"].values[-1] == 23 * 3600
    assert emap.coords["cycle"].values[1] == 86400


def test_windows_and_groups_cover_the_table_once():
    series = read(make_frame())
    pipe = TimeSeriesPipeline(TimeSeriesConfig(window=100, max_variables=1))
    pieces = list(pipe.split(series))
    assert [p.first_step for p in pieces] == [0, 0, 80, 80, 160, 160]
    loads = np.concatenate([p.values[:, 0] for p in pieces if p.variables == ("load",)])
    assert np.array_equal(loads, series.values[:, 0])
    for part in ("observed", "time"):
        whole, parts = getattr(series, part), [getattr(p, part) for p in pieces if p.variables == ("load",)]
        assert np.array_equal(np.concatenate(parts), whole[:, :1] if part == "observed" else whole), part
    first, second, _ = (pipe.embed(piece).coords for piece in pieces[::2])
    assert (second["cycle"].values[0] - first["cycle"].values[0]).item() == 80 * 3600
    assert torch.equal(second["phase"].values, first["phase"].values)


def test_a_constant_series_is_zero_on_the_map():
    emap = TimeSeriesPipeline().embed(read(pd.DataFrame({"x": [3.0] * 20})))
    assert torch.count_nonzero(emap.tensor) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 1}, "window >= 2"),
        ({"folding": "ball"}, "folding must be"),
        ({"period": 0}, "size >= 1"),
        ({"size": 0}, "size >= 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        TimeSeriesConfig(**settings)


def test_what_is_no_table_is_refused():
    with pytest.raises(InputError, match="expected a path"):
        read([1, 2, 3])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("ett/ETTh1.csv", (17420, 7)),
        ("weather_jena/weather.csv.xz", (52704, 21)),
        ("exchange_rate/exchange_rate.txt.gz", (7588, 8)),
    ],
)
def test_real_series_are_read_whole(shared_data, name, shape):
    assert read(shared_data / name).values.shape == shape


def test_codes_for_missing_values_never_reach_a_map(tmp_path):
    values = 10 + np.sin(np.arange(200) / 4)
    values[[3, 50, 51]] = -9999
    path = tmp_path / "logger.csv"
    path.write_text("load\n" + "\n".join(map(str, values)) + "\n")
    series = read_series(path)
    assert any("-9999 is taken as a code for missing (load)" in note for note in series.notes)
    assert not series.observed[[3, 50, 51]].any()
    assert 9 <= series.values.min() <= series.values.max() <= 11


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        ("Nov-23", "Dec-23", "Jan-24"),  # not days of November
        ("nov. 2023", "déc. 2023", "janv. 2024"),
        ("November 2023", "Dezember 2023", "Januar 2024"),
        ("2023/11/01", "2023/12/01", "2024/01/01"),
        ("202311", "202312", "202401"),
    ],
)
def test_months_are_read_in_many_writings(tmp_path, first, second, third):
    later = [f"2024{month:02d}" for month in range(2, 13)] if first == "202311" else []
    rows = "".join(f"{month},{value}\n" for value, month in enumerate([first, second, third, *later]))
    series = read_series(write(tmp_path, f"x,value\n{rows}"))
    assert [str(time)[:10] for time in series.time[:3]] == ["2023-11-01", "2023-12-01", "2024-01-01"]


@pytest.mark.parametrize(
    ("cells", "first_and_last"),
    [
        (["Q1 2023", "Q2 2023", "Q3 2023", "Q4 2023"], ("2023-01-01", "2023-10-01")),
        (["2020-W01", "2020-W02", "2020-W03"], ("2019-12-30", "2020-01-13")),
        (["5 de marzo de 2024", "6 de marzo de 2024", "7 de marzo de 2024"], ("2024-03-05", "2024-03-07")),
        (["1. März 2024", "2. März 2024", "3. März 2024"], ("2024-03-01", "2024-03-03")),
        ([f"01/02/2023 {hour}:00 AM" for hour in range(1, 12)], ("2023-", "2023-")),
    ],
)
def test_times_are_read_in_many_writings(tmp_path, cells, first_and_last):
    if cells[0].endswith("AM"):  # one day alone may be either
        with pytest.raises(InputError, match="day first and as month first"):
            read_series(write(tmp_path, "t,v\n" + "".join(f"{c},{i}\n" for i, c in enumerate(cells))))
        return
    series = read_series(write(tmp_path, "t,v\n" + "".join(f"{c},{i}\n" for i, c in enumerate(cells))))
    assert str(series.time[0]).startswith(first_and_last[0])
    assert str(series.time[-1]).startswith(first_and_last[1])


def test_even_steps_settle_day_first_or_month_first(tmp_path):
    hours = pd.date_range("2023-02-01", periods=72, freq="h")
    text = "".join(f"{time:%m/%d/%Y %I:%M %p},{i}\n" for i, time in enumerate(hours))
    series = read_series(write(tmp_path, f"when,value\n{text}"))
    assert series.time[-1] == hours[-1].to_datetime64()


def test_a_delimiter_at_the_end_of_rows_alone_shifts_no_column(tmp_path):
    series = read_series(write(tmp_path, "date,value\n2024-01-01,5,\n2024-01-02,6,\n2024-01-03,7,\n"))
    assert series.variables == ("value",)
    assert series.values[:, 0].tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["(1,200)", "1,300", "(5)"], [-1200, 1300, -5]),
        (["12,34,567", "1,00,000", "12,000"], [1234567, 100000, 12000]),
        (["980", "1.2K", "3M"], [980, 1200, 3e6]),
        (["280.5 K", "281 K", "282 K"], [280.5, 281, 282]),
        (["-$5.00", "USD 7", "€ 1,234.50"], [-5, 7, 1234.5]),
        (["12.5-", "3", "4"], [-12.5, 3, 4]),
    ],
)
def test_numbers_are_read_as_people_write_them(tmp_path, cells, numbers):
    rows = "".join(f'2024-01-0{i + 1},"{cell}"\n' for i, cell in enumerate(cells))
    series = read_series(write(tmp_path, f"date,value\n{rows}"))
    assert series.values[:, 0].tolist() == pytest.approx(numbers)


def test_the_euro_sign_of_windows_is_read(tmp_path):
    path = write(tmp_path, "date;Umsatz €\n2024-01-01;1\n2024-01-02;2\n2024-01-03;3\n", encoding="cp1252")
    assert read_series(path).variables == ("Umsatz €",)


def test_a_row_with_more_cells_is_named(tmp_path):
    rows = "".join(f"2024-01-{day:02d},{day}\n" for day in range(1, 29))
    with pytest.raises(InputError, match="line 30 has 3 cells where the table has 2"):
        read_series(write(tmp_path, f"date,value\n{rows}Total,,99\n"))


def test_columns_of_a_frame_may_share_a_name():
    frame = pd.DataFrame([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], columns=["a", "a"])
    assert grid_of(frame).variables == ("a", "a.1")


HOURS = pd.date_range("2024-01-01", periods=48, freq="h")


@pytest.mark.parametrize("levels", [("shop", "when"), ("when", "shop"), (None, None)])
def test_levels_of_rows_are_times_and_series(levels):
    rows = [HOURS, [1, 2]] if levels[0] == "when" else [[1, 2], HOURS]
    index = pd.MultiIndex.from_product(rows, names=levels)
    shops = index.get_level_values(0 if levels[0] != "when" else 1)
    grid = grid_of(pd.Series(10.0 * shops.to_numpy() + np.tile(np.arange(2), 48), index, name="units"))
    assert (len(grid), grid.variables) == (48, ("1", "2"))
    assert (grid.values.round(-1) == [10, 20]).all()
    assert grid.time[0] == HOURS[0]


def test_two_levels_together_name_a_series():
    index = pd.MultiIndex.from_product([["a", "b"], [1, 2], HOURS], names=["shop", "item", "when"])
    grid = grid_of(pd.DataFrame({"units": np.arange(4 * 48.0)}, index))
    assert grid.variables == ("a/1", "a/2", "b/1", "b/2")
    assert "long format: column 'shop/item' names 4 series" in grid.notes


def test_levels_of_columns_are_joined():
    frame = pd.DataFrame(np.ones((48, 2)), HOURS, pd.MultiIndex.from_tuples([("load", "north"), ("load", "")]))
    assert grid_of(frame).variables == ("load/north", "load")


@pytest.mark.parametrize(
    "index",
    [
        pd.Index([date.date() for date in pd.date_range("2024-01-01", periods=48)]),
        pd.date_range("2024-01-01", periods=48).astype(str),
        pd.PeriodIndex(pd.date_range("2024-01-01", periods=48), freq="D"),
        pd.Index(pd.date_range("2024-01-01", periods=48).strftime("%Y%m%d").astype(int), name="date"),
    ],
)
def test_rows_that_are_days_are_the_times(index):
    grid = grid_of(pd.Series(np.arange(48.0), index, name="load"))
    assert grid.variables == ("load",)
    assert [str(time)[:10] for time in grid.time[[0, -1]]] == ["2024-01-01", "2024-02-17"]


def test_rows_that_are_numbers_stay_numbers():
    for index in (pd.RangeIndex(48, name="time"), pd.Index(np.arange(48) * 3, name="row")):
        grid = grid_of(pd.Series(np.arange(48.0), index, name="load"))
        assert (grid.variables, grid.time[0]) == (("load",), 0)


def test_times_of_other_calendars_are_times():
    xr = pytest.importorskip("xarray")
    pytest.importorskip("cftime")
    days = xr.date_range("2024-02-01", periods=48, calendar="noleap", use_cftime=True)
    array = xr.DataArray(np.ones((2, 48)), {"site": ["p", "q"], "time": days}, ("site", "time"), "load")
    grid = grid_of(array)
    assert grid.variables == ("load/p", "load/q")
    assert len(grid) == 49  # the leap day has no value


def test_tables_of_arrow_are_read():
    pa = pytest.importorskip("pyarrow")
    grid = grid_of(pa.table({"when": HOURS, "load": np.arange(48.0)}))
    assert (grid.variables, grid.time[0]) == (("load",), HOURS[0])


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "int64[pyarrow]", "string"])
def test_gaps_of_nullable_columns_stay_gaps(dtype):
    values = pd.array([*range(1, 48), None], dtype=dtype)
    grid = grid_of(pd.DataFrame({"load": values}, HOURS))
    assert grid.values[:47, 0].tolist() == list(range(1, 48))
    assert np.isnan(grid.values[47:]).all()


def test_complex_numbers_are_refused():
    with pytest.raises(InputError, match="column 'a' holds complex numbers"):
        grid_of(pd.DataFrame({"a": np.zeros(5, complex)}))
    with pytest.raises(InputError, match="real numbers"):
        grid_of(np.zeros((5, 2), complex))
