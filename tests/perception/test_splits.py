"""Which recordings train and which judge: copies of a file never do both unsaid."""

import numpy as np
import pytest

from unipercept.datasets.esc import ESC10
from unipercept.errors import InputError
from unipercept.perception.run import check_unseen
from unipercept.perception.splits import PARTS, first_copies, n_that_trained, open_parts, record


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


def test_a_folder_that_has_grown_keeps_the_split_of_its_run(tmp_path):
    """Drawn anew, seven of nine test recordings had trained the run."""
    folder, run = (
        folder_of(tmp_path / "set", {name: [f"{name}{i}".encode() for i in range(20)] for name in "ab"}),
        tmp_path,
    )
    before, how = open_parts(str(folder))
    record(before, how, run)
    for i in range(20, 40):
        (folder / "a" / f"{i:02d}.bin").write_bytes(f"a{i}".encode())
    gone = before["test"].ids[0]
    (folder / gone).unlink()
    after, _ = open_parts(str(folder), run=run)
    assert {part: set(after[part].ids) for part in PARTS} == {part: {*before[part].ids} - {gone} for part in PARTS}
    assert all(contents_of(after[part]) <= contents_of(before[part]) for part in ("train", "validation"))
    others = folder_of(tmp_path / "others", {name: [f"{name}{i}".encode() for i in range(20)] for name in "cd"})
    assert open_parts(str(others), run=run)[1] == "70/15/15 drawn by class, seed 0"  # none of them is in the record


@pytest.mark.parametrize("name", ["set", "renamed"])
def test_a_training_that_starts_from_a_run_tests_on_nothing_that_trained_it(tmp_path, name):
    """Drawn anew, test would hold recordings that trained the run. A line said so, but not of a renamed folder."""
    contents = {c: [f"{c}{i}".encode() for i in range(20)] for c in "ab"}
    before, how = open_parts(str(folder_of(tmp_path / "set", contents)))
    record(before, how, tmp_path)
    if name == "renamed":
        (tmp_path / "set").rename(tmp_path / name)
    for i in range(20, 60):
        (tmp_path / name / "a" / f"{i:02d}.bin").write_bytes(f"a{i}".encode())
    copy = before["test"].ids[0]
    (tmp_path / name / "a" / "00 copy.bin").write_bytes((tmp_path / name / copy).read_bytes())
    parts, how = open_parts(str(tmp_path / name), seed=5, start=tmp_path)
    assert all(set(before[part].ids) <= set(parts[part].ids) for part in PARTS)
    assert "a/00 copy.bin" in parts["test"].ids  # though it comes before its original
    assert {part: int(np.sum(parts[part].targets == 0)) for part in ("validation", "test")} == {
        "validation": 9,
        "test": 10,
    }
    assert how.startswith(f"40 recordings stay in the parts that {tmp_path.name} had them in, 41 new ones are drawn")


def test_what_is_wrong_with_a_split_is_said_with_it(tmp_path):
    contents = {c: [f"{c}{i}".encode() for i in range(n)] for c, n in (("a", 20), ("b", 20), ("rare", 2))}
    contents["b"][3] = b"a7"
    _, how = open_parts(str(folder_of(tmp_path, contents)))
    assert "1 copy of a file stays on the side of the original; 1 of them in another class than the original" in how
    assert how.endswith("too few recordings to test rare")


def test_classes_of_two_leave_no_test_part(tmp_path):
    contents = {name: [f"{name}{i}".encode() for i in range(2)] for name in "ab"}
    parts, how = open_parts(str(folder_of(tmp_path, contents)))
    assert {name: len(part) for name, part in parts.items()} == {"train": 2, "validation": 2}
    assert how.endswith("too few recordings to test any class")


def esc10_of(root):
    """ESC-10's folders and names, a recording a class and fold, without any sound."""
    for number, name in enumerate(ESC10.class_names, 1):
        folder = root / f"{number:03d}_{name.replace(' ', '_')}"
        folder.mkdir(parents=True)
        for fold in range(1, 6):
            for take in range(3):
                (folder / f"{fold}-{number}{fold}{take}-A.ogg").write_bytes(b"sound")
    return root


def test_a_run_is_evaluated_on_its_own_fold_and_on_no_other(tmp_path):
    """Without --fold the first fold judged a run that it had trained."""
    data, run = esc10_of(tmp_path / "esc10"), tmp_path
    trained, how = open_parts("esc10", data, fold="2")
    record(trained, how, run)
    assert open_parts("esc10", data, run=run)[0]["test"].ids == trained["test"].ids
    assert n_that_trained(run, trained["test"]) == 0
    other = open_parts("esc10", data, fold="1", run=run)[0]["test"]
    assert n_that_trained(run, other) == len(other) == 30


def test_universal_is_evaluated_on_the_fold_that_it_has_not_seen(tmp_path):
    data = esc10_of(tmp_path)
    check_unseen("universal", open_parts("esc10", data)[0]["test"])
    for model in ("universal", "universal.fsdd"):  # one backbone
        with pytest.raises(InputError, match="30 of the 30 recordings of esc10, fold-3, trained universal"):
            check_unseen(model, open_parts("esc10", data, fold="3")[0]["test"])


def test_copies_in_a_train_folder_do_not_validate_it_too(tmp_path):
    folder_of(tmp_path / "train", {name: [f"{name}{i % 4}".encode() for i in range(12)] for name in "ab"})
    folder_of(tmp_path / "test", {name: [f"{name} new {i}".encode() for i in range(2)] for name in "ab"})
    for seed in range(5):
        parts, _ = open_parts(str(tmp_path), seed=seed)
        assert not contents_of(parts["train"]) & contents_of(parts["validation"])
