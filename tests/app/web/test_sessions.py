"""Files belong to visitors, and go with them."""

import pytest

from unipercept.app.web import sessions
from unipercept.app.web.sessions import Sessions


@pytest.fixture
def kept(tmp_path):
    return Sessions(tmp_path, keep_seconds=100)


def made(kept, name: str):
    path = kept.folder / "hash" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("content")
    return path


def test_a_file_is_read_by_its_visitors_alone(kept):
    path = made(kept, "a.wav")
    assert not kept.may_read("ada", path)
    kept.own("ada", path)
    assert kept.may_read("ada", path)
    assert not kept.may_read("bob", path)
    kept.publish(made(kept, "example.wav"))
    assert kept.may_read("bob", kept.folder / "hash" / "example.wav")


def test_nothing_outside_the_folder_is_ever_owned(kept, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret"
    outside.write_text("secret")
    link = kept.folder / "link"
    link.symlink_to(outside)
    for path in (outside, link, kept.folder / ".." / "x", "/etc/passwd"):
        kept.own("ada", path)
        assert not kept.may_read("ada", path)


def test_a_visitor_who_left_loses_files_but_those_that_others_have_too(kept, monkeypatch):
    mine, ours = made(kept, "mine"), made(kept, "ours")
    kept.touch("ada", "page")
    for path in (mine, ours):
        kept.own("ada", path)
    kept.own("bob", ours)
    work = kept.new_folder("ada")
    (work / "result").write_text("x")
    kept.leave("ada", "page")
    kept.sweep()
    assert mine.exists()  # the page may only be loaded again
    monkeypatch.setattr(sessions, "GRACE_SECONDS", -1.0)
    kept.sweep()
    assert not mine.exists()
    assert ours.exists()
    assert not work.parent.exists()
    kept.close("bob")
    assert not ours.parent.exists()


def test_a_silent_visitor_is_forgotten_in_time(tmp_path):
    kept = Sessions(tmp_path, keep_seconds=-1.0)
    path = made(kept, "a")
    kept.own("ada", path)
    kept.sweep()
    assert not path.exists()


def test_a_visitor_with_nothing_is_forgotten_soon(kept, monkeypatch):
    kept.touch("passer-by")
    kept.touch("reader", "page")
    kept.own("sender", made(kept, "a"))
    kept.touch("worker")
    kept.new_folder("worker")
    kept.sweep()
    assert kept.counts()[0] == 4
    monkeypatch.setattr(sessions, "GRACE_SECONDS", -1.0)
    kept.sweep()
    assert kept.counts()[0] == 3


def test_what_an_address_has_sent_is_that_of_all_its_visitors(kept):
    for visitor, address in (("ada", "1"), ("bob", "1"), ("eve", "2")):
        kept.touch(visitor, address=address)
        kept.own(visitor, made(kept, visitor), sent=True)
    kept.own("ada", made(kept, "made"))
    assert kept.sent_bytes_from("1") == 2 * len("content")


def test_uploads_cut_short_are_swept(kept, monkeypatch):
    (kept.folder / "tmpabc").write_text("half")
    kept.sweep()
    assert (kept.folder / "tmpabc").exists()
    monkeypatch.setattr(sessions, "STRAY_SECONDS", -1.0)
    kept.sweep()
    assert not (kept.folder / "tmpabc").exists()
