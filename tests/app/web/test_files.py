"""Hostile archives are refused in one line, and leave nothing on disk."""

import errno
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from unipercept.app.web.files import MAX_ENTRIES, unpack
from unipercept.errors import InputError

MEGABYTE = 1_000_000


def zipped(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def named(path: Path, name: str, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, "content")
    return path


def refused(archive: Path, folder: Path, limit: int = MEGABYTE) -> str:
    """The line; nothing may be left, inside the folder or beside it."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(InputError) as caught:
        unpack(archive, folder, limit)
    assert sorted(folder.parent.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_class_folders_are_unpacked_and_an_outer_folder_is_left_out(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for name in ("birds/owl/1.wav", "birds/wren/1.wav", "__MACOSX/x", "birds/owl/.DS_Store"):
            opened.writestr(name, name)
    top = unpack(archive, tmp_path / "out", MEGABYTE)
    assert sorted(str(p.relative_to(top)) for p in top.rglob("*") if p.is_file()) == ["owl/1.wav", "wren/1.wav"]


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/evil", "..\\evil", "C:\\evil", "a\x07b", "a/b/c/d/e/f/g/h"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    assert "leads out of it" in refused(named(tmp_path / "a.zip", name), tmp_path / "out")


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644])
def test_links_and_devices_are_refused(tmp_path, mode):
    assert "link or a device" in refused(named(tmp_path / "a.zip", "a/link", mode), tmp_path / "out")


def test_a_zip_bomb_is_refused_before_it_is_opened(tmp_path):
    bomb = zipped(tmp_path / "a.zip", **{"a/zeros": bytes(40 * MEGABYTE)})
    assert bomb.stat().st_size < MEGABYTE / 10
    assert "more than is allowed" in refused(bomb, tmp_path / "out", 100 * MEGABYTE)


def test_a_directory_that_lies_about_sizes_is_found_out_while_writing(tmp_path):
    bomb = zipped(tmp_path / "a.zip", **{"a/zeros": bytes(5 * MEGABYTE)})
    data = bytearray(bomb.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, central + 24, 10)  # uncompressed size
    bomb.write_bytes(data)
    refused(bomb, tmp_path / "out")


def test_too_many_files_empty_archives_and_other_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(MAX_ENTRIES + 1):
            archive.writestr(f"a/{number}", "")
    assert "at most" in refused(tmp_path / "many.zip", tmp_path / "out")
    assert "empty" in refused(zipped(tmp_path / "none.zip"), tmp_path / "out")
    (tmp_path / "text.zip").write_text("no archive")
    assert "is not a zip file" in refused(tmp_path / "text.zip", tmp_path / "out")
    cut = zipped(tmp_path / "cut.zip", **{"a/1": bytes(range(256)) * 40})
    cut.write_bytes(cut.read_bytes()[:-30])
    refused(cut, tmp_path / "out")


def test_two_entries_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/1", "one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/1", "two")
    refused(tmp_path / "a.zip", tmp_path / "out")


def test_a_damaged_stream_and_a_full_disk_are_one_line_each_and_leave_nothing(tmp_path, monkeypatch):
    archive = tmp_path / "sounds.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("cat/a.wav", bytes(range(256)) * 200)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:45] + b"\xff" * 15 + whole[60:])  # inside the compressed data
    with pytest.raises(InputError, match=r"sounds\.zip is not a zip file that can be read"):
        unpack(archive, tmp_path / "out", MEGABYTE)
    assert not (tmp_path / "out").exists()

    archive.write_bytes(whole)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("unipercept.app.web.files._write", full)
    with pytest.raises(InputError, match=r"no room on this machine to unpack sounds\.zip; send a smaller one"):
        unpack(archive, tmp_path / "out", MEGABYTE)
    assert not (tmp_path / "out").exists()
