"""What strangers try over plain HTTP: other people's files, other routes, names, sizes, addresses."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")

from unipercept.app.web.guard import COOKIE  # noqa: E402
from unipercept.app.web.options import AppOptions  # noqa: E402

WAIT_SECONDS = 30


@pytest.fixture
def visitor(server):
    """A browser's worth of cookies."""
    with httpx.Client(base_url=server.url, timeout=WAIT_SECONDS) as opened:
        opened.get("/config")
        yield opened


@pytest.fixture
def stranger(server):
    with httpx.Client(base_url=server.url, timeout=WAIT_SECONDS) as opened:
        opened.get("/config")
        yield opened


def send(visitor, name: str, data: bytes) -> str:
    """Upload; gives the path on the server."""
    answer = visitor.post("/gradio_api/upload", files={"files": (name, data)})
    assert answer.status_code == 200, answer.text
    return str(answer.json()[0])


def call(visitor, name: str, *arguments: object) -> tuple[str, str]:
    """An endpoint over plain HTTP: the last event and its data."""
    made = visitor.post(f"/gradio_api/call/{name}", json={"data": list(arguments)})
    assert made.status_code == 200, made.text
    text = visitor.get(f"/gradio_api/call/{name}/{made.json()['event_id']}").text
    events = re.findall(r"event: (\w+)\ndata: (.*)", text)
    return events[-1]


def file_data(path: str) -> dict[str, object]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def files_below(server) -> set[Path]:
    return {p for p in server.folder.rglob("*") if p.is_file()}


def test_another_sessions_file_is_refused_by_address_and_in_calls(visitor, stranger, recordings):
    path = send(visitor, "picture.png", recordings["picture"].read_bytes())
    assert visitor.get(f"/gradio_api/file={path}").status_code == 200
    for address in (f"/gradio_api/file={path}", f"/gradio_api/file/{path}", f"/gradio_api/file=%2F{path}"):
        assert stranger.get(address).status_code in (403, 404)
    event, data = call(stranger, "perceive", file_data(path), "auto", "default")
    assert (event, "not yours" in data) == ("error", True)
    event, data = call(visitor, "perceive", file_data(path), "auto", "default")
    assert (event, json.loads(data)[0]["modality"]) == ("complete", "image")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "/proc/self/environ",
        "http://127.0.0.1:1/x",
        "https:/x",
    ],
)
def test_files_of_the_machine_and_other_addresses_are_refused(visitor, path):
    assert visitor.get(f"/gradio_api/file={path}").status_code in (403, 404)
    event, data = call(visitor, "perceive", file_data(path), "auto", "default")
    assert event == "error"
    assert "not yours" in data or "on its way" in data


def test_a_call_that_names_an_address_is_refused(visitor):
    event, _ = call(
        visitor,
        "perceive",
        {"url": "http://127.0.0.1:1/x.wav", "path": "x", "meta": {"_type": "gradio.FileData"}},
        "auto",
        "default",
    )
    assert event == "error"


@pytest.mark.parametrize("value", [None, "x", [], {}, -1, 1e308, [[{"a": 1}]]])
@pytest.mark.parametrize(
    ("name", "count"),
    [("perceive", 3), ("compare", 2), ("search", 3), ("forecast", 5), ("weather", 9), ("train", 3), ("classify", 2)],
)
def test_values_that_an_action_does_not_take_are_one_line(visitor, name, count, value, capfd):
    event, data = call(visitor, name, *[value] * count)
    assert event == "error"
    line = json.loads(data)["error"]
    assert "\n" not in line
    assert "something broke" not in line
    assert "validation error" not in line
    assert "Traceback" not in capfd.readouterr().err


def test_a_number_that_is_none_is_one_line(visitor):  # Python reads NaN in JSON, and no limit of a slider stops it
    content = '{"data": [null, "1,2\\n3,4", [], NaN, 2]}'
    made = visitor.post("/gradio_api/call/forecast", content=content, headers={"Content-Type": "application/json"})
    text = visitor.get(f"/gradio_api/call/forecast/{made.json()['event_id']}").text
    assert "event: error" in text
    assert "Use via API" in text


