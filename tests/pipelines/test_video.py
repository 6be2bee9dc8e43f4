"""Video: which frame is taken, that folding is undone exactly, and that damaged files end in one line."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unipercept.errors import InputError
from unipercept.pipelines.video import Clip, VideoConfig, VideoPipeline, fold, frame_times, unfold
from unipercept.pipelines.video_readers import open_video

av = pytest.importorskip("av")
CONTAINERS = {"mp4": "mpeg4", "mov": "mpeg4", "avi": "mpeg4", "mkv": "mpeg4", "webm": "libvpx", "flv": "flv"}


def write_clip(path, codec="mpeg4", n_frames=30, rate=10, size=(96, 64), pts=None, pixel_aspect=None, **options):
    """A clip whose frame i has the brightness 40 + 6 i all over. `options` are the container's."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        stream.codec_context.gop_size = 10
        stream.codec_context.max_b_frames = 2 if codec in ("libx264", "mpeg2video") else 0
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for i in range(n_frames):
            picture = np.full((size[1], size[0], 3), 40 + 6 * i, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = i if pts is None else pts[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def index_of(frame) -> int:
    return round((float(frame.mean()) - 40) / 6)


@pytest.mark.parametrize(
    ("suffix", "reader"), [(s, "pyav") for s in CONTAINERS] + [(s, "decord") for s in ("mp4", "mkv")]
)
def test_the_frame_shown_at_a_time_is_read(tmp_path, suffix, reader):
    pytest.importorskip("av" if reader == "pyav" else "decord")
    video = open_video(write_clip(tmp_path / f"clip.{suffix}", CONTAINERS[suffix]), reader)
    times = [0.0, 0.05, 0.75, 1.5, 2.05, 2.95]
    assert [index_of(f) for f in video.frames_at(times)] == [0, 0, 7, 15, 20, 29]
    assert video.duration == pytest.approx(3.0, abs=0.11)
    video.close()


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("ts", "libx264"), ("ts", "mpeg2video"), ("avi", "libx264"), ("mkv", "libx264"), ("h264", "libx264")],
)
def test_streams_that_start_late_reorder_frames_or_say_no_times_give_the_frame_shown(tmp_path, suffix, codec):
    path = write_clip(
        tmp_path / f"clip.{suffix}", codec, n_frames=35, rate=25, pts=range(50, 85) if suffix == "mkv" else None
    )
    middles = [(i + 0.5) / 25 for i in range(35)]
    video = open_video(path)
    assert video.duration == pytest.approx(35 / 25, abs=0.09)
    assert [index_of(f) for f in video.frames_at(middles)] == list(range(35))
    assert [index_of(f) for t in reversed(middles) for f in video.frames_at([t])] == list(reversed(range(35)))


def test_a_live_recording_that_says_no_duration_has_that_of_its_packets(tmp_path):
    path = write_clip(tmp_path / "live.webm", "libvpx", live="1")
    with av.open(str(path)) as container:
        assert container.duration is None
    assert open_video(path).duration == pytest.approx(3.0, abs=0.11)


@pytest.mark.parametrize("suffix", ["ts", "avi"])
def test_decord_is_not_trusted_with_files_that_it_reads_wrong(tmp_path, suffix):
    pytest.importorskip("decord")
    with pytest.raises(InputError, match="decord reads wrong frames"):
        open_video(
            write_clip(tmp_path / f"clip.{suffix}", "mpeg2video" if suffix == "ts" else "mpeg4", rate=25), "decord"
        )


@pytest.mark.parametrize(
    ("aspect", "width", "height"), [(2, 192, 64), (Fraction(1, 2), 48, 64), (40, 96, 64), (None, 96, 64)]
)
def test_pixels_that_are_not_square_are_stretched(tmp_path, aspect, width, height):
    video = open_video(write_clip(tmp_path / "clip.mkv", "libx264", n_frames=3, pixel_aspect=aspect))
    assert (video.width, video.height) == (width, height)
    assert video.frames_at([0.0])[0].shape == (height, width, 3)


