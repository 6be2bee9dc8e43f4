"""Where tests find recorded arrays and real recordings. What is absent is skipped with its reason."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def _shared(part: str) -> Path:
    """Recordings and goldens lie beside the checkout, or where UNIPERCEPT_SHARED says."""
    root = Path(os.environ.get("UNIPERCEPT_SHARED", REPOSITORY.parent / "shared")) / part
    if not root.is_dir():
        pytest.skip(f"no {part} recordings at {root}; set UNIPERCEPT_SHARED to the folder that holds '{part}'")
    return root


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real recordings (see its README for licences)."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Folder with all recorded reference arrays."""
    return _shared("golden")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The subset of recorded reference arrays that is committed."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture(scope="session")
def open3d() -> Any:
    """open3d as the program loads it: by itself it finds only a libusb of the system."""
    from unipercept.errors import MissingDependencyError
    from unipercept.open3d_library import load_open3d

    try:
        return load_open3d()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture
def short_spin_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """`unipercept weather generate` starts after 2 days of the model instead of 120: seconds instead of a minute,
    for tests that need no weather.
    """
    from unipercept.app.forecaster import generate

    monkeypatch.setattr(generate, "GenerateConfig", partial(generate.GenerateConfig, spin_up_days=2))