def test_too_few_values_are_one_line(visitor):
    event, data = call(visitor, "perceive")
    assert (event, "Use via API" in json.loads(data)["error"]) == ("error", True)


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.png",
        "..\\evil.png",
        "/abs/evil.png",
        "a\x00b.png",
        "<img src=x onerror=alert(1)>.png",
        "a" * 300 + ".png",
    ],
)
def test_names_that_lead_elsewhere_stay_in_the_folder(server, visitor, recordings, name):
    answer = visitor.post("/gradio_api/upload", files={"files": (name, recordings["picture"].read_bytes())})
    if answer.status_code == 200:
        path = Path(answer.json()[0])
        assert path.resolve().is_relative_to(server.folder)
        assert not set(path.name) & set("<>/\\\x00")
    else:
        assert answer.status_code in (400, 500)


def test_an_upload_over_the_limit_is_refused_before_it_is_read_and_leaves_nothing(server, visitor):
    before = files_below(server)
    address = httpx.URL(server.url)
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {address.host}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    )
    with socket.create_connection((address.host, address.port), timeout=10) as raw:  # the body is never sent
        raw.sendall(f"{head}Content-Length: {2 << 30}\r\n\r\n".encode())
        answer = b""
        while b"15 MB" not in answer and (block := raw.recv(4096)):  # head and body may come apart
            answer += block
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"a file may have 3 MB, and all of yours 15 MB" in answer
    assert files_below(server) == before
    for size in (3_000_100, 9_000_000):
        assert visitor.post("/gradio_api/upload", files={"files": ("x.bin", bytes(size))}).status_code == 413
    chunked = visitor.post(
        "/gradio_api/upload", content=iter([b"--b\r\n"]), headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert (chunked.status_code, "say its length" in chunked.text) == (411, True)
    assert files_below(server) == before


def test_files_that_are_sent_together_have_the_limit_each(server, visitor):
    together = [("files", (f"{n}.bin", bytes([n]) * 2_900_000)) for n in range(3)]
    answer = visitor.post("/gradio_api/upload", files=together)
    assert (answer.status_code, len(answer.json())) == (200, 3)
    server.sessions.close(server.sessions.visitor(visitor.cookies[COOKIE]))


def test_a_visitor_cannot_fill_the_disk(server, stranger):
    statuses = [
        stranger.post("/gradio_api/upload", files={"files": (f"{n}.bin", bytes([n]) * 2_900_000)}).status_code
        for n in range(7)
    ]
    assert statuses[:4] == [200] * 4
    assert statuses[-1] == 413
    server.sessions.close(server.sessions.visitor(stranger.cookies[COOKIE]))
    assert not any(path.suffix == ".bin" for path in files_below(server))


def test_uploads_that_come_together_share_the_quota(server, stranger):
    def upload(number: int) -> int:
        sent = {"files": (f"{number}.bin", bytes([number]) * 2_900_000)}
        return int(stranger.post("/gradio_api/upload", files=sent).status_code)

    with ThreadPoolExecutor(12) as together:
        statuses = list(together.map(upload, range(12)))
    assert statuses.count(200) <= 5
    assert set(statuses) == {200, 413}
    server.sessions.close(server.sessions.visitor(stranger.cookies[COOKIE]))


def test_uploads_leave_room_on_the_disk(visitor, monkeypatch):
    monkeypatch.setattr("unipercept.app.web.guard.disk_usage", lambda folder: SimpleNamespace(free=500_000_010))
    answer = visitor.post("/gradio_api/upload", files={"files": ("x.bin", bytes(100))})
    assert (answer.status_code, "no room" in answer.text) == (507, True)


def test_an_address_leaves_others_half_of_the_room(server, visitor, stranger, monkeypatch):
    begun = server.sessions.sent_bytes_from("127.0.0.1")  # by other tests of this server
    monkeypatch.setattr(
        "unipercept.app.web.guard.disk_usage",
        lambda folder: SimpleNamespace(free=502_000_000 + 2 * begun - server.sessions.sent_bytes_from("127.0.0.1")),
    )
    statuses = [
        sender.post("/gradio_api/upload", files={"files": ("x.bin", bytes([n]) * 300_000)}).status_code
        for n, sender in enumerate([visitor, stranger] * 3)
    ]
    assert statuses[:2] == [200, 200]
    assert statuses[-1] == 507
    elsewhere = {"X-Forwarded-For": "192.0.2.1"}
    sent = stranger.post("/gradio_api/upload", files={"files": ("x.bin", bytes(300_000))}, headers=elsewhere)
    assert sent.status_code == 200
    for sender in (visitor, stranger):
        server.sessions.close(server.sessions.visitor(sender.cookies[COOKIE]))


def test_a_call_that_would_fill_the_memory_is_refused_before_it_is_read(server):
    address = httpx.URL(server.url)
    head = f"POST /gradio_api/call/forecast HTTP/1.1\r\nHost: {address.host}\r\nContent-Type: application/json\r\n"
    for said, status in ((f"Content-Length: {1 << 30}", b"413"), ("Transfer-Encoding: chunked", b"411")):
        with socket.create_connection((address.host, address.port), timeout=10) as raw:  # the body is never sent
            raw.sendall(f"{head}{said}\r\n\r\n".encode())
            assert raw.recv(4096).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    "route",
    [
        *(
            "/gradio_api/proxy=https://example.com",
            "/monitoring",
            "/gradio_api/deep_link?session_hash=x",
            "/docs",
            "/openapi.json",
        ),
        *(
            "/gradio_api/vibe-code",
            "/gradio_api/dev/reload",
            "/gradio_api/runs",
            "/gradio_api/stream/a/b/1/playlist.m3u8",
        ),
        *("/gradio_api/component_server", "/static/../../../etc/passwd", "/.git/config"),
    ],
)
def test_routes_that_the_page_does_not_need_are_not_there(visitor, route):
    assert visitor.get(route).status_code in (403, 404, 405)


