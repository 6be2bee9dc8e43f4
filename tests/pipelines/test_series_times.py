"""Times and numbers as the tables of many countries and programs write them."""

import zipfile

import numpy as np
import pandas as pd
import pytest

from unipercept.errors import InputError
from unipercept.pipelines.series_table import SeriesGrid, read_grid

DAYS = pd.date_range("2024-01-01", periods=60)
HOURS = pd.date_range("2024-01-20", periods=96, freq="h")
MONTHS = pd.date_range("2019-01-01", periods=48, freq="MS")
QUARTERS = pd.date_range("2012-01-01", periods=36, freq="QS")
WEEKS = pd.date_range("2023-01-02", periods=104, freq="W-MON")
FRENCH = [
    "janvier",
    "février",
    "mars",
    "avril",
    "mai",
    "juin",
    "juillet",
    "août",
    "septembre",
    "octobre",
    "novembre",
    "décembre",
]
POLISH = [
    "styczeń",
    "luty",
    "marzec",
    "kwiecień",
    "maj",
    "czerwiec",
    "lipiec",
    "sierpień",
    "wrzesień",
    "październik",
    "listopad",
    "grudzień",
]
GERMAN_DAYS = ["Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag"]


def level(length: int, size: float = 1500) -> np.ndarray:
    """Values of two decimals that rise and fall about a size, one of them below 1000."""
    return np.round(size * (1 + 0.4 * np.sin(np.arange(length) * 0.7)), 2)


def grid(tmp_path, text, suffix=".csv", encoding="utf-8", **options) -> SeriesGrid:
    path = tmp_path / f"table{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return read_grid(path, **options)


def german(value: float) -> str:
    return f"{value:,.2f}".translate(str.maketrans(",.", ".,"))


@pytest.mark.parametrize(
    ("times", "written"),
    [
        (DAYS, lambda t: f"{GERMAN_DAYS[t.weekday()]}, {t:%d.%m.%Y}"),
        (DAYS, lambda t: f"{t:%a %m/%d/%Y}"),
        (DAYS, lambda t: f"{t:%A, %B} {t.day}, {t.year}"),
        (DAYS, lambda t: f"lundi {t.day} {FRENCH[t.month - 1]} {t.year}"),
        (DAYS, lambda t: f"{t.day} de {['enero', 'febrero'][t.month - 1]} de {t.year}"),
        (DAYS, lambda t: f"{t.year}年{t.month}月{t.day}日"),
        (DAYS, lambda t: f"{t.year}. {t.month}. {t.day}."),
        (DAYS, lambda t: f"{t:%d%b%Y}".upper()),
        (DAYS, lambda t: f"{t:%Y-%j}"),
        (DAYS, lambda t: f"{t:%y%m%d}"),
        (DAYS, lambda t: f"{t:%d%m%Y}"),
        (DAYS, lambda t: "{}-W{:02d}-{}".format(*t.isocalendar())),
        (DAYS, lambda t: f"{t:%d-%b-%y} 12.00.00.000000 AM"),
        (HOURS, lambda t: f"{t:%Y%m%d%H%M}"),
        (HOURS, lambda t: f"{t:%d/%m/%Y %I:%M} {'a. m.' if t.hour < 12 else 'p. m.'}"),
        (HOURS, lambda t: f"[{t:%d/%b/%Y:%H:%M:%S} +0000]"),
        (HOURS, lambda t: f"{t:%a %b %d %H:%M:%S %Y}"),
        (HOURS, lambda t: f"{t + pd.Timedelta(hours=1):%a %b %d %Y %H:%M:%S} GMT+0100 (CET)"),
        (HOURS, lambda t: f"{t + pd.Timedelta(hours=2):%Y-%m-%d %H:%M:%S} CEST"),
        (HOURS, lambda t: f"{t - pd.Timedelta(hours=3.5):%Y-%m-%dT%H:%M}-03:30[America/St_Johns]"),
        (HOURS, lambda t: f"{t:%d.%m.%Y %H:%M} - {t + pd.Timedelta(hours=1):%d.%m.%Y %H:%M}"),
        (HOURS[1:73], lambda t: f"{t - pd.Timedelta(minutes=1):%d.%m.%Y} 24:00" if t.hour == 0 else f"{t:%d.%m.%Y %H:%M}"),
        (WEEKS, lambda t: f"FY{t.isocalendar().year % 100:02d} W{t.isocalendar().week:02d}"),
        (WEEKS, lambda t: "KW {1}/{0}".format(*t.isocalendar())),
        (WEEKS, lambda t: f"{t:%m/%d/%Y} - {t + pd.Timedelta(days=6):%m/%d/%Y}"),
        (MONTHS, lambda t: f"{t:%m.%Y}"),
        (MONTHS, lambda t: f"{t.month:03d}.{t.year}"),
        (MONTHS, lambda t: f"{t:%b, %Y}"),
        (MONTHS, lambda t: f"{t:%y-%b}"),
        (MONTHS, lambda t: f"{POLISH[t.month - 1]} {t.year}"),
        (MONTHS, lambda t: f"{t:%Y}M{t:%m}"),
        (MONTHS, lambda t: f"FY{t.year} P{t:%m}"),
        (QUARTERS, lambda t: f"FY{t.year % 100} Q{t.quarter}"),
        (QUARTERS, lambda t: f"{t.quarter}Q{t.year % 100}"),
        (QUARTERS, lambda t: f"T{t.quarter} {t.year}"),
        (QUARTERS, lambda t: f"{t.quarter}. Quartal {t.year}"),
        (pd.date_range("1990", periods=30, freq="YS"), lambda t: f"{t.year}/{(t.year + 1) % 100:02d}"),
        (pd.date_range("1990", periods=30, freq="YS"), lambda t: f"FY{t.year}"),
    ],
)  # fmt: skip
def test_whole_dates_are_read_whoever_writes_them(tmp_path, times, written):
    rows = "".join(f"{written(t)};{a}\n" for t, a in zip(times, level(len(times)), strict=True))
    found = grid(tmp_path, "Date;y\n" + rows)
    assert list(found.time) == list(times.to_numpy("datetime64[ns]"))
    assert found.variables == ("y",)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([f"{t:%d %b}" for t in DAYS], "have no year"),  # pandas reads them in the year 1, which became 1754
        ([f"{t:%b-%d}" for t in DAYS], "have no year"),
        ([f"{t:%d/%m}/{t.year + 543}" for t in DAYS], "between the years 1678 and 2261"),
        ([f"{t:%m/%d/%Y}" if t.day > 12 and t.day % 2 else f"{t:%d/%m/%Y}" for t in DAYS], "do not read all alike"),
        ([f"{t:%Y-%m-%d}" for t in DAYS[:-1]] + ["2204-03-01"], "far from all others"),
    ],
)
def test_dates_that_cannot_be_right_are_refused(tmp_path, cells, message):
    rows = "".join(f"{cell},{a}\n" for cell, a in zip(cells, level(len(cells)), strict=True))
    with pytest.raises(InputError, match=message):
        grid(tmp_path, "Date,y\n" + rows)