def test_uneven_frame_times_are_sampled_by_time(tmp_path):
    pts = [0, 1, 2, 3, 20, 21, 22, 40]  # in tenths of a second
    video = open_video(write_clip(tmp_path / "uneven.mkv", n_frames=8, pts=pts), "pyav")
    assert [index_of(f) for f in video.frames_at([0.0, 0.35, 1.9, 2.0, 3.9, 4.0])] == [0, 3, 3, 4, 6, 7]


def test_a_long_jump_gives_the_same_frames_as_reading_through(tmp_path):
    path = write_clip(tmp_path / "long.mp4", n_frames=35, rate=1)
    jumping, through = open_video(path, "pyav"), open_video(path, "pyav")
    assert [index_of(f) for f in jumping.frames_at([1.5, 12.5, 30.5])] == [1, 12, 30]
    assert [index_of(f) for f in through.frames_at([i + 0.5 for i in range(35)])] == list(range(35))


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), height=st.integers(1, 4), width=st.integers(1, 5))
def test_folding_is_exactly_inverted(rows, columns, height, width):
    video = torch.randn(2, 3, rows * columns, height * columns, width)
    for folding in ("grid", "strip"):
        folded = fold(video, folding, rows)
        assert folded.shape == (2, 3, rows * height * columns, columns * width)
        assert torch.equal(unfold(folded, folding, rows, rows * columns), video)
    stacked = fold(video, "stack", 1)
    assert torch.equal(stacked[:, 3:6], video[:, :, 1] if rows * columns > 1 else stacked[:, 3:6])
    assert torch.equal(unfold(stacked, "stack", 1, rows * columns), video)


def test_strip_is_the_released_reshape():
    video = torch.randn(2, 3, 16, 8, 5)
    assert torch.equal(fold(video, "strip", 4), video.contiguous().reshape(2, 3, 32, 20))


def test_grid_puts_frame_t_in_its_tile():
    video = torch.arange(6.0).reshape(1, 1, 6, 1, 1).expand(1, 1, 6, 2, 2)
    assert fold(video, "grid", 2)[0, 0, ::2, ::2].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("folding", ["grid", "strip", "stack"])
def test_a_video_becomes_a_map_whose_frames_are_in_order(tmp_path, folding):
    pipe = VideoPipeline(VideoConfig(size=32, folding=folding))
    (emap,) = pipe.maps(write_clip(tmp_path / "clip.mp4", n_frames=32))
    assert emap.tensor.shape == ((1, 48, 32, 32) if folding == "stack" else (1, 3, 128, 128))
    frames = unfold(emap.tensor, folding, 4, 16)[0].mean(dim=(0, 2, 3))
    assert (frames.diff() > 0).all()
    middles = [0.1 + 0.2 * i for i in range(16)]
    assert emap.metadata["frame_seconds"] == pytest.approx(middles, abs=0.01)
    assert list(frame_times(0, 3.2, 16)) == pytest.approx(middles)


def test_a_long_recording_is_cut_into_segments_in_order(tmp_path):
    pipe = VideoPipeline(VideoConfig(size=32, segment_seconds=1.0))
    maps = list(pipe.maps(write_clip(tmp_path / "clip.mp4")))
    assert [m.metadata["start_second"] for m in maps] == pytest.approx([0, 1, 2], abs=0.1)
    assert torch.equal(pipe.embed(pipe.read(tmp_path / "clip.mp4")).tensor, torch.cat([m.tensor for m in maps]))


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize("n_frames", [1, 5])
def test_few_frames_are_repeated_and_said_so(tmp_path, n_frames, reader):
    pytest.importorskip("av" if reader == "pyav" else reader)
    path = write_clip(tmp_path / "few.mp4", n_frames=n_frames)
    (emap,) = VideoPipeline(VideoConfig(size=32, reader=reader)).maps(path)
    assert emap.metadata["distinct_frames"] == n_frames


def test_one_frame_fills_every_tile(tmp_path):
    (emap,) = VideoPipeline(VideoConfig(size=32)).maps(write_clip(tmp_path / "one.mp4", n_frames=1))
    tiles = unfold(emap.tensor, "grid", 4, 16)
    assert all(torch.equal(tiles[:, :, 0], tiles[:, :, t]) for t in range(16))


