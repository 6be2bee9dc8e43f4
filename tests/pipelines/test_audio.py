"""Sound files of every kind, rate and length become windows that together are the whole."""

import math
import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from unipercept.errors import InputError
from unipercept.pipelines.audio import AUDIOSET, ESC50, SPEECH_COMMANDS, AudioConfig, AudioPipeline, Waveform
from unipercept.pipelines.mel import log_mel
from unipercept.pipelines.sound_file import _mean_of_columns, open_sound, resample

soundfile = pytest.importorskip("soundfile")
soxr = pytest.importorskip("soxr")


def sound(seconds, rate=16_000, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tones = [np.sin(2 * np.pi * (300 + 170 * c) * time) for c in range(channels)]
    values = 0.3 * np.stack(tones, axis=1) + 0.05 * rng.normal(size=(len(time), channels))
    return values.astype(np.float32)


def write(path, values, rate=16_000, **settings):
    soundfile.write(path, values, rate, **settings)
    return path


def energies(emap):
    """TxM log-mel values of a map's real frames, normalisation undone."""
    values = emap.tensor[0, 0].T * (2 * emap.metadata["std"]) + emap.metadata["mean"]
    return values if emap.mask is None else values[emap.mask[0, 0]]


def one_line_error(call):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.wav", "PCM_16"), ("a.wav", "PCM_U8"), ("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.wav", "DOUBLE"), ("a.wav", "ULAW"),
        ("a.flac", "PCM_16"), ("a.ogg", "VORBIS"), ("a.ogg", "OPUS"), ("a.mp3", "MPEG_LAYER_III"), ("a.aiff", "PCM_16"),
        ("a.au", "PCM_16"), ("a.caf", "PCM_16"), ("a.w64", "PCM_16"),
    ],
)  # fmt: skip
def test_every_format_gives_nearly_the_map_of_the_samples(tmp_path, name, subtype):
    values = sound(1.0, 48_000)
    pipeline = AudioPipeline()
    from_file = pipeline.embed(pipeline.read(write(tmp_path / name, values, 48_000, subtype=subtype)))
    from_array = pipeline.embed(Waveform.from_array(values[:, 0], 48_000))
    assert from_file.tensor.shape == (1, 1, 128, 128)
    lossy = subtype in ("VORBIS", "OPUS", "MPEG_LAYER_III", "ULAW", "PCM_U8")
    tone_rows = slice(14, 26)  # around 300 Hz, where a lossy codec keeps what there is
    difference = (from_file.tensor - from_array.tensor)[0, 0, tone_rows, 20:80].abs().mean()
    assert difference < (0.25 if lossy else 1e-3)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count_becomes_16_khz_mono(tmp_path, rate, channels):
    values = sound(1.3, rate, channels)
    raw = AudioPipeline().read(write(tmp_path / "a.wav", values, rate, subtype="FLOAT"))
    expected = soxr.resample(values.mean(axis=1), rate, 16_000, quality="HQ")  # librosa.resample's default
    assert raw.sample_rate == 16_000
    assert abs(len(raw.samples) - len(expected)) <= 1
    n = min(len(raw.samples), len(expected))
    assert np.abs(raw.samples.numpy()[:n] - expected[:n]).max() < 2e-6  # float32 rounding


def test_resampling_is_librosas_default():
    librosa = pytest.importorskip("librosa")
    values = sound(1.0, 44_100)[:, 0]
    expected = librosa.resample(values, orig_sr=44_100, target_sr=16_000)
    found = np.concatenate(list(resample(iter([values[:20_000], values[20_000:]]), 44_100, 16_000)))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 2e-6  # float32 rounding


def test_where_blocks_end_leaves_no_trace_in_the_waveform():
    values = sound(5.0, 44_100)[:, 0]
    whole = np.concatenate(list(resample(iter([values]), 44_100, 16_000)))
    for size in (1, 777, 44_100):
        part = values if size > 1 else values[:3000]
        pieces = (part[i : i + size] for i in range(0, len(part), size))
        assembled = np.concatenate(list(resample(pieces, 44_100, 16_000)))
        reference = whole if size > 1 else np.concatenate(list(resample(iter([part]), 44_100, 16_000)))
        assert np.array_equal(assembled, reference)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_windows_together_are_the_frames_of_the_whole(tmp_path, rate):
    values = sound(33.3, rate, 2)
    path = write(tmp_path / "long.wav", values, rate, subtype="FLOAT")
    pipeline = AudioPipeline()
    raw = pipeline.read(path)
    assert raw.samples is None  # it stays on disk
    maps = list(pipeline.maps(path))
    assert [tuple(m.tensor.shape) for m in maps] == [(1, 1, 128, 1024)] * 4
    whole = np.concatenate(list(resample(iter([values.mean(axis=1)]), rate, 16_000)))
    expected = log_mel(torch.from_numpy(whole))
    together = torch.cat([energies(m) for m in maps])
    assert together.shape == expected.shape
    assert (together - expected).abs().max() < 2e-3  # float32 rounding after a mean of another length is removed
    time = torch.cat([m.coords["time"].values[: len(energies(m))] for m in maps])
    assert torch.allclose(time, 0.0125 + 0.01 * torch.arange(len(time)).double(), rtol=0, atol=1e-9)