def test_html_svg_and_polyglots_are_never_served_to_be_run(visitor):
    script = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    polyglot = b"GIF89a/*" + b"\x00" * 20 + b"*/=1;alert(1)"
    for name, data in (
        ("x.svg", script),
        ("x.html", b"<script>alert(1)</script>"),
        ("x.gif.html", polyglot),
        ("x.gif", polyglot),
    ):
        path = send(visitor, name, data)
        answer = visitor.get(f"/gradio_api/file={path}")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        is_picture = answer.headers["content-type"] == "image/gif"
        assert is_picture or answer.headers["content-disposition"].startswith("attachment")
        event, line = call(visitor, "perceive", file_data(path), "auto", "default")
        assert event == "error"
        assert "<script" not in line
        assert "\\n" not in line


def test_a_picture_that_is_a_zip_file_too_is_a_picture(server, visitor, recordings):
    path = send(visitor, "both.png", recordings["picture"].read_bytes() + recordings["classes"].read_bytes())
    before = len(files_below(server))  # gradio makes an empty file for each that it hands to a function
    event, data = call(visitor, "perceive", file_data(path), "auto", "default")
    assert (event, json.loads(data)[0]["modality"]) == ("complete", "image")
    assert len([path for path in files_below(server) if path.stat().st_size]) <= before  # nothing was unpacked


def test_html_in_a_cell_or_a_header_is_text(visitor):
    rows = "\n".join(f"2024-01-{d:02d},{d},<img src=x onerror=alert(1)>" for d in range(1, 29))
    path = send(visitor, "x.csv", f"date,<script>alert(1)</script>,b\n{rows}\n".encode())
    event, data = call(visitor, "forecast", file_data(path), "", [], 2, 2)
    if event == "complete":
        assert json.loads(data)[0]["variables"] == ["<script>alert(1)</script>"]  # JSON, which nobody draws
    from unipercept.app.web import charts, words

    drawn = charts.series(range(3), __import__("numpy").zeros((3, 1)), ["<script>alert(1)</script>"])
    assert "<script>" not in drawn.to_json()
    assert "<script>" not in words.table(["<script>"], [["<script>"]]) + words.facts(
        [("<script>", "<script>")]
    ) + words.bars([("<script>", 1.0)])