def test_both_readers_agree(tmp_path):
    pytest.importorskip("decord")
    path = write_clip(tmp_path / "clip.mp4")
    first, second = (next(VideoPipeline(VideoConfig(size=32, reader=r)).maps(path)) for r in ("pyav", "decord"))
    assert (first.tensor - second.tensor).abs().max() < 0.1


def test_frames_in_memory_need_no_file():
    emap = VideoPipeline(VideoConfig(size=16)).embed(Clip.from_array(np.zeros((20, 30, 40, 3), np.uint8)))
    assert emap.tensor.shape == (1, 3, 64, 64)
    with pytest.raises(InputError, match="TxHxWx3 uint8"):
        Clip.from_array(np.zeros((20, 30, 40)))
    for rate in (0, -25, float("nan"), float("inf")):
        with pytest.raises(InputError, match="frame_rate"):
            Clip.from_array(np.zeros((2, 3, 4, 3), np.uint8), rate)


@pytest.mark.parametrize("fault", ["empty", "text", "cut", "sound"])
def test_what_is_no_video_ends_in_one_line(tmp_path, fault, capfd):
    path = tmp_path / "bad.mp4"
    if fault == "sound":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    else:
        whole = write_clip(tmp_path / "whole.mp4").read_bytes()
        path.write_bytes({"empty": b"", "text": b"hello " * 100, "cut": whole[: len(whole) // 3]}[fault])
    with pytest.raises(InputError) as caught:
        list(VideoPipeline().maps(path))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_download_that_broke_off_is_refused_rather_than_seen_as_standing_still(tmp_path):
    """With the table of frames first, a cut file opens: its last frame was repeated to the end, and called "static"."""
    whole = write_clip(tmp_path / "whole.mp4", movflags="faststart")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert len(list(VideoPipeline().maps(whole))) == 1
    with pytest.raises(InputError, match=r"cut short: [012]\.\d s of 3\.0 s are there"):
        list(VideoPipeline().maps(cut))


def test_a_damaged_packet_is_passed_over_and_what_follows_is_seen(tmp_path):
    """All that followed was the last frame before it, standing still."""
    path = write_clip(tmp_path / "clip.mp4")
    whole = open_video(path)
    entries = whole._stream.index_entries
    data = bytearray(path.read_bytes())
    for entry in entries[4:10]:  # frame 10 is whole by itself
        data[entry.pos : entry.pos + entry.size] = bytes(entry.size)
    whole.close()
    path.write_bytes(data)
    video = open_video(path)
    assert [index_of(f) for f in video.frames_at([0.25, 1.05, 2.05, 2.95])] == [2, 10, 20, 29]
    video.close()


def test_an_avi_of_which_the_end_is_gone_is_refused(tmp_path):
    path = write_clip(tmp_path / "clip.avi", n_frames=36, rate=12)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    video = open_video(path)
    with pytest.raises(InputError, match=r"damaged or was cut short: of .* none can be decoded after"):
        video.frames_at(np.linspace(0.05, video.duration, 16).tolist())
    video.close()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"n_frames": 12}, "no square"),
        ({"n_frames": 12, "rows": 5}, "divides"),
        ({"folding": "spiral"}, "folding must be"),
        ({"folding": "strip", "size": 30}, "divides"),
        ({"size": 0}, "above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings_, message):
    with pytest.raises(InputError, match=message):
        VideoConfig(**settings_)


def test_a_turned_recording_stands_upright_in_both_readers(shared_data):
    pytest.importorskip("decord")
    path = shared_data / "video_samples" / "rotated_90.mov"
    first, second = (open_video(path, r) for r in ("pyav", "decord"))
    assert (first.height > first.width) == (second.height > second.width)
    a, b = first.frames_at([0.0])[0], second.frames_at([0.0])[0]
    assert np.abs(a.astype(float) - b.astype(float)).mean() < 4


def test_real_recordings_become_maps(shared_data):
    for path in sorted((shared_data / "video_samples").glob("*.m*")):
        maps = list(VideoPipeline(VideoConfig(size=64)).maps(path))
        assert maps
        assert torch.isfinite(maps[0].tensor).all()
