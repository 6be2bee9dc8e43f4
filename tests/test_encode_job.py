"""The encode job: order, batching, resuming, bad files. A kill at any moment costs time, never a byte of the result."""

import errno
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import typer
from PIL import Image

from tests import apart
from unipercept import api
from unipercept import encode_chunk as chunk_module
from unipercept import encode_job as job_module
from unipercept.cli_parts import finish
from unipercept.encode_chunk import EncodedFile, EncodeSettings, FailedFile, content_hash, encode_chunk
from unipercept.encode_job import encode_files, list_inputs
from unipercept.errors import InputError, WeightsError
from unipercept.pipelines import batches


class PoolingModel:
    """A network quick enough for tests: means over a grid of cells. Counts what it is given."""

    name = "pooling"
    shapes: list[tuple[int, ...]]

    def __init__(self) -> None:
        self.shapes = []

    def features(self, maps: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(maps.shape))
        return torch.nn.functional.adaptive_avg_pool2d(maps.float(), 4).mean(1).flatten(1) + 0.01


class PoolingCard:
    dim, name, image_size, maps = 16, "pooling", 64, ""


@pytest.fixture
def model(monkeypatch):
    found = PoolingModel()
    monkeypatch.setattr(chunk_module, "load_model", lambda *_args, **_options: found)
    monkeypatch.setattr(chunk_module, "model_card", lambda _name: PoolingCard())
    monkeypatch.setattr(chunk_module, "model_for", lambda name, _modality: name)
    monkeypatch.setattr(job_module, "model_card", lambda _name: PoolingCard())
    monkeypatch.setattr(job_module, "fingerprint", lambda name: f"weights of {name}")
    return found


def make_tree(folder: Path, n_pictures: int = 10) -> Path:
    """Pictures in two folders, a hidden file, one that Windows leaves, and nothing else."""
    (folder / "b").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(n_pictures):
        pixels = rng.integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("b" if index % 2 else ".") / f"{index:02d}.png")
    (folder / ".hidden.png").write_bytes(b"not looked at")
    (folder / "Thumbs.db").write_bytes(b"what Windows leaves")
    return folder


@pytest.mark.usefixtures("model")
def test_a_single_path_is_one_input_not_its_letters(tmp_path, monkeypatch):
    tree = make_tree(tmp_path / "in", n_pictures=2)
    monkeypatch.chdir(tree)
    for inputs in ("00.png", Path("00.png"), ["00.png"]):
        summary = encode_files(inputs, tmp_path / "v.parquet", resume=True)
        assert (summary.n_files, summary.failures) == (1, ())
    (outcome,) = api.perceive_files("absent.png")
    assert outcome[0] == "absent.png"


def let_files_give(monkeypatch, maps):
    """Whatever a picture holds: the maps that `maps()` yields."""
    pipeline = chunk_module.pipeline_class("image")
    monkeypatch.setattr(pipeline, "read", lambda self, path: path)
    monkeypatch.setattr(pipeline, "split", lambda self, raw: maps())
    monkeypatch.setattr(pipeline, "embed", lambda self, piece: piece)


def vectors_of(output: Path) -> dict[str, bytes]:
    """Each part's bytes, and the table as a reader sees it."""
    return {part.name: part.read_bytes() for part in sorted(output.glob("part-*.parquet"))}


def test_the_output_is_one_table_in_the_order_of_the_files(model, tmp_path):
    tree = make_tree(tmp_path / "tree")
    summary = encode_files([tree], tmp_path / "v.parquet", files_per_part=3)
    table = pd.read_parquet(tmp_path / "v.parquet")
    assert list(table.columns) == ["path", "modality", "model", "content_hash", "vector", "n_maps"]
    expected = [str(tree / f"{i:02d}.png") for i in range(0, 10, 2)] + [str(tree / "b" / f"{i:02d}.png") for i in range(1, 10, 2)]  # fmt: skip
    assert table.path.tolist() == expected
    assert set(table.modality) == {"image"}
    assert set(table.model) == {"pooling"}
    assert (table.n_maps == 1).all()
    assert [np.linalg.norm(v) for v in table.vector] == pytest.approx([1] * 10, abs=1e-6)
    assert table.content_hash.tolist() == [content_hash(path) for path in expected]
    assert (summary.n_files, summary.n_encoded, summary.failures) == (10, 10, ())
    assert str(pq.read_schema(tmp_path / "v.parquet" / "part-00000.parquet").field("vector").type).startswith("fixed_size_list")  # fmt: skip


