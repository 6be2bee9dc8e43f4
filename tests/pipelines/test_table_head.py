"""Headers of several lines become one name a column; times across a header become the rows, and are said once."""

import numpy as np
import pandas as pd
import pytest

from unipercept.pipelines.series_table import grid_of, read_grid
from unipercept.pipelines.table_head import times_of

HOURS = pd.date_range("2024-01-01", periods=48, freq="h")


def read(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return read_grid(path)


def hours(*extra):
    return "".join(",".join([str(time), *[f"{i}.{i % 10}" for _ in extra]]) + "\n" for i, time in enumerate(HOURS))


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("time,load,temp\n,MW,°C\n", ("load MW", "temp °C")),
        ("time,Berlin,,Bonn,\n,load,temp,load,temp\n", ("Berlin load", "Berlin temp", "Bonn load", "Bonn temp")),
        (",Berlin,Berlin\n,load,load\ntime,MW,MW\n", ("Berlin load MW", "Berlin load MW.2")),
        ("\ntime,load,temp\n\n,MW,°C\n\n", ("load MW", "temp °C")),
    ],
)
def test_header_lines_are_joined_column_by_column(tmp_path, header, names):
    grid = read(tmp_path, header + hours(*names))
    assert grid.variables == names
    assert len(grid) == len(HOURS)
    assert sum("a header of" in note for note in grid.notes) == 1
    assert not any("count as missing" in note for note in grid.notes)


@pytest.mark.parametrize(
    ("text", "names", "rows"),
    [
        ("time,a,b\n" + hours("a", "b"), ("a", "b"), 48),
        ("time,a\n2023-12-31 22:00,n/a\n2023-12-31 23:00,n/a\n" + hours("a"), ("a",), 50),
        ("name,a\nBerlin,n/a\nBonn,3\nKiel,4\nJena,5\n", ("a",), 4),
    ],
)
def test_rows_that_miss_values_are_no_header(tmp_path, text, names, rows):
    grid = read(tmp_path, text)
    assert grid.variables == names
    assert len(grid) == rows


def across(columns, names=("A", "B", "C")):
    values = np.random.default_rng(0).normal(100, 5, (len(names), len(columns))).round(1)
    return values, pd.DataFrame(values, columns=columns).assign(country=names).set_index("country").reset_index()


@pytest.mark.parametrize(
    "columns",
    [
        [f"{d:%Y-%m}" for d in pd.date_range("2019-01", periods=30, freq="MS")],
        [f"{d:%Y-%m-%d}" for d in pd.date_range("2024-02-25", periods=30)],
        [f"{d:%d.%m.%Y}" for d in pd.date_range("2024-02-25", periods=30)],
        [f"{d:%b %Y}" for d in pd.date_range("2019-01", periods=30, freq="MS")],
        [f"{d.year}M{d.month:02d}" for d in pd.date_range("2019-01", periods=30, freq="MS")],
        [f"{d.year}-Q{d.quarter}" for d in pd.date_range("2015-01", periods=30, freq="QS")],
        list(range(1990, 2020)),
    ],
)
def test_times_across_the_header_become_the_rows(tmp_path, columns):
    values, frame = across(columns)
    frame.to_csv(tmp_path / "table.csv", index=False)
    for grid in (read_grid(tmp_path / "table.csv"), grid_of(frame)):
        assert grid.variables == ("A", "B", "C")
        np.testing.assert_allclose(grid.values, values.T)
        assert np.issubdtype(grid.time.dtype, np.datetime64)
        assert grid.time[0] == np.array(times_of(columns))[0]
        assert len(grid.notes) == 1
        assert "turned, 3 rows are a series each, named by 'country'" in grid.notes[0]


def test_the_latest_may_come_first_and_two_columns_may_be_needed_for_a_name(tmp_path):
    _, frame = across(list(range(2019, 1989, -1)), ("A", "A", "B"))
    frame.insert(1, "sex", ["f", "m", "f"])
    frame.to_csv(tmp_path / "table.csv", index=False)
    grid = read_grid(tmp_path / "table.csv")
    assert grid.variables == ("A f", "A m", "B f")
    assert grid.time[0] == np.datetime64("1990")


def test_a_statistics_office_s_file_is_read_as_it_comes(tmp_path):
    lines = ['"Data Source","World Development Indicators",', "", '"Last Updated Date","2023-09-19",', ""]
    lines.append(
        '"Country Name","Country Code","Indicator Name",' + ",".join(f'"{year}"' for year in range(1960, 2023)) + ","
    )
    for country in ("Aruba", "Albania", "Zimbabwe"):
        cells = ",".join(f'"{i}.5"' if i > 5 else '""' for i in range(63))
        lines.append(f'"{country}","{country[:3].upper()}","GDP",{cells},')
    grid = read(tmp_path, "\n".join(lines) + "\n")
    assert grid.variables == ("Aruba", "Albania", "Zimbabwe")
    assert grid.values.shape == (63, 3)
    assert np.isnan(grid.values[:6]).all()


@pytest.mark.parametrize(
    "names",
    [["a", "b", "c"], ["time", "2019", "2020"], ["1", "2", "3", "4", "5"], ["2019", "2020", "2022", "2023", "2024"],
     ["2020-01", "x", "y", "z", "u", "2020-02", "2020-03"]],
)  # fmt: skip
def test_names_are_no_times(names):
    assert times_of(names) is None


def test_what_is_alike_in_many_columns_is_said_once(tmp_path):
    rows = [",".join([str(time), *(["?!"] if i == 3 else [str(i)]) * 40]) for i, time in enumerate(HOURS)]
    grid = read(tmp_path, "time," + ",".join(f"c{i}" for i in range(40)) + "\n" + "\n".join(rows) + "\n")
    (note,) = [note for note in grid.notes if "text among the numbers" in note]
    assert note == "40 columns: 40 cells of text among the numbers (first '?!' in row 4 of 'c0') count as missing"


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_a_line_break_in_a_cell_of_the_header_ends_no_row(tmp_path, suffix):
    """Spreadsheets break long names so."""
    frame = pd.DataFrame({"time": HOURS, "load\n(kW)": np.arange(48.0), 'the "net" load': np.arange(48.0)})
    path = tmp_path / f"table.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_excel(path, index=False)
    grid = read_grid(path)
    assert (grid.variables, len(grid)) == (("load (kW)", 'the "net" load'), len(HOURS))


def test_a_stray_quotation_mark_joins_no_lines(tmp_path):
    grid = read(tmp_path, "time,load,pipe\n" + "".join(f'{time},{i},{i}" wide\n' for i, time in enumerate(HOURS)))
    assert (grid.variables, len(grid)) == (("load",), len(HOURS))
