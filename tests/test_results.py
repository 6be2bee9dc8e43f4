"""Results: what is refused, and that each form that is saved holds the same numbers."""

import json
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from unipercept.errors import InputError
from unipercept.page import page
from unipercept.results import Anomalies, Embedding, Forecast, Labels
from unipercept.results.anomalies import MAX_KINDS_SHOWN
from unipercept.results.drawing import png

LABELS = Labels(("cat", "dog", "owl"), (0.7, 0.2, 0.1), "a.jpg", "image", "m")
VECTOR = Embedding(torch.nn.functional.normalize(torch.arange(8.0), dim=0), "a.jpg", "image", "m")


def make_forecast() -> Forecast:
    time = np.arange("2024-01-04", "2024-01-07", dtype="datetime64[D]").astype("datetime64[ns]")
    past = np.arange("2024-01-01", "2024-01-04", dtype="datetime64[D]").astype("datetime64[ns]")
    values = np.arange(6.0).reshape(3, 2)
    return Forecast(
        time,
        values,
        ("load", "heat"),
        "s.csv",
        "m",
        past,
        values - 6,
        {0.1: values - 1, 0.9: values + 1},
        truth=values + 0.5,
    )


@pytest.mark.parametrize("result", [LABELS, VECTOR, make_forecast()], ids=["labels", "embedding", "forecast"])
@pytest.mark.parametrize("suffix", ["json", "csv", "parquet", "nc", "zarr", "png"])
def test_every_result_saves_in_every_form(tmp_path, result, suffix):
    if suffix in ("nc", "zarr"):
        pytest.importorskip({"nc": "netCDF4", "zarr": "zarr"}[suffix])
    path = result.save(tmp_path / f"result.{suffix}")
    assert path.exists()
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_the_font_lacks_is_drawn_without_a_word(tmp_path, recwarn):
    Labels(("猫",), (1.0,), "猫.jpg", "image", "a model").save(tmp_path / "cat.png")
    assert png(replace(make_forecast(), variables=("気温", "heat")).plot("気温")).startswith(b"\x89PNG")
    assert not recwarn.list


def test_dates_under_a_picture_do_not_touch():
    """Four weeks to 2 March: ticks every fourth day, and none on the 29th, a day before the first of March."""
    time = np.arange("2024-02-02", "2024-03-03", dtype="datetime64[D]").astype("datetime64[ns]")
    values = np.zeros((2, 1))
    result = Forecast(
        time[-2:], values, ("x",), "x.csv", "m", history_time=time[:-2], history=np.zeros((len(time) - 2, 1))
    )
    figure = result.plot()
    figure.canvas.draw()
    texts = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert "Mar" in texts
    assert "29" not in texts


def test_an_unknown_suffix_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="suffix must be one of"):
        LABELS.save(tmp_path / "x.docx")
    assert not list(tmp_path.iterdir())


def test_saved_tables_hold_the_numbers(tmp_path):
    forecast = make_forecast()
    table = pd.read_csv(forecast.save(tmp_path / "f.csv"))
    assert table["load_q0.9"].tolist() == [1.0, 3.0, 5.0]
    vector = pd.read_parquet(VECTOR.save(tmp_path / "v.parquet"))["vector"][0]
    assert np.array_equal(vector, VECTOR.vector.numpy())
    labels = json.loads(LABELS.save(tmp_path / "l.json").read_text())
    assert labels["labels"][0] == {"label": "cat", "score": 0.7}


def test_top_keeps_the_most_probable():
    assert LABELS.top(2).labels == ("cat", "dog")


def test_scores_out_of_order_are_refused():
    with pytest.raises(InputError, match="falling order"):
        Labels(("a", "b"), (0.1, 0.9), "x", "image", "m")
    with pytest.raises(InputError, match="a score for each label"):
        Labels(("a",), (0.5, 0.5), "x", "image", "m")


def test_similarity_needs_one_model():
    assert VECTOR.similarity(VECTOR) == pytest.approx(1)
    with pytest.raises(InputError, match="different models"):
        VECTOR.similarity(Embedding(VECTOR.vector, "b", "image", "other"))


def test_forecast_refuses_crossing_quantiles_and_wrong_shapes():
    good = make_forecast()
    with pytest.raises(InputError, match="must not cross"):
        Forecast(good.time, good.values, good.variables, "s", "m", quantiles={0.1: good.values + 1, 0.9: good.values})
    with pytest.raises(InputError, match="must be 3x1"):
        Forecast(good.time, good.values, ("load",), "s", "m")
    with pytest.raises(InputError, match="was not forecast"):
        good.quantile(0.5)


