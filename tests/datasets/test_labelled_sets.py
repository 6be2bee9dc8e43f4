"""Published layouts: the recordings that are here read for real, the others from small files laid out as published."""

import csv
import hashlib
import http.server
import json
import sys
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from unipercept.datasets import LABELLED_SETS, labelled_set, set_card
from unipercept.datasets.base import SetFile
from unipercept.datasets.fetch import fetch
from unipercept.datasets.folders import class_folders, split_folders
from unipercept.errors import InputError, WeightsError


@pytest.mark.parametrize("name", LABELLED_SETS)
def test_every_card_states_source_licence_splits_and_layout(name):
    card = set_card(name)
    assert card.name == name
    assert all((card.source, card.licence, card.splits, card.protocol, card.layout, card.modality))
    assert not (card.may_train and "not stated" in card.licence)
    assert card.licence in card.to_text()


@pytest.mark.parametrize(
    "name", [n for n in LABELLED_SETS if n not in ("shapes3d", "things3d", "camera_motion", "processes")]
)
def test_a_folder_without_the_set_is_refused_in_one_line(name, tmp_path):
    with pytest.raises(InputError, match=name.split("1")[0].split("4")[0][:5]) as caught:
        labelled_set(name, tmp_path, set_card(name).splits[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LABELLED_SETS)
def test_an_unknown_split_is_refused(name, tmp_path):
    with pytest.raises(InputError):
        labelled_set(name, tmp_path, "holiday")


def test_fashion_mnist_has_the_published_counts_and_mean(shared_data):
    folder = shared_data / "fashion_mnist"
    train, test = labelled_set("fashion_mnist", folder, "train_all"), labelled_set("fashion_mnist", folder, "test")
    assert (len(train), len(test)) == (60_000, 10_000)
    assert Counter(test.targets.tolist()) == dict.fromkeys(range(10), 1_000)
    pictures = np.stack([train[i].input[..., 0] for i in range(0, 60_000, 30)]) / 255
    assert abs(pictures.mean() - train.card.statistics["train_mean"]) < 0.005
    parts = [labelled_set("fashion_mnist", folder, split).ids for split in ("train", "validation")]
    assert parts[0] + parts[1] == train.ids


def test_fsdd_splits_by_take_and_by_speaker(shared_data):
    parts = {s: labelled_set("fsdd", shared_data / "fsdd", s) for s in ("train", "validation", "test", "only-theo")}
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 2100,
        "validation": 300,
        "test": 300,
        "only-theo": 450,
    }
    assert not set(parts["train"].ids) & set(parts["test"].ids)
    sound, target, name = parts["test"][7]
    assert sound.sample_rate == 8000
    assert sound.samples.dtype == np.float32
    assert name.startswith(str(target))
    assert set(parts["only-theo"].groups) == {"theo"}


def test_esc10_folds_share_no_recording(shared_data):
    folder = shared_data / "esc10"
    train, test = labelled_set("esc10", folder, "train-2"), labelled_set("esc10", folder, "fold-2")
    assert (len(train), len(test)) == (240, 80)
    assert not set(train.groups) & set(test.groups)
    assert test.card.class_names[test.targets[0]] in test.ids[0].replace("_", " ")
    assert len(test[0].input.samples) > 44_100


def test_dales_and_bimnet_hold_metres_and_the_published_counts(shared_data):
    dales = labelled_set("dales_objects", shared_data / "dales_objects", "train")
    assert Counter(dales.targets.tolist()) == {0: 59, 1: 60, 2: 60, 3: 60, 4: 60}
    assert dales[0].input.shape == (2048, 3)
    bimnet = labelled_set("bimnet10", shared_data / "bimnet10", "test")
    assert (len(bimnet), bimnet[0].input.shape) == (51, (2048, 3))