def test_embedding_a_long_sound_at_once_gives_its_windows_as_a_batch(tmp_path):
    path = write(tmp_path / "long.wav", sound(25))
    pipeline = AudioPipeline()
    batch, maps = pipeline.embed(pipeline.read(path)), list(pipeline.maps(path))
    assert batch.tensor.shape == (3, 1, 128, 1024)
    assert torch.equal(batch.tensor, torch.cat([m.tensor for m in maps]))
    assert batch.metadata["start_second"] == [m.metadata["start_second"][0] for m in maps] == [0.0, 10.24, 20.48]
    assert torch.allclose(batch.real_share()[:2], torch.ones(2))
    assert 0.4 < batch.real_share()[2] < 0.5


@pytest.mark.parametrize("n_windows", [1, 2])
@pytest.mark.parametrize("extra_frames", [0, 1])
def test_a_window_more_begins_with_the_first_frame_that_does_not_fit(extra_frames, n_windows):
    config = AudioConfig(target_length=128)
    n_frames = n_windows * 128 + extra_frames
    n_samples = config.window_length + (n_frames - 128) * config.hop_length
    pipeline = AudioPipeline(config)
    pieces = list(pipeline.split(Waveform.from_array(sound(3)[:n_samples, 0], 16_000)))
    assert len(pieces) == n_windows + extra_frames
    maps = [pipeline.embed(piece) for piece in pieces]
    assert sum(len(energies(m)) for m in maps) == n_frames


def test_memory_is_bounded_whatever_the_length(tmp_path):
    path = tmp_path / "long.flac"
    second = sound(1.0, 48_000, 2)
    with soundfile.SoundFile(path, "w", 48_000, 2) as file:
        for _ in range(180):
            file.write(second)
    pipeline = AudioPipeline()
    tracemalloc.start()
    frames = sum(len(energies(m)) for m in pipeline.maps(path))
    peak = tracemalloc.get_traced_memory()[1]  # NumPy's arrays are traced; 180 s of stereo would be 69 MB
    tracemalloc.stop()
    assert frames == 17_998
    assert peak < 8e6


def test_a_short_clip_is_padded_to_128_frames_and_the_mask_says_so(tmp_path):
    pipeline = AudioPipeline(AudioConfig(normalisation=SPEECH_COMMANDS))
    emap = pipeline.embed(pipeline.read(write(tmp_path / "a.wav", sound(1.0))))
    assert emap.tensor.shape == (1, 1, 128, 128)
    assert emap.mask[0].sum(dim=1).tolist() == [98] * 128
    assert emap.tensor[~emap.mask[:, None]].unique().item() == pytest.approx(0.615, abs=5e-4)  # as in the released code


@pytest.mark.parametrize("n_samples", [1, 100, 399, 400])
def test_a_sound_shorter_than_a_frame_is_one_frame(tmp_path, n_samples):
    pipeline = AudioPipeline()
    emap = pipeline.embed(pipeline.read(write(tmp_path / "a.wav", np.full(n_samples, 0.5))))
    assert emap.mask[0, 0].sum() == 1
    assert torch.isfinite(emap.tensor).all()


def test_silence_encodes(tmp_path):
    pipeline = AudioPipeline()
    emap = pipeline.embed(pipeline.read(write(tmp_path / "a.wav", np.zeros(16_000))))
    floor = (math.log(2.0**-23) - AUDIOSET.mean) / (2 * AUDIOSET.std)
    assert emap.tensor[emap.mask[:, None]].unique().item() == pytest.approx(floor, rel=1e-6)


def test_the_published_normalisation_is_applied():
    assert (SPEECH_COMMANDS, AUDIOSET, ESC50) == (
        (-6.845978, 5.5654526),
        (-4.2677393, 4.5689974),
        (-6.6268077, 5.358466),
    )
    waveform = Waveform.from_array(sound(1.0)[:, 0], 16_000)
    values = log_mel(waveform.samples - waveform.samples.mean()).T
    for constants in (SPEECH_COMMANDS, AUDIOSET, ESC50):
        emap = AudioPipeline(AudioConfig(normalisation=constants)).embed(waveform)
        assert (emap.metadata["mean"], emap.metadata["std"]) == constants
        assert torch.allclose(emap.tensor[0, 0, :, :98], (values - constants.mean) / (2 * constants.std))


