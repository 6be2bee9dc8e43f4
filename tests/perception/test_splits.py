"""Which recordings train and which judge: copies of a file never do both unsaid."""

import numpy as np

from unipercept.perception.splits import first_copies, open_parts


def folder_of(root, contents):
    """Files of the given bytes: {"a": [b"1", b"2"], ...} by class."""
    for name, files in contents.items():
        (root / name).mkdir(parents=True)
        for number, content in enumerate(files):
            (root / name / f"{number:02d}.bin").write_bytes(content)
    return root


def contents_of(part):
    return {part.read(i).read_bytes() for i in range(len(part))}


def test_copies_are_found_by_their_bytes_not_by_name_or_size(tmp_path):
    folder = folder_of(tmp_path, {"a": [b"one", b"two", b"one", b"three", b"", b""]})
    assert first_copies(sorted((folder / "a").iterdir())).tolist() == [0, 1, 0, 3, 4, 4]


def test_copies_of_a_file_are_in_one_part(tmp_path):
    """Twelve downloads of four pictures a class: drawn one by one, each would train and be judged."""
    folder = folder_of(tmp_path, {name: [f"{name}{i % 4}".encode() for i in range(12)] for name in "ab"})
    for seed in range(5):
        parts, how = open_parts(str(folder), seed=seed)
        apart = [contents_of(part) for part in parts.values()]
        assert sum(map(len, apart)) == len(set.union(*apart)) == 8
        assert sum(map(len, parts.values())) == 24
        assert "16 copies of files stay on the side of the original" in how


def test_files_without_copies_are_drawn_as_ever(tmp_path):
    folder = folder_of(tmp_path, {name: [f"{name}{i}".encode() for i in range(20)] for name in "ab"})
    parts, how = open_parts(str(folder), seed=3)
    rng, taken = np.random.default_rng(3), []
    for start in (0, 20):
        taken += sorted((start + rng.permutation(20))[:3].tolist())
    ids = [f"{name}/{i:02d}.bin" for name in "ab" for i in range(20)]
    assert list(parts["validation"].ids) == [ids[i] for i in sorted(taken)]
    assert how == "70/15/15 drawn by class, seed 3"


def test_a_test_folder_with_training_files_is_told(tmp_path):
    folder_of(tmp_path / "train", {name: [f"{name}{i}".encode() for i in range(4)] for name in "ab"})
    folder_of(tmp_path / "test", {"a": [b"a0", b"new"], "b": [b"other", b"b1"]})
    _, how = open_parts(str(tmp_path))
    assert "2 of the 4 test files are copies of training files" in how