def test_cifar_bytes_become_pictures(tmp_path):
    row = bytes([3]) + bytes([10]) * 1024 + bytes([20]) * 1024 + bytes([30]) * 1024
    (tmp_path / "test_batch.bin").write_bytes(row * 2)
    found = labelled_set("cifar10", tmp_path, "test")
    assert (len(found), found[1].target) == (2, 3)
    assert (found[0].input == np.array([10, 20, 30])).all()
    (tmp_path / "test_batch.bin").write_bytes(row + b"x")
    with pytest.raises(InputError, match="whole rows"):
        labelled_set("cifar10", tmp_path, "test")


def test_speech_commands_follow_the_published_lists(tmp_path):
    for word in ("yes", "no"):
        (tmp_path / word).mkdir()
        for speaker in ("a1", "b2", "c3"):
            (tmp_path / word / f"{speaker}_nohash_0.wav").write_bytes(b"RIFF")
    (tmp_path / "validation_list.txt").write_text("yes/a1_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("no/b2_nohash_0.wav\n")
    sizes = {
        split: len(labelled_set("speech_commands_v2", tmp_path, split)) for split in ("train", "validation", "test")
    }
    assert sizes == {"train": 4, "validation": 1, "test": 1}
    assert labelled_set("speech_commands_v2", tmp_path, "test").groups == ("b2",)


def test_imagenet_folders_and_video_lists(tmp_path):
    for name in ("n02", "n01"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "a.JPEG").write_bytes(b"x")
    pictures = labelled_set("imagenet1k", tmp_path, "val")
    assert pictures.card.class_names == ("n01", "n02")
    assert pictures.ids == ("n01/a.JPEG", "n02/a.JPEG")
    for name in ("clip.mp4", "two words, one clip.mp4"):
        (tmp_path / name).write_bytes(b"x")
    for separator in (" ", ","):
        lines = [
            f"{name}{separator}{label}\n"
            for name, label in (("clip.mp4", 1), ("gone.mp4", 0), ("two words, one clip.mp4", 0))
        ]
        (tmp_path / "val.csv").write_text("".join(lines))
        clips = labelled_set("kinetics400", tmp_path, "val")
        assert (clips.ids, clips.targets.tolist()) == (("clip.mp4", "two words, one clip.mp4"), [1, 0])


def test_ucf_something_and_audioset_lists(tmp_path):
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 Bowling\n")
    (lists / "testlist01.txt").write_text("Bowling/v_Bowling_g01_c01.avi\n")
    clips = labelled_set("ucf101", tmp_path, "test-1")
    assert (clips.targets.tolist(), clips.groups) == ([1], ("UCF-101/Bowling/v_Bowling_g01",))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "labels.json").write_text(json.dumps({"Folding something": "0"}))
    (tmp_path / "labels" / "train.json").write_text(json.dumps([{"id": "7", "template": "Folding [something]"}]))
    assert labelled_set("something_something_v2", tmp_path, "train").targets.tolist() == [0]
    with (tmp_path / "class_labels_indices.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["index", "mid", "display_name"], [0, "/m/a", "Speech"], [1, "/m/b", "Dog"]])
    (tmp_path / "eval_segments.csv").write_text('# made\nxyz, 0.0, 10.0, "/m/b,/m/a"\n')
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "xyz.wav").write_bytes(b"x")
    assert labelled_set("audioset", tmp_path, "eval").targets.tolist() == [[1, 1]]


def test_modelnet_as_meshes_and_as_text(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "off" / "chair" / split).mkdir(parents=True)
        (tmp_path / "off" / "chair" / split / "chair_0001.off").write_text("OFF\n")
    assert labelled_set("modelnet40", tmp_path / "off", "test").ids == ("chair_0001",)
    (tmp_path / "txt" / "night_stand").mkdir(parents=True)
    (tmp_path / "txt" / "modelnet10_test.txt").write_text("night_stand_0001\n")
    (tmp_path / "txt" / "night_stand" / "night_stand_0001.txt").write_text("1,2,3,0,0,1\n4,5,6,0,0,1\n")
    clouds = labelled_set("modelnet10", tmp_path / "txt", "test")
    assert clouds[0].input.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert clouds.card.class_names[clouds.targets[0]] == "night_stand"