def test_the_papers_layout_is_the_codes_transposed():
    waveform = Waveform.from_array(sound(1.0)[:, 0], 16_000)
    code = AudioPipeline(AudioConfig(n_mels=64)).embed(waveform)
    paper = AudioPipeline(AudioConfig(n_mels=64, layout="time_frequency")).embed(waveform)
    assert paper.tensor.shape == (1, 1, 128, 64)
    assert torch.equal(paper.tensor, code.tensor.mT)
    assert torch.equal(paper.mask, code.mask.mT)
    assert (paper.coords["time"].dim, paper.coords["frequency"].dim) == ("H", "W")


def test_embedding_is_differentiable_and_pure():
    waveform = torch.from_numpy(sound(1.0)[:, 0]).requires_grad_()
    pipeline = AudioPipeline()
    raw = Waveform.from_array(waveform, 16_000)
    first = pipeline.embed(raw)
    first.tensor.square().sum().backward()
    assert waveform.grad.abs().sum() > 0
    assert pipeline.embed(raw).equals(first)


def test_integer_arrays_are_scaled_by_their_type():
    values = sound(0.5)[:, 0]
    pipeline = AudioPipeline()
    expected = pipeline.embed(Waveform.from_array((values * 32768).round() / 32768, 16_000))
    found = pipeline.embed(Waveform.from_array((values * 32768).round().astype(np.int16), 16_000))
    assert torch.equal(expected.tensor, found.tensor)


def test_threads_read_and_embed_alike(tmp_path):
    paths = [write(tmp_path / f"{i}.wav", sound(0.5, 44_100, 2, seed=i), 44_100) for i in range(16)]
    pipeline = AudioPipeline()
    alone = [pipeline.embed(pipeline.read(path)) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda path: pipeline.embed(pipeline.read(path)), paths))
    assert all(a.equals(b) for a, b in zip(alone, together, strict=True))
    assert threading.active_count() < 20


def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path):
    pipeline = AudioPipeline()
    text = tmp_path / "text.wav"
    text.write_text("this is no sound\n" * 50)
    assert "cannot read" in one_line_error(lambda: pipeline.read(text))
    (tmp_path / "empty.wav").touch()
    assert "0 bytes" in one_line_error(lambda: pipeline.read(tmp_path / "empty.wav"))
    assert "does not exist" in one_line_error(lambda: pipeline.read(tmp_path / "none.wav"))
    assert "folder" in one_line_error(lambda: pipeline.read(tmp_path))
    assert "no sound" in one_line_error(lambda: pipeline.read(write(tmp_path / "zero.wav", np.zeros(0))))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    assert "pipe" in one_line_error(lambda: AudioPipeline().read(tmp_path / "pipe.wav"))


