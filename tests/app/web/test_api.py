"""`gradio_client` calls every endpoint, once well and once badly."""

import time
from functools import partial

import numpy as np
import pytest

gradio_client = pytest.importorskip("gradio_client")
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

ENDPOINTS = {
    *("/perceive", "/compare", "/search", "/forecast", "/weather", "/train", "/classify"),
    *("/models", "/model_card", "/measure_speed"),
}


def refused(client: Client, *arguments: object, api_name: str) -> str:
    with pytest.raises(AppError) as caught:
        client.predict(*arguments, api_name=api_name)
    line = str(caught.value)
    assert "\n" not in line
    assert "/tmp" not in line
    return line


def test_every_action_has_a_name_that_one_can_guess(client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == ENDPOINTS


def test_perceive(client, recordings):
    found = client.predict(handle_file(str(recordings["picture"])), api_name="/perceive")
    assert (found["modality"], found["file"]) == ("image", "picture.png")
    assert np.linalg.norm(found["vector"]) == pytest.approx(1, abs=1e-5)
    assert found["map"]["axes"]["x"]["along"] == "W"
    assert found["labels"] or "no trained head" in found["note"] or found["note"]
    assert set(found["seconds"]) >= {"read", "embed", "network"}
    assert min(found["seconds"][step] for step in ("embed", "network")) > 0
    assert "broken.png" in refused(client, handle_file(str(recordings["broken"])), api_name="/perceive")
    assert "smell" in refused(client, handle_file(str(recordings["picture"])), "smell", api_name="/perceive")


def test_a_model_is_named_and_never_a_path(client, recordings):
    for name in ("/etc/passwd", "../../x.pth", "resnet"):
        assert "there is no model" in refused(
            client, handle_file(str(recordings["picture"])), "auto", name, api_name="/perceive"
        )
        assert "there is no model" in refused(client, name, api_name="/model_card")


def test_compare_and_search(client, recordings):
    files = [handle_file(str(recordings[name])) for name in ("picture", "dark", "load")]
    found = client.predict(files, api_name="/compare")
    assert found["files"] == ["picture.png", "dark.png", "load.csv"]
    assert np.allclose(np.diag(found["similarity"]), 1, atol=1e-5)
    assert np.shape(found["plane"]) == (3, 2)
    one_bad = client.predict([*files[:2], handle_file(str(recordings["broken"]))], api_name="/compare")
    assert [failure["file"] for failure in one_bad["failures"]] == ["broken.png"]
    assert "two files" in refused(client, files[:1], api_name="/compare")
    archive = handle_file(str(recordings["archive"]))
    near = client.predict(handle_file(str(recordings["dark"])), "zip", archive, api_name="/search")
    assert near[0]["file"] == "dark.png"
    assert near[0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert [hit["similarity"] for hit in near] == sorted((hit["similarity"] for hit in near), reverse=True)
    assert "zip file" in refused(client, handle_file(str(recordings["dark"])), "zip", None, api_name="/search")


def test_forecast(client, recordings):
    text = recordings["load"].read_text()
    found = client.predict(None, text, ["load"], 6, 2, api_name="/forecast")
    assert (len(found["time"]), found["variables"]) == (6, ["load"])
    assert found["values_checked"] > 0
    assert "paste one" in refused(client, None, "", [], 6, 2, api_name="/forecast")
    assert refused(client, handle_file(str(recordings["broken"])), "", [], 6, 2, api_name="/forecast")
    assert refused(client, None, text, ["<img src=x>"], 6, 2, api_name="/forecast")


def test_weather(client, recordings):
    found = client.predict(None, "z500", "", 1.5, 2, 2, 52, 13, False, api_name="/weather")
    assert found["lead_hours"] == [6.0 * k for k in range(1, 7)]
    assert [stage["name"] for stage in found["stages"]] == ["short", "medium"]
    assert set(found["rmse"]) == {"cascade", "persistence"}
    ours, theirs = (np.array(found["rmse"][name]) for name in ("cascade", "persistence"))
    assert np.allclose(found["skill"]["persistence"], 1 - (ours / theirs) ** 2, atol=1e-5)
    assert len(found["plume"]["members"]) == 2
    assert "no channel" in refused(client, None, "q999", "", 1, 1, 1, 52, 13, False, api_name="/weather")
    assert refused(client, handle_file(str(recordings["broken"])), "", "", 1, 1, 1, 52, 13, False, api_name="/weather")


def test_a_forecast_from_a_file_says_what_was_left_out_of_it(client, recordings, tmp_path):
    xr = pytest.importorskip("xarray")
    with xr.open_dataset(recordings["fields"]) as whole:
        seam = whole.isel(longitude=[0]).assign_coords(longitude=[360.0])
        xr.concat([whole, seam], "longitude").to_netcdf(tmp_path / "seam.nc")
    found = client.predict(
        handle_file(str(tmp_path / "seam.nc")), "", "", 0.5, 1, 1, 52, 13, False, api_name="/weather"
    )
    assert found["notes"] == ["the same meridian came twice (0 and 360 degrees); the second is left out"]


def test_weather_against_a_climatology(client, recordings, monkeypatch, tmp_path):
    """Of a file that holds a year; without a file, of a year that is made once for all (here on the tiny grid)."""
    from tests.app.forecaster.conftest import waves
    from tests.app.web.works import predict_with_a_year
    from unipercept.app.web import weather_tab

    waves(4 * 366).to_netcdf(tmp_path / "year.nc")
    asked = ("z500", "", 1.0, 1, 1, 52, 13, True)
    fields = handle_file(str(recordings["fields"]))
    assert "whole year" in refused(client, fields, *asked, api_name="/weather")
    monkeypatch.setattr(weather_tab, "predict_json", partial(predict_with_a_year, year=tmp_path / "year.nc"))
    found = client.predict(None, *asked, api_name="/weather")
    assert set(found["rmse"]) == {"cascade", "persistence", "climatology"}
    assert all(value is not None for value in found["rmse"]["climatology"])
    assert set(found["skill"]) == {"persistence", "climatology"}


def test_train_and_classify(server, client, recordings, tmp_path):
    found, files = client.predict(handle_file(str(recordings["classes"])), "network", 2, api_name="/train")
    assert found["classes"] == ["bright", "dark"]
    names = {path.rsplit("/", 1)[1] for path in files}
    assert names == {f"classes-run{end}" for end in (".zip", "-model.safetensors", "-report.html", "-scores.json")}
    named = client.predict(handle_file(str(recordings["dark"])), found["run"], api_name="/classify")
    assert {pair["label"] for pair in named["labels"]} == {"bright", "dark"}
    assert "no such run" in refused(client, handle_file(str(recordings["dark"])), "../../etc", api_name="/classify")
    stranger = Client(server.url, verbose=False)
    assert "no such run of yours" in refused(
        stranger, handle_file(str(recordings["dark"])), found["run"], api_name="/classify"
    )
    text = tmp_path / "text.zip"
    text.write_text("no archive")
    assert "is not a zip file" in refused(client, handle_file(str(text)), "head", 2, api_name="/train")
    assert "all" in refused(client, handle_file(str(recordings["classes"])), "all", 2, api_name="/train")


def test_models(client):
    cards = client.predict(api_name="/models")
    assert {"name", "trained_on", "limits", "here"} <= set(cards[0])
    assert client.predict(api_name="/model_card")["architecture"]
    assert client.predict("unireplknet_a", api_name="/measure_speed")["one_map_seconds"] > 0


def test_a_stuck_decoder_gives_its_place_to_others(recordings, tmp_path, monkeypatch):
    """With one place for all, and a decoder that never ends."""
    from tests.app.web.works import analyse_or_hang
    from unipercept.app.demo import build
    from unipercept.app.web import perceive_tab
    from unipercept.app.web.options import AppOptions

    monkeypatch.setattr(perceive_tab, "analyse_json", analyse_or_hang)
    monkeypatch.setattr("unipercept.app.web.workers.GRACE_SECONDS", 0.5)
    (tmp_path / "stuck.png").write_bytes(recordings["picture"].read_bytes())
    options = AppOptions(port=0, concurrency=1, job_seconds=3)
    built = build(options)
    try:
        url = built.start()
        waiting = Client(url, verbose=False).submit(handle_file(str(tmp_path / "stuck.png")), api_name="/perceive")
        for _ in range(600):
            if built.workers._all and not built.workers._idle:  # it is at work
                break
            time.sleep(0.05)
        object.__setattr__(options, "job_seconds", 120)  # for the next, whose process has to start first
        found = Client(url, verbose=False).predict(handle_file(str(recordings["picture"])), api_name="/perceive")
        assert found["modality"] == "image"
        with pytest.raises(AppError, match="took more than 3 s"):
            waiting.result()
        for _ in range(100):
            if built.workers.facts()["workers_lost"] == 1:
                return
            time.sleep(0.1)
        raise AssertionError("the process of the stuck decoder was not ended")
    finally:
        built.close()