def test_a_slip_of_one_date_costs_one_row(tmp_path):
    cells = [f"{t:%d/%m/%Y}" for t in DAYS]
    cells[50] = "02-20-2024"
    found = grid(tmp_path, "Date,y\n" + "".join(f"{cell},{a}\n" for cell, a in zip(cells, level(60), strict=True)))
    assert len(found) == 60
    assert "1 row without a readable time was left out" in found.notes


@pytest.mark.parametrize("odd", [".", "n/a", "#DIV/0!"])
def test_numbers_beside_an_odd_cell_are_no_years(tmp_path, odd):
    """1506.29 was a date of 1506 to pandas where one cell of the column was no number."""
    values = [str(a) for a in level(60)]
    values[4] = odd
    found = grid(tmp_path, "Date,y\n" + "".join(f"{t:%Y-%m-%d},{a}\n" for t, a in zip(DAYS, values, strict=True)))
    assert np.isnan(found.values[4, 0])
    assert found.values[5, 0] == level(60)[5]


@pytest.mark.parametrize(
    ("written", "separator"),
    [
        (lambda a: f"{int(a):,}".replace(",", "."), ";"),  # 1.500 visitors are not one and a half
        (lambda a: f"{int(a):,}", "\t"),
        (lambda a: f"R$ {german(int(a))}", ";"),
        (lambda a: f"{int(a)}円", ","),
        (lambda a: str(int(a)).translate(str.maketrans("0123456789", "０１２３４５６７８９")), ","),
        (lambda a: f"{int(a)}*", ","),
        (lambda a: f"{int(a)} (e)", ","),
        (lambda a: f"{int(a) / 1000:.3f}E3".replace(".", ","), ";"),
    ],
)
def test_numbers_are_read_whoever_writes_them(tmp_path, written, separator):
    rows = [f"{t:%d.%m.%Y}{separator}{written(a)}\n" for t, a in zip(DAYS, level(60), strict=True)]
    found = grid(tmp_path, f"Date{separator}y\n" + "".join(rows))
    np.testing.assert_allclose(found.values[:, 0], np.floor(level(60)))