def folder_of(root, **counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.wav").write_bytes(b"x")
    return root


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_linked_folders_are_followed_but_not_back_up(tmp_path):
    for name in ("set/a", "set/b", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(2):
            (tmp_path / name / f"{i}.bin").write_bytes(b"x")
    (tmp_path / "set/a/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/a/self").symlink_to(tmp_path / "set/a")
    (tmp_path / "set/b/up").symlink_to(tmp_path / "set")  # would bring the files of a into b
    found = class_folders(tmp_path / "set")
    assert found.ids == ("a/0.bin", "a/1.bin", "a/more/0.bin", "a/more/1.bin", "b/0.bin", "b/1.bin")


def test_a_folder_of_class_folders_is_a_set(tmp_path):
    root = folder_of(tmp_path, cat=3, dog=2)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "_notes.txt"):
        (root / "cat" / name).touch()
    found = class_folders(root)
    assert found.card.class_names == ("cat", "dog")
    assert found.targets.tolist() == [0, 0, 0, 1, 1]
    assert found[4].input == tmp_path / "dog" / "1.wav"
    assert found.subset([4, 0]).ids == ("dog/1.wav", "cat/0.wav")
    assert not split_folders(tmp_path)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"cat": 3}, "1 class folder;"),
        ({"cat": 3, "dog": 0}, "'dog' .* is empty"),
        ({"cat": 3, "dog": 1}, "'dog' .* has one recording"),
        ({"cat": 3, "Cat": 3}, "differ in case"),
    ],
)
def test_a_folder_that_cannot_train_is_refused_in_one_line(tmp_path, counts, expected):
    folder_of(tmp_path, **counts)
    with pytest.raises(InputError, match=expected) as caught:
        class_folders(tmp_path)
    assert "\n" not in str(caught.value)


CONTENT = bytes(range(256)) * 8_000


class Publisher(http.server.BaseHTTPRequestHandler):
    """Sends CONTENT; `cut` breaks the first answer off."""

    cut = 0
    ranges: list = []  # noqa: RUF012 - shared by all requests on purpose

    def do_GET(self):
        start = int(self.headers["Range"][6:-1]) if self.headers.get("Range") else 0
        Publisher.ranges.append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        stop, Publisher.cut = (Publisher.cut or len(CONTENT)), 0
        self.wfile.write(CONTENT[start:stop])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def publisher(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Publisher)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("UNIPERCEPT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    Publisher.cut, Publisher.ranges = 0, []
    yield f"http://127.0.0.1:{server.server_port}/set.tar"
    server.shutdown()
    server.server_close()


def test_a_set_is_fetched_resumed_checked_and_kept(publisher, tmp_path, monkeypatch):
    monkeypatch.setattr("unipercept.download.time.sleep", lambda _seconds: None)
    digest = hashlib.sha256(CONTENT).hexdigest()
    card = replace(set_card("fsdd"), files=(SetFile("set.tar", digest, publisher),))
    Publisher.cut = 100_000
    assert fetch(card, tmp_path)[0].read_bytes() == CONTENT
    assert Publisher.ranges == [0, 100_000]
    fetch(card, tmp_path)
    assert len(Publisher.ranges) == 2
    wrong = replace(card, files=(SetFile("set.tar", "0" * 64, publisher),))
    with pytest.raises(WeightsError, match="SHA-256"):
        fetch(wrong, tmp_path)
    with pytest.raises(InputError, match="no public address"):
        fetch(set_card("dales_objects"), tmp_path)
    monkeypatch.setenv("UNIPERCEPT_OFFLINE", "1")
    (tmp_path / "set.tar").unlink()
    with pytest.raises(WeightsError, match="downloads are off"):
        fetch(card, tmp_path)
    assert len(Publisher.ranges) == 3  # the wrong checksum had asked once more
