"""An Excel sheet gives the series that the same table gives as CSV; what stands above and beside
it is passed over, and said.
"""

import sys

import numpy as np
import pandas as pd
import pytest

from unipercept.errors import InputError, MissingDependencyError
from unipercept.pipelines import workbook as workbook_module
from unipercept.pipelines.detect import detect_modality
from unipercept.pipelines.series_table import read_grid
from unipercept.pipelines.table_file import read_frame

openpyxl = pytest.importorskip("openpyxl")


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    found = pd.DataFrame(
        {"Datum": pd.date_range("2024-03-01", periods=200, freq="h"), "Last": rng.normal(50, 9, 200).round(6)}
    )
    found["Menge"] = rng.integers(0, 90, 200).astype(float)
    found.loc[[5, 6, 199], "Menge"] = np.nan
    return found


def workbook(path, frame, above=()):
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (*above, list(frame.columns), *frame.astype(object).where(frame.notna(), None).values.tolist()):
        sheet.append(row)
    book.save(path)
    return book


def test_a_sheet_is_the_table_that_it_is_as_csv(tmp_path, frame):
    workbook(tmp_path / "table.xlsx", frame)
    frame.to_csv(tmp_path / "table.csv", index=False)
    assert detect_modality(tmp_path / "table.xlsx") == "timeseries"
    sheet, text = read_grid(tmp_path / "table.xlsx"), read_grid(tmp_path / "table.csv")
    assert sheet.variables == text.variables == ("Last", "Menge")
    assert np.array_equal(sheet.time, text.time)
    np.testing.assert_allclose(sheet.values, text.values, rtol=0, atol=0)
    assert sheet.notes == text.notes


def test_a_title_above_and_a_sheet_of_words_before_are_passed_over_and_said(tmp_path, frame):
    book = workbook(tmp_path / "table.xlsx", frame, above=(["Messwerte"], [], ["Stand 1.4.2024"]))
    book.active.title = "Werte"
    book.create_sheet("Deckblatt", 0).append(["Bericht"])
    hidden = book.create_sheet("Alt", 0)
    hidden.sheet_state = "hidden"
    for row in range(9):
        hidden.append([row, row])
    book.save(tmp_path / "table.xlsx")
    grid = read_grid(tmp_path / "table.xlsx")
    assert grid.variables == ("Last", "Menge")
    assert "sheet 'Werte' of 2; save another one as CSV to use it" in grid.notes
    assert "2 lines before the table passed over" in grid.notes


def test_what_is_no_table_is_refused_under_its_own_name(tmp_path):
    book = openpyxl.Workbook()
    book.save(tmp_path / "empty.xlsx")
    with pytest.raises(InputError, match=r"empty\.xlsx has no sheet with a table"):
        read_grid(tmp_path / "empty.xlsx")
    for _ in range(3):
        book.active.append(["words", "and words"])
    book.save(tmp_path / "words.xlsx")
    with pytest.raises(InputError, match=r"words\.xlsx has no column of numbers"):
        read_grid(tmp_path / "words.xlsx")
    (tmp_path / "cut.xlsx").write_bytes((tmp_path / "words.xlsx").read_bytes()[:3000])
    with pytest.raises(InputError, match=r"cannot read .*cut\.xlsx") as caught:
        read_grid(tmp_path / "cut.xlsx")
    assert "\n" not in str(caught.value)


def test_what_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, frame, monkeypatch):
    workbook(tmp_path / "table.xlsx", frame)
    monkeypatch.setattr(workbook_module, "MAX_BYTES", 1_000)
    with pytest.raises(InputError, match="more than is read; save the sheet as CSV"):
        read_grid(tmp_path / "table.xlsx")


def test_what_to_install_is_said(tmp_path, frame, monkeypatch):
    workbook(tmp_path / "table.xlsx", frame)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingDependencyError, match=r"unipercept\[excel\]"):
        read_grid(tmp_path / "table.xlsx")


def test_a_page_to_read_before_the_data_is_passed_over(tmp_path):
    path = tmp_path / "a.xlsx"
    with pd.ExcelWriter(path) as book:
        pd.DataFrame({"note": ["please read", "this"]}).to_excel(book, sheet_name="Info", index=False)
        days = pd.date_range("2024-01-01", periods=5)
        pd.DataFrame({"date": days, "value": range(5)}).to_excel(book, sheet_name="Data", index=False)
    frame, notes = read_frame(path)
    assert list(frame.columns) == ["date", "value"]
    assert any("sheet 'Data' of 2" in note for note in notes)