def test_vectors_of_an_earlier_job_are_no_recordings(model, tmp_path):
    tree = make_tree(tmp_path / "tree")
    encode_files([tree], tree / "a.parquet")
    assert encode_files([tree], tree / "b" / "b.parquet").n_files == 10  # 13 with its parts and records before
    pd.DataFrame({"x": [1.0, 2.0]}).to_parquet(tree / "table.parquet")
    assert len(list_inputs([tree])) == 11


def test_an_empty_name_is_not_the_folder_that_we_are_in(model, tmp_path, monkeypatch):
    monkeypatch.chdir(make_tree(tmp_path / "tree"))
    with pytest.raises(InputError, match="a file name is empty"):
        encode_files([""], tmp_path / "v.parquet")


def test_maps_of_one_shape_share_batches_across_files(model, tmp_path):
    tree = make_tree(tmp_path / "tree")
    encode_chunk(list_inputs([tree]), EncodeSettings(batch_size=4))
    assert [shape[0] for shape in model.shapes] == [4, 4, 2]


def test_a_vector_does_not_depend_on_threads_or_company(model, tmp_path):
    paths = list_inputs([make_tree(tmp_path / "tree")])
    alone = [encode_chunk([path], EncodeSettings())[0] for path in paths]
    for n_workers in (1, 2, 7):
        together = encode_chunk(paths, EncodeSettings(batch_size=3), n_workers=n_workers)
        for a, b in zip(alone, together, strict=True):
            assert isinstance(a, EncodedFile)
            assert isinstance(b, EncodedFile)
            torch.testing.assert_close(a.vector, b.vector, rtol=0, atol=1e-7)


def test_bad_files_are_listed_and_the_others_go_on(model, tmp_path):
    tree = make_tree(tmp_path / "tree")
    (tree / "01-empty.png").touch()
    (tree / "03-letter.wav").write_text("hello, a letter and no sound\n")
    (tree / "05-dead.png").symlink_to(tree / "gone")
    os.mkfifo(tree / "07-pipe.png")
    (tree / "09-cut.png").write_bytes((tree / "00.png").read_bytes()[:300])
    summary = encode_files([tree], tmp_path / "v.parquet")
    assert [Path(path).name for path, _ in summary.failures] == [
        "01-empty.png", "03-letter.wav", "05-dead.png", "07-pipe.png", "09-cut.png",
    ]  # fmt: skip
    assert all("\n" not in error for _, error in summary.failures)
    assert len(pd.read_parquet(tmp_path / "v.parquet")) == 10
    listed = json.loads((tmp_path / "v.parquet" / "_failures.json").read_text())
    assert [(item["path"], item["error"]) for item in listed] == list(summary.failures)


def test_a_chunk_without_one_good_file_is_still_a_part(model, tmp_path):
    (tmp_path / "a.png").touch()
    summary = encode_files([tmp_path / "a.png"], tmp_path / "v.parquet")
    assert len(summary.failures) == 1
    assert len(pd.read_parquet(tmp_path / "v.parquet")) == 0


def test_a_crash_inside_a_reader_is_that_files_failure_and_is_tried_again(model, tmp_path, monkeypatch):
    tree = make_tree(tmp_path / "tree", 4)
    pipeline = chunk_module.pipeline_class("image")
    read = pipeline.read

    def read_or_crash(self, path):
        if Path(path).name == "02.png":
            raise RuntimeError("the codec fell over")
        return read(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "read", read_or_crash)
        summary = encode_files([tree], tmp_path / "v.parquet")
    assert [error for _, error in summary.failures] == ["RuntimeError: the codec fell over"]
    assert encode_files([tree], tmp_path / "v.parquet", resume=True).failures == ()
    assert not (tmp_path / "v.parquet" / "_failures.json").exists()


