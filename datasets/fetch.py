"""Download a published set on request: resumed after an interruption, checked, and moved into place as a whole."""

from __future__ import annotations

import json
from pathlib import Path

from unipercept.atomic import atomic_path
from unipercept.datasets.base import SetCard
from unipercept.download import Progress, fetch_url, sha256_of
from unipercept.errors import InputError

CHECKSUMS = "checksums.json"  # what was found at the first download, of files whose publisher states none


def fetch(card: SetCard, folder: str | Path, progress: Progress | None = None) -> list[Path]:
    """Every file of the set that has a public address, in `folder`; what is there and right is kept.

    Raises:
        InputError: the set has no public address.
        WeightsError: offline, not found, cut off too often, or of another checksum.
    """
    wanted = [file for file in card.files if file.url]
    if not wanted:
        raise InputError(f"{card.name} has no public address to fetch from; get it from {card.source}: {card.layout}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    recorded = _recorded(folder)
    paths = []
    for file in wanted:
        target = folder / file.name
        expected = file.sha256 or recorded.get(file.name, "")
        if not (target.is_file() and expected and sha256_of(target) == expected):
            fetch_url(file.url, target, sha256=expected or None, progress=progress)
        recorded[file.name] = sha256_of(target)
        with atomic_path(folder / CHECKSUMS) as temporary:
            temporary.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
        paths.append(target)
    return paths


def _recorded(folder: Path) -> dict[str, str]:
    try:
        content = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}