@pytest.mark.parametrize("seconds", [5, 30])
def test_a_truncated_flac_is_refused(tmp_path, seconds):
    whole = write(tmp_path / "whole.flac", sound(seconds)).read_bytes()
    path = tmp_path / "cut.flac"
    path.write_bytes(whole[: len(whole) // 2])
    assert "cut.flac" in one_line_error(lambda: list(AudioPipeline().maps(path)))


def test_a_sound_that_leaves_no_sample_is_called_too_short(tmp_path):
    path = write(tmp_path / "one.wav", np.ones(1), 48_000)
    assert "too short: not one sample is left of it at 16000 Hz" in one_line_error(
        lambda: list(AudioPipeline().maps(path))
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("seconds", [1, 25])
def test_samples_that_are_not_finite_or_absurd_are_refused(tmp_path, bad, seconds):
    values = sound(seconds)
    values[100] = bad
    path = write(tmp_path / "bad.wav", values, subtype="FLOAT")
    assert "bad.wav" in one_line_error(lambda: list(AudioPipeline().maps(path)))
    if not math.isfinite(bad):
        one_line_error(lambda: Waveform.from_array(values[:, 0], 16_000))


@pytest.mark.parametrize("n_samples", [80, 399])
def test_a_constant_offset_changes_no_sound_however_short(n_samples):
    """The zeros that fill up a frame lay beside the offset as a step."""
    samples, pipe = sound(1.0)[:n_samples, 0], AudioPipeline()
    here, there = (pipe.embed(Waveform.from_array(samples + offset, 16_000)).tensor for offset in (0, 0.4))
    assert (here - there).abs().max() < 1e-3


def test_integers_as_floating_point_are_refused(tmp_path):
    path = write(tmp_path / "loud.wav", sound(1.0) * 32768, subtype="FLOAT")
    assert "divide integers by their full scale" in one_line_error(lambda: list(AudioPipeline().maps(path)))


@pytest.mark.parametrize("rate", [1, 40])
def test_a_rate_below_what_the_filters_hear_is_refused(tmp_path, rate):
    """A damaged header: a megabyte would be days of sound."""
    path = write(tmp_path / "slow.wav", sound(20, rate), rate)
    assert f"{rate} samples a second, which hold nothing above 20 Hz" in one_line_error(
        lambda: list(AudioPipeline().maps(path))
    )


@pytest.mark.parametrize("rate", [100, 655_350])
def test_extreme_sample_rates_stay_bounded(tmp_path, rate):
    path = write(tmp_path / "odd.flac", sound(2.0, rate), rate)
    maps = list(AudioPipeline().maps(path))
    assert len(maps) == 1
    assert torch.isfinite(maps[0].tensor).all()


@pytest.mark.parametrize("seed", range(30))
def test_flipped_bytes_never_give_anything_but_a_map_or_one_line(tmp_path, seed):
    rng = np.random.default_rng(seed)
    name = ("a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff")[seed % 5]
    data = bytearray(write(tmp_path / name, sound(0.7, 22_050), 22_050).read_bytes())
    for position in rng.integers(0, min(len(data), 200 if seed % 2 else len(data)), 6):
        data[position] = rng.integers(256)
    (tmp_path / name).write_bytes(data[: rng.integers(1, len(data) + 1)])
    try:
        maps = list(AudioPipeline().maps(tmp_path / name))
    except InputError as error:
        maps, message = [], str(error)
    else:
        message = ""
    assert all(torch.isfinite(emap.tensor).all() for emap in maps)
    assert "\n" not in message


def test_what_soundfile_does_not_know_is_read_through_pyav(tmp_path):
    av = pytest.importorskip("av")
    path, values = tmp_path / "a.m4a", sound(2.0, 44_100, 2)
    with av.open(str(path), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=44_100, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(values.T), format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        container.mux([*stream.encode(frame), *stream.encode(None)])
    header = open_sound(path)
    assert (header.reader, header.sample_rate, header.channels) == ("PyAV", 44_100, 2)
    raw = AudioPipeline().read(path)
    assert len(raw.samples) == pytest.approx(32_000, abs=1_100)  # AAC pads to whole frames of 1024


@pytest.mark.parametrize(
    "settings", [{"layout": "sideways"}, {"target_length": 0}, {"hop_length_ms": 30.0}, {"normalisation": (0.0, 0.0)}]
)
def test_impossible_settings_are_refused(settings):
    one_line_error(lambda: AudioConfig(**settings))


@pytest.mark.parametrize("values", [np.zeros((2, 2, 2)), np.zeros(0), np.zeros(4, bool), np.zeros(4, complex)])
def test_arrays_that_are_no_sound_are_refused(values):
    one_line_error(lambda: Waveform.from_array(values, 16_000))


def test_samples_along_the_rows_are_refused():
    """As soundfile and scipy read stereo: the mean over 16,000 channels was a sound of two samples."""
    with pytest.raises(InputError, match="transpose"):
        Waveform.from_array(np.zeros((16_000, 2), np.float32), 16_000)
    one_line_error(lambda: Waveform.from_array(np.zeros(16_000), float("nan")))


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 7, 8, 9])
def test_channels_are_averaged_to_the_bit_as_numpy_does(channels):
    block = np.random.default_rng(channels).normal(size=(1000, channels)).astype(np.float32)
    assert np.array_equal(_mean_of_columns(block), block.mean(axis=1))


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the names of files are text")
def test_a_name_that_is_not_utf_8_is_opened(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", np.zeros(16000, np.float32), 16000)
    odd = tmp_path / os.fsdecode(b"\xff.wav")
    (tmp_path / "a.wav").rename(odd)
    assert AudioPipeline().read(odd).samples.shape == (16000,)


def test_the_mp3_library_says_nothing_of_damaged_frames(tmp_path, capfd):
    soundfile = pytest.importorskip("soundfile")
    noise = np.random.default_rng(0).normal(0, 0.1, 160_000).astype(np.float32)
    soundfile.write(tmp_path / "cut.mp3", noise, 16000)
    content = (tmp_path / "cut.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(content[: len(content) // 2])
    assert len(list(AudioPipeline().maps(tmp_path / "cut.mp3"))) == 1
    assert capfd.readouterr() == ("", "")
