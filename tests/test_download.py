"""Downloads against a server on this machine: whole, resumed, checked, cached, and not at all when offline."""

import hashlib
import http.server
import threading

import pytest

from unipercept import weights
from unipercept.download import cache_folder, cached_path, fetch_file, record_of
from unipercept.errors import WeightsError
from unipercept.model_cards import model_card, with_record

CONTENT = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers like a model hub: a redirect that announces the hash, then the bytes; `cut`
    breaks the first answer off.
    """

    announced = SHA256
    commit = "abc123"
    cut = 0
    requests: list = []  # noqa: RUF012 - shared by all requests on purpose

    def do_GET(self):
        Hub.requests.append((self.path, self.headers.get("Range")))
        if "absent" in self.path:
            self.send_error(404)
            return
        if "/resolve/" in self.path:
            self.send_response(302)
            self.send_header("Location", "/blob")
            self.send_header("X-Linked-ETag", f'"{Hub.announced}"')
            self.send_header("X-Repo-Commit", Hub.commit)
            self.end_headers()
            return
        start = int(self.headers["Range"][6:-1]) if self.headers.get("Range") else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        stop, Hub.cut = (Hub.cut or len(CONTENT)), 0
        self.wfile.write(CONTENT[start:stop])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("UNIPERCEPT_HUB", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("UNIPERCEPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UNIPERCEPT_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    Hub.announced, Hub.commit, Hub.cut, Hub.requests = SHA256, "abc123", 0, []
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_file_is_downloaded_once_and_then_comes_from_the_cache(hub):
    seen = []
    path = fetch_file("owner/model", "w.pth", revision="v1", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert path == cache_folder() / "owner--model" / "v1" / "w.pth"
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    count = len(hub.requests)
    assert fetch_file("owner/model", "w.pth", revision="v1") == path
    assert len(hub.requests) == count
    with pytest.raises(WeightsError, match="damaged or was changed"):
        fetch_file("owner/model", "w.pth", revision="v1", sha256="0" * 64)
    assert (record_of(path)["commit"], record_of(path)["sha256"]) == ("abc123", SHA256)


def test_a_cut_download_goes_on_where_it_stopped(hub):
    hub.cut = 1_000_000
    seen = []
    path = fetch_file("owner/model", "w.pth", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {len(CONTENT)}
    assert any(asked == "bytes=1000000-" for _, asked in hub.requests)
    assert not list(path.parent.glob(".*"))


def test_a_part_of_a_longer_file_is_thrown_away(hub, monkeypatch):
    monkeypatch.setattr("unipercept.download.time.sleep", lambda seconds: None)
    path = cached_path("owner/model", "w.pth", "main")
    path.parent.mkdir(parents=True)
    path.with_name(".w.pth.part").write_bytes(CONTENT + b"more")
    assert fetch_file("owner/model", "w.pth").read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_leaves_nothing(hub):
    hub.announced = "0" * 64
    with pytest.raises(WeightsError, match="damaged or was changed") as caught:
        fetch_file("owner/model", "w.pth")
    assert "\n" not in str(caught.value)
    assert not list((cache_folder() / "owner--model" / "main").iterdir())


def test_a_cached_file_that_changes_is_refused(hub):
    path = fetch_file("owner/model", "w.pth")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match="damaged or was changed"):
        fetch_file("owner/model", "w.pth")
    path.unlink()
    assert fetch_file("owner/model", "w.pth").read_bytes() == CONTENT


def test_a_file_that_changes_on_the_hub_is_refused_until_its_record_is_deleted(hub):
    path = fetch_file("owner/model", "w.pth")
    record = path.with_name("w.pth.json")
    path.unlink()
    record.write_text(record.read_text().replace(SHA256, "1" * 64))  # as if another file had come first
    with pytest.raises(WeightsError, match=r"no longer what was first fetched.*commit abc123.*delete .*w\.pth\.json"):
        fetch_file("owner/model", "w.pth")
    assert not path.exists()
    record.unlink()
    assert fetch_file("owner/model", "w.pth") == path


def test_a_file_put_there_by_hand_is_recorded_when_it_is_first_used(hub):
    path = cached_path("owner/model", "w.pth", "main")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"by hand")
    assert fetch_file("owner/model", "w.pth") == path
    assert record_of(path)["sha256"] == hashlib.sha256(b"by hand").hexdigest()
    path.write_bytes(b"by another hand")
    with pytest.raises(WeightsError, match="damaged or was changed"):
        fetch_file("owner/model", "w.pth")
    assert not hub.requests


def test_a_commit_that_is_asked_for_is_the_one_that_answers(hub):
    wanted = "0123456789" * 4
    with pytest.raises(WeightsError, match="answered with commit abc123"):
        fetch_file("owner/model", "w.pth", revision=wanted)
    hub.commit = wanted
    assert record_of(fetch_file("owner/model", "w.pth", revision=wanted))["commit"] == wanted


def test_the_card_of_a_published_model_names_revision_commit_and_hash(hub):
    name = "unireplknet_a.in1k_224@v1"
    assert weights.fetch(name) == cached_path(weights.REPOSITORY, "unireplknet_a_in1k_224_acc77.03.pth", "v1")
    assert hub.requests[0][0].startswith(f"/{weights.REPOSITORY}/resolve/v1/")
    card = with_record(model_card(name))
    assert (card.name, card.commit, card.sha256) == (name, "abc123", SHA256)
    assert "revision v1" in card.to_text()
    assert SHA256 in card.to_text()
    other = with_record(model_card("unireplknet_a.in1k_224"))  # main, which is not here
    assert (other.commit, other.sha256) == ("", "")


def test_a_file_that_is_not_there_says_how_to_get_it_by_hand(hub):
    with pytest.raises(WeightsError, match=r"404.*by hand"):
        fetch_file("owner/model", "absent.pth")


def test_offline_the_cache_serves_and_nothing_is_asked(hub, monkeypatch):
    path = fetch_file("owner/model", "w.pth")
    monkeypatch.setenv("UNIPERCEPT_OFFLINE", "1")
    count = len(hub.requests)
    assert fetch_file("owner/model", "w.pth") == path
    with pytest.raises(WeightsError, match="downloads are off"):
        fetch_file("owner/model", "other.pth")
    assert len(hub.requests) == count


def test_a_server_that_is_not_there_is_one_line(hub, monkeypatch):
    monkeypatch.setenv("UNIPERCEPT_HUB", "http://127.0.0.1:9")
    monkeypatch.setattr("unipercept.download.ATTEMPTS", 1)
    with pytest.raises(WeightsError, match="cannot download"):
        fetch_file("owner/model", "w.pth")