def test_absent_weights_stop_the_job(model, tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise WeightsError("offline and not cached")

    monkeypatch.setattr(chunk_module, "load_model", refuse)
    with pytest.raises(WeightsError):
        encode_files([make_tree(tmp_path / "tree", 2)], tmp_path / "v.parquet")


def test_an_existing_output_is_left_alone_without_resume(model, tmp_path):
    tree = make_tree(tmp_path / "tree", 2)
    encode_files([tree], tmp_path / "v.parquet")
    before = vectors_of(tmp_path / "v.parquet")
    with pytest.raises(InputError, match="add --resume"):
        encode_files([tree], tmp_path / "v.parquet")
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not made by unipercept"):
        encode_files([tree], tmp_path / "other.parquet", resume=True)
    assert vectors_of(tmp_path / "v.parquet") == before
    assert (tmp_path / "other.parquet").read_bytes() == b"PAR1"


@pytest.mark.parametrize("output", ["v.csv", "v", "no/such/folder/v.parquet"])
def test_an_output_that_cannot_be_made_is_refused(model, tmp_path, output):
    with pytest.raises(InputError):
        encode_files([make_tree(tmp_path / "tree", 1)], tmp_path / output)


def test_resume_does_only_what_changed(model, tmp_path):
    tree = make_tree(tmp_path / "tree")
    output = tmp_path / "v.parquet"
    encode_files([tree], output, files_per_part=2)
    before = vectors_of(output)
    model.shapes.clear()
    assert encode_files([tree], output, files_per_part=2, resume=True).n_reused == 10
    assert model.shapes == []
    assert vectors_of(output) == before

    Image.new("RGB", (30, 30), "red").save(tree / "04.png")
    summary = encode_files([tree], output, files_per_part=2, resume=True)
    assert (summary.n_encoded, summary.n_reused) == (2, 8)
    changed = {name for name, content in vectors_of(output).items() if before[name] != content}
    assert changed == {"part-00001.parquet"}

    for name in ("07.png", "09.png"):
        (tree / "b" / name).unlink()
    encode_files([tree], output, files_per_part=2, resume=True)
    assert sorted(vectors_of(output)) == [f"part-{i:05d}.parquet" for i in range(4)]
    assert pd.read_parquet(output).path.tolist() == list_inputs([tree])


def test_resume_with_other_inputs_does_not_drop_the_first_ones(model, tmp_path):
    one, two, output = make_tree(tmp_path / "one", 2), make_tree(tmp_path / "two", 2), tmp_path / "v.parquet"
    encode_files([one], output)
    before = vectors_of(output)
    with pytest.raises(InputError, match="files that are not among these inputs"):
        encode_files([two], output, resume=True)
    assert vectors_of(output) == before
    encode_files([one, two], output, resume=True)
    assert pd.read_parquet(output).path.tolist() == list_inputs([one, two])


def test_resume_with_other_settings_is_refused(model, tmp_path):
    tree = make_tree(tmp_path / "tree", 2)
    encode_files([tree], tmp_path / "v.parquet")
    with pytest.raises(InputError, match="batch_size 32 before, 8 now"):
        encode_files([tree], tmp_path / "v.parquet", EncodeSettings(batch_size=8), resume=True)


def test_a_damaged_part_is_made_again(model, tmp_path):
    tree, output = make_tree(tmp_path / "tree"), tmp_path / "v.parquet"
    encode_files([tree], output, files_per_part=4)
    before = vectors_of(output)
    (output / "part-00001.parquet").write_bytes(before["part-00001.parquet"][:-9])
    (output / ".part-00002-12345678.parquet").write_bytes(b"left by a killed run")
    encode_files([tree], output, files_per_part=4, resume=True)
    assert vectors_of(output) == before
    assert not list(output.glob(".*"))


def test_inputs_keep_their_order_and_folders_are_searched_once(tmp_path):
    tree = make_tree(tmp_path / "tree", 4)
    (tree / "b" / "back").symlink_to(tree)
    (tree / "c.zarr").mkdir()
    (tree / "c.zarr" / "zarr.json").write_text("{}")
    names = [Path(path).relative_to(tree).as_posix() for path in list_inputs([tree / "02.png", tree])]
    assert names == ["02.png", "00.png", "b/01.png", "b/03.png", "c.zarr"]
    with pytest.raises(InputError, match="does not exist"):
        list_inputs([tree / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing to encode"):
        list_inputs([tmp_path / "empty"])


def test_the_output_inside_the_tree_is_not_encoded(model, tmp_path):
    tree = make_tree(tmp_path / "tree", 2)
    encode_files([tree], tree / "v.parquet", files_per_part=1)
    assert encode_files([tree], tree / "v.parquet", files_per_part=1, resume=True).n_reused == 2


def test_a_name_that_is_not_unicode_is_kept_readable(model, tmp_path):
    tree = make_tree(tmp_path / "tree", 2)
    odd = os.fsdecode(os.fsencode(tree) + b"/\xff.png")
    try:
        Path(odd).write_bytes((tree / "00.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes Unicode names alone")
    encode_files([tree], tmp_path / "v.parquet")
    assert any(path.endswith("\\xff.png") for path in pd.read_parquet(tmp_path / "v.parquet").path)
    assert encode_files([tree], tmp_path / "v.parquet", resume=True).n_reused == 3


@pytest.mark.parametrize("mode", [0o000, 0o100])
def test_a_folder_that_may_not_be_searched_is_one_failure_and_the_others_go_on(model, tmp_path, monkeypatch, mode):
    folder = make_tree(tmp_path / "photos", 4)
    if os.geteuid() == 0:  # whom no mode keeps out
        search, refused = os.scandir, PermissionError(errno.EACCES, "Permission denied")

        def scandir(path):
            if Path(path).name == "b":
                raise refused
            return search(path)

        monkeypatch.setattr(os, "scandir", scandir)
    else:
        (folder / "b").chmod(mode)
    try:
        summary = encode_files([folder], tmp_path / "v.parquet")
    finally:
        (folder / "b").chmod(0o755)
    assert summary.n_encoded == 3
    assert summary.failures == ((str(folder / "b"), f"cannot search the folder {folder / 'b'}: Permission denied"),)


def test_failures_of_odd_names_are_listed_one_a_line(model, tmp_path, capsys):
    """Bytes that are not UTF-8, line ends and escape sequences; the list is a JSON file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in (b"a\xff.png", b"b\n.png", b"c\x1b[31m.png", b"d" * 240 + b".png"):
        (folder / os.fsdecode(name)).write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    summary = encode_files([folder], tmp_path / "v.parquet")
    listed = json.loads((tmp_path / "v.parquet" / "_failures.json").read_text(encoding="utf-8"))
    assert [Path(one["path"]).name for one in listed[:3]] == ["a\\xff.png", "b\n.png", "c\x1b[31m.png"]
    assert "as a picture: " in listed[3]["error"]  # the reason is not cut off
    with pytest.raises(typer.Exit):
        finish(list(summary.failures))
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 4
    assert said.replace("\n", "").isprintable()


def test_long_inputs_never_wait_as_a_whole(model, tmp_path, monkeypatch):
    """Of a file with many maps only some are alive at a time."""
    from unipercept.embedding import EmbeddingMap

    alive, most = [0], [0]

    class Counted(torch.Tensor):
        def __del__(self) -> None:
            alive[0] -= 1

    def maps():
        for _ in range(200):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            yield EmbeddingMap(torch.rand(1, 3, 32, 32).as_subclass(Counted), "image")

    let_files_give(monkeypatch, maps)
    monkeypatch.setattr(chunk_module.pipeline_class("image"), "count", lambda self, raw: 200)
    shares = []
    (outcome,) = encode_chunk(
        [str(make_tree(tmp_path / "t", 1) / "00.png")], EncodeSettings(batch_size=8), on_share=shares.append
    )
    assert isinstance(outcome, EncodedFile)
    assert outcome.n_maps == 200
    assert shares == pytest.approx([n / 200 for n in range(1, 201)])
    assert most[0] < 200


def test_maps_count_by_their_share_of_real_input(model, tmp_path, monkeypatch):
    """As `Pipeline.encode` averages them: a window that is mostly padding says little."""
    from unipercept.embedding import EmbeddingMap
    from unipercept.pipelines.base import pool_vector

    tensors = torch.rand(2, 1, 3, 32, 32)
    mask = torch.arange(32)[None, None].expand(1, 32, 32) < 8

    def maps():
        yield EmbeddingMap(tensors[0], "image")
        yield EmbeddingMap(tensors[1], "image", mask=mask)

    let_files_give(monkeypatch, maps)
    (outcome,) = encode_chunk([str(make_tree(tmp_path / "t", 1) / "00.png")], EncodeSettings())
    assert isinstance(outcome, EncodedFile)
    whole = [
        (model.features(tensor), torch.tensor([weight])) for tensor, weight in zip(tensors, (1, 0.25), strict=True)
    ]
    torch.testing.assert_close(outcome.vector, pool_vector(whole))


def test_all_maps_go_when_too_many_numbers_wait(model, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_PENDING", 2 * 3 * 64 * 64)
    encode_chunk(list_inputs([make_tree(tmp_path / "tree")]), EncodeSettings(batch_size=100))
    assert [shape[0] for shape in model.shapes] == [3, 3, 3, 1]


def test_an_odd_input_gives_a_failed_file_with_its_reason(model, tmp_path):
    (outcome,) = encode_chunk([str(tmp_path / "absent.png")], EncodeSettings())
    assert isinstance(outcome, FailedFile)
    assert "does not exist" in outcome.error
    assert outcome.is_final


def test_a_kill_at_any_moment_and_resume_give_the_same_bytes(tmp_path):
    tree, said = make_tree(tmp_path / "tree", 12), tmp_path / "said.txt"

    def encode(output):
        return apart.start(
            apart.command_line, "encode", tree, "--files-per-part", "2", "--resume", "-o", output, said=said
        )

    undisturbed, output = tmp_path / "undisturbed.parquet", tmp_path / "v.parquet"
    assert apart.finish(encode(undisturbed)) == 0, said.read_text()
    for n_parts, delay_seconds in [(0, 0.0), (1, 0.03), (4, 0.11)]:
        process = encode(output)
        deadline = time.monotonic() + 60
        while (not output.exists() or len(vectors_of(output)) < n_parts) and time.monotonic() < deadline:
            assert process.is_alive(), "the run ended before the kill"
            time.sleep(0.005)
        time.sleep(delay_seconds)
        process.kill()
        apart.finish(process)
        assert all(pq.read_table(output / name).num_rows == 2 for name in vectors_of(output))  # readable at any time
    assert apart.finish(encode(output)) == 0, said.read_text()
    assert "were done before" in said.read_text()
    assert vectors_of(output) == vectors_of(undisturbed)


def test_ctrl_c_leaves_nothing_half_written_and_says_how_to_go_on(tmp_path):
    tree, output, said = make_tree(tmp_path / "tree", 120), tmp_path / "v.parquet", tmp_path / "said.txt"
    process = apart.start(apart.command_line, "encode", tree, "--files-per-part", "2", "-o", output, said=said)
    deadline = time.monotonic() + 60
    while not vectors_of(output) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    assert apart.finish(process, 60) == 130, said.read_text()
    assert f"Continue with: unipercept encode {tree}" in said.read_text()
    assert "--resume" in said.read_text()
    assert "Traceback" not in said.read_text()
    assert not list(output.glob(".*"))


def test_a_job_within_the_output_of_another_is_refused(model, tmp_path):
    tree, output = make_tree(tmp_path / "in", 2), tmp_path / "v.parquet"
    encode_files([tree], output)
    with pytest.raises(InputError, match="holds the vectors of another job"):
        encode_files([tree], output / "w.parquet")