def test_html_escapes_the_source():
    html = Labels(("<b>",), (1.0,), "<script>", "image", "m")._repr_html_()
    assert "<script>" not in html
    assert "<b>" not in html


def anomalies(variables, size):
    """Odd values of three series of 20 steps, at steps 0, 1, 2 ..."""
    steps = np.arange(len(variables))
    value = np.ones(len(variables))
    return Anomalies(
        time=steps, variable=tuple(variables), value=value, expected=0 * value, low=-value / 2, high=value / 2,
        size=np.asarray(size, float), source="load.csv", model="linear forecast", series_time=np.arange(20),
        series=np.arange(60.0).reshape(20, 3), variables=("a", "b", "c"),
        metadata={"kinds": [{"variable": name, "kind": "trend", "score": 0.9, "model": "m", "n_steps": 20} for name in "abc"]},
    )  # fmt: skip


def test_anomalies_are_told_in_their_order_and_drawn_for_the_series_with_the_worst():
    found = anomalies(["a", "c", "c"], [4.0, 9.0, 3.0])
    first, *lines = found.to_text().splitlines()
    assert "20 steps of 3 series" in first
    assert [line.split()[1] for line in lines[:3]] == ["a", "c", "c"]
    assert "distance 9.0" in lines[1]
    assert len(found.top(1)) == 1
    assert found.to_dataframe()["size"].tolist() == [4.0, 9.0, 3.0]
    figure = found.plot()
    assert [axis.get_ylabel() for axis in figure.axes] == ["c", "a"]
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), found.series[:, 2])


def test_nothing_odd_is_said_and_the_first_series_drawn():
    found = anomalies([], [])
    assert found.to_text().startswith("load.csv (timeseries): nothing stands out in 20 steps of 3 series")
    assert [axis.get_ylabel() for axis in found.plot().axes] == ["a"]


def test_kinds_of_more_series_than_fit_are_counted():
    found = anomalies([], [])
    kinds = [{**found.metadata["kinds"][0], "variable": f"v{i}"} for i in range(MAX_KINDS_SHOWN + 2)]
    assert replace(found, metadata={"kinds": kinds}).to_text().endswith("… 2 more with --json")


def test_a_forecast_in_a_terminal_says_its_interval_and_what_it_leaves_out():
    def text(steps, count):
        values = np.ones((steps, count))
        quantiles = {0.1: values - 0.5, 0.9: values + 0.25}
        names = tuple(f"v{i}" for i in range(count))
        return Forecast(np.arange(steps), values, names, "load.csv", "linear", quantiles=quantiles).to_text()

    assert text(2, 1).splitlines()[1:] == [
        "             v0  80 % interval",
        "  0           1  0.5 to 1.25",
        "  1           1  0.5 to 1.25",
    ]
    assert text(6, 1).endswith("  … 1 more step")
    assert text(8, 9).endswith("  … 3 more steps, 3 more variables")


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet", "nc", "png"])
def test_dollars_and_odd_bytes_in_names_are_kept_as_they_are(tmp_path, suffix):
    r"""Two dollars enclose no formula (`$x_$` would be a wrong one); a byte that is not UTF-8 is written as \xff."""
    if suffix == "nc":
        pytest.importorskip("netCDF4")
    odd = replace(LABELS, labels=("US$ in A$_", "$x_$", "owl"), source=os.fsdecode(b"$x_$ \xff.jpg"))
    path = odd.save(tmp_path / f"result.{suffix}")
    if suffix in ("json", "csv"):
        text = path.read_text(encoding="utf-8").replace("\\\\", "\\")
        assert "US$ in A$_" in text
        assert "$x_$ \\xff.jpg" in text


def test_a_page_can_be_written_whatever_the_name_of_the_file():
    written = page(os.fsdecode(b"\xff.csv"), os.fsdecode(b"<p>\xfe</p>"), "").encode()
    assert b"<h1>\\xff.csv</h1><p>\\xfe</p>" in written


def test_the_name_of_a_file_cannot_write_on_a_terminal():
    assert replace(LABELS, source="a\x1b[31m\nb.jpg").to_text().startswith("a\\x1b[31m\\nb.jpg (image")
    named = replace(LABELS, labels=("new\nline", *LABELS.labels[1:]))
    assert named.to_text().count("\n") == LABELS.to_text().count("\n")
