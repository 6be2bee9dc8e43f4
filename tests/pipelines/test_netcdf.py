"""NetCDF from several threads, files given up while others are read, and groups."""

import gc
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from unipercept.errors import InputError
from unipercept.pipelines.netcdf import open_netcdf

pytest.importorskip("netCDF4")
xr = pytest.importorskip("xarray")


def _field(value: float) -> "xr.Dataset":
    latitude, longitude = np.arange(80.0, -81, -20), np.arange(0.0, 360, 30)
    shape = (2, len(latitude), len(longitude))
    return xr.Dataset(
        {"t2m": (("time", "latitude", "longitude"), np.full(shape, value, np.float32)), "name": ("n", ["a", "b"])},
        coords={"time": [0, 1], "latitude": latitude, "longitude": longitude},
    )


def test_many_files_are_read_by_many_threads(tmp_path):
    """In a process of its own: where the C library is entered by two threads, that one dies."""
    for i in range(60):
        _field(i).to_netcdf(tmp_path / f"{i:02d}.nc")
    program = textwrap.dedent(
        """
        import sys
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from unipercept.pipelines.netcdf import open_netcdf

        def mean(path):
            return float(open_netcdf(path)[0]["t2m"].mean())

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(mean, sorted(Path(sys.argv[1]).glob("*.nc")))) == list(range(60))
        """
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_file_is_read_after_other_datasets_of_it_are_gone(tmp_path):
    _field(3).to_netcdf(tmp_path / "a.nc")
    kept = open_netcdf(tmp_path / "a.nc")[0]["t2m"]
    gc.collect()
    assert float(kept.mean()) == 3


def test_file_may_be_written_again_once_nobody_holds_it(tmp_path):
    path = tmp_path / "a.nc"
    for value in (1, 2):
        _field(value).to_netcdf(path)
        assert float(open_netcdf(path)[0]["t2m"].mean()) == value
        gc.collect()


def test_groups_are_found_however_deep(tmp_path: Path):
    _field(1).to_netcdf(tmp_path / "a.nc", group="model/run")
    root, groups = open_netcdf(tmp_path / "a.nc")
    assert not root.sizes
    assert list(groups) == ["/model", "/model/run"]
    assert float(groups["/model/run"]["t2m"].mean()) == 1


@pytest.mark.parametrize("form", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"])
@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_classic_file_that_was_cut_short_is_refused_wherever_it_was_cut(tmp_path, form, is_recorded):
    """The C library would read zeros where values are missing, and an empty file where the header is."""
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(tmp_path / "whole.nc", "w", format=form) as file:
        file.title = "a field"
        file.createDimension("time", None if is_recorded else 3)
        file.createDimension("x", 5)
        file.createVariable("count", "i2", ("time", "x"))[:] = np.arange(15).reshape(3, 5)
        file.createVariable("level", "f4", ("x",))[:] = np.arange(5)
        file.createVariable("value", "f8", ("time", "x"))[:] = np.arange(15).reshape(3, 5)
    whole = (tmp_path / "whole.nc").read_bytes()
    assert open_netcdf(tmp_path / "whole.nc")[0]["value"].values[2, 4] == 14
    for length in (4, 5, 30, 100, len(whole) // 2, len(whole) - 9, len(whole) - 4):
        (tmp_path / "cut.nc").write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut short"):
            open_netcdf(tmp_path / "cut.nc")
