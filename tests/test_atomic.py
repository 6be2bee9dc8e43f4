"""Files appear whole or not at all."""

import errno
import os
import shutil

import pytest

from unipercept.atomic import atomic_path
from unipercept.errors import InputError


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_temporary_name_keeps_the_suffix_and_is_hidden(tmp_path):
    with atomic_path(tmp_path / "map.nc") as temporary:
        assert temporary.suffix == ".nc"
        assert temporary.name.startswith(".")
        temporary.write_text("x")
    assert (tmp_path / "map.nc").read_text() == "x"


def test_a_folder_replaces_a_folder(tmp_path):
    target = tmp_path / "map.zarr"
    target.mkdir()
    (target / "old").write_text("old")
    with atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert [p.name for p in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_never_replaces_a_folder(tmp_path):
    target = tmp_path / "table.csv"
    target.mkdir()
    (target / "kept").write_text("kept")
    with pytest.raises(InputError, match="a folder has this name"), atomic_path(target) as temporary:
        temporary.write_text("new")
    assert (target / "kept").read_text() == "kept"
    assert list(tmp_path.iterdir()) == [target]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"), atomic_path(tmp_path / "absent" / "x.json"):
        pass


def test_a_file_may_be_read_by_those_who_may_read_new_ones(tmp_path):
    (tmp_path / "usual").touch()
    with atomic_path(tmp_path / "weights.safetensors") as temporary:
        temporary.touch(mode=0o600)  # as safetensors makes its files
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("number", "line"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "Read-only")])
def test_a_full_or_read_only_disk_is_said_in_a_line_and_nothing_is_left(tmp_path, number, line):
    with pytest.raises(InputError, match=line), atomic_path(tmp_path / "map.nc") as temporary:
        temporary.write_bytes(b"half")
        raise OSError(number, os.strerror(number))
    assert not list(tmp_path.iterdir())


def test_an_error_of_a_library_on_a_full_disk_is_said_in_a_line(tmp_path, monkeypatch):
    """torch, safetensors and netCDF4 raise their own kinds, in words that say nothing of the disk."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(InputError, match="the disk is full"), atomic_path(tmp_path / "map.nc"):
        raise RuntimeError("NetCDF: HDF error")
    with pytest.raises(InputError, match="no times"), atomic_path(tmp_path / "map.nc"):
        raise InputError("no times")
    assert not list(tmp_path.iterdir())