def test_nothing_is_left_of_what_was_refused_but_what_was_sent(server, visitor, tmp_path):
    import zipfile

    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/zeros", bytes(30_000_000))
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr("only/a.txt", "no recording")
    for name, line in (("bomb.zip", "more than is allowed"), ("one.zip", "")):
        path = send(visitor, name, (tmp_path / name).read_bytes())
        for _ in range(2):  # who mends another setting need not send it again
            event, said = call(visitor, "train", file_data(path), "head", 1)
            assert (event, line in said, "not yours" in said) == ("error", True, False)
    assert not any(name in str(p) for p in files_below(server) for name in ("zeros", "a.txt"))


def test_a_closed_page_takes_its_files_along(server, recordings, monkeypatch):
    from unipercept.app.web import sessions

    with httpx.Client(base_url=server.url, timeout=WAIT_SECONDS) as leaving:
        leaving.get("/config")
        path = send(leaving, "mine.png", recordings["picture"].read_bytes())
        with leaving.stream("GET", "/gradio_api/heartbeat/abc123") as beat:
            next(beat.iter_lines())
            assert Path(path).exists()
        monkeypatch.setattr(sessions, "GRACE_SECONDS", -1.0)
        for _ in range(200):
            server.sessions.sweep()
            if not Path(path).exists():
                break
            time.sleep(0.1)
    assert not Path(path).exists()


def test_an_example_stays_when_its_first_visitor_leaves(server):
    path = server.examples.get("A load (time series)").path
    server.sessions.own("somebody", path)  # it was shown to them
    server.sessions.close("somebody")
    assert path.exists()
    assert server.sessions.may_read("somebody else", path)


def test_health_and_metrics(visitor):
    found = visitor.get("/health").json()
    assert (found["status"], found["workers_lost"]) == ("ok", 0)
    text = visitor.get("/metrics").text
    assert "# TYPE unipercept_jobs_total counter" in text
    assert re.search(r"unipercept_resident_bytes \d", text)


def test_who_watches_the_server_is_no_visitor(server):
    visitors, _ = server.sessions.counts()
    assert [httpx.get(f"{server.url}{page}").status_code for page in ("health", "metrics")] == [200, 200]
    assert server.sessions.counts()[0] == visitors


def test_with_users_everything_but_health_wants_one(tmp_path, tiny_weather):
    from unipercept.app.demo import build

    built = build(AppOptions(port=0, auth=(("ada", "secret"),), root_path="/lab"))
    try:
        with httpx.Client(base_url=built.start(), timeout=WAIT_SECONDS) as opened:
            assert opened.get("/health").status_code == 200
            assert opened.get("/lab/health").status_code == 200  # a proxy that does not strip the path
            assert opened.get("/metrics").status_code == 401
            assert opened.get("/metrics", auth=("ada", "wrong")).status_code == 401
            assert opened.get("/metrics", auth=("ada", "secret")).status_code == 200
            assert opened.get("/config").status_code == 401
            assert opened.post("/gradio_api/call/models", json={"data": []}).status_code == 401
            assert opened.post("/gradio_api/upload", files={"files": ("x", b"x")}).status_code == 401
            assert opened.post("/login", data={"username": "ada", "password": "wrong"}).status_code == 400
            assert opened.post("/login", data={"username": "ada", "password": "secret"}).status_code == 200
            assert opened.get("/config").json()["root"].endswith("/lab")
    finally:
        built.close()
    assert not built.folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_server_that_is_told_to_stop_leaves_nothing(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "unipercept", "app", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        assert list(tmp_path.glob("unipercept-app-*"))
        process.terminate()
        process.wait(30)
    assert not list(tmp_path.iterdir())  # nor what gradio makes where it is not told