def test_units_that_differ_are_told_and_sides_of_an_account_are_signs(tmp_path):
    units = [
        f"{t:%Y-%m-%d},{a} {'kWh' if i % 2 else 'MWh'}\n" for i, (t, a) in enumerate(zip(DAYS, level(60), strict=True))
    ]
    assert any("cells in MWh and kWh" in note for note in grid(tmp_path, "Date,y\n" + "".join(units)).notes)
    sides = [
        f"{t:%Y-%m-%d},{a} {'DR' if i % 2 else 'CR'}\n" for i, (t, a) in enumerate(zip(DAYS, level(60), strict=True))
    ]
    assert (np.sign(grid(tmp_path, "Date,y\n" + "".join(sides)).values[:4, 0]) == [1, -1, 1, -1]).all()


def test_hours_of_another_column_or_across_the_header_are_hours(tmp_path):
    y = level(96)
    counted = "Date,Hour,y\n" + "".join(f"{t:%Y-%m-%d},{t.hour + 1},{a}\n" for t, a in zip(HOURS, y, strict=True))
    across = "Date," + ",".join(f"HE{i:02d}" for i in range(1, 25)) + "\n"
    across += "".join(f"{HOURS[i]:%Y-%m-%d}," + ",".join(map(str, y[i : i + 24])) + "\n" for i in range(0, 96, 24))
    halves = "SETTLEMENT_DATE,SETTLEMENT_PERIOD,ND\n" + "".join(
        f"{HOURS[0] + pd.Timedelta(minutes=30 * i):%d-%b-%Y},{i % 48 + 1},{a}\n" for i, a in enumerate(y)
    )
    for text, step in ((counted, "1 hour"), (across, "1 hour"), (halves, "30 minutes")):
        found = grid(tmp_path, text)
        assert str(found.step) == step
        assert found.time[0] == HOURS[0]
        np.testing.assert_array_equal(found.values[:, 0], y)


@pytest.mark.parametrize(
    "above",
    ["sep=;\n", "Report;;\nPeriod: 01.01.2024 - 29.02.2024;;\n\n", '"TOA5";"Stn";"CR1000";"123";"CR1000.Std"\n'],
)
def test_what_stands_above_a_table_is_passed_over(tmp_path, above):
    rows = "".join(f"{t:%d.%m.%Y};{german(a)};{german(a / 2)}\n" for t, a in zip(DAYS, level(60), strict=True))
    found = grid(tmp_path, f"{above}Datum;Umsatz;Kosten\n{rows}")
    assert found.variables == ("Umsatz", "Kosten")
    np.testing.assert_allclose(found.values[:, 0], level(60))


@pytest.mark.parametrize(
    ("encoding", "name", "written"),
    [
        ("cp932", "売上高", lambda t: f"{t.year}年{t.month}月"),
        ("gb18030", "销量", lambda t: f"{t.year}年{t.month}月"),
        ("euc-kr", "매출액", lambda t: f"{t.year}년 {t.month}월"),
        ("cp1251", "Продажи", lambda t: f"{t:%m.%Y}"),
        ("cp1252", "Umsätze in €", lambda t: f"{t:%m.%Y}"),
    ],
)
def test_names_in_encodings_before_unicode_are_read(tmp_path, encoding, name, written):
    rows = "".join(f"{written(t)};{a}\n" for t, a in zip(MONTHS, level(48), strict=True))
    found = grid(tmp_path, f"Date;{name}\n{rows}", encoding=encoding)
    assert found.variables == (name,)
    assert found.time[0] == MONTHS[0]


def test_codes_keep_their_zeros_and_numbers_may_name_series(tmp_path):
    def table(names):
        return "".join(f"{name},{t:%Y-%m-%d},{a}\n" for name in names for t, a in zip(DAYS, level(60), strict=True))

    assert grid(tmp_path, "store,date,y\n" + table(["00012", "00345"])).variables == ("00012", "00345")
    assert grid(tmp_path, "zip,date,y\n" + table([10115, 80331])).variables == ("10115", "80331")


def test_a_zip_archive_of_one_table_is_read(tmp_path):
    rows = "".join(f"{t:%Y-%m-%d},{a}\n" for t, a in zip(DAYS, level(60), strict=True))
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__MACOSX/._data.csv", b"\0")
        archive.writestr("data.csv", "date,y\n" + rows)
    assert len(read_grid(path)) == 60
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.csv", "date,y\n" + rows)
    with pytest.raises(InputError, match=r"holds 2 files \(data.csv, more.csv\)"):
        read_grid(path)


def test_months_below_years_across_the_header_are_times(tmp_path):
    years = ",".join(str(t.year) if t.month == 1 else "" for t in MONTHS)
    names = ",".join(f"{t:%b}" for t in MONTHS)
    values = "".join(f"{item}," + ",".join(map(str, level(48))) + "\n" for item in "AB")
    found = grid(tmp_path, f",{years}\nItem,{names}\n{values}")
    assert found.variables == ("A", "B")
    assert list(found.time) == list(MONTHS.to_numpy("datetime64[ns]"))
