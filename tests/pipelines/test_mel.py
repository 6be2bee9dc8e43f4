"""The log-mel filter bank against a slow float64 version written from Kaldi's description, and its properties."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from unipercept.errors import InputError
from unipercept.pipelines.mel import (
    LOW_HZ,
    POWER_FLOOR,
    _filters_like,
    _window,
    log_mel,
    mel_centres,
    mel_filters,
    n_frames,
)


def reference(samples, sample_rate, n_mels, frame_length, hop_length, low_hz=20.0, high_hz=None):
    """Frame by frame, sample by sample, bin by bin: float64 NumPy with a plain DFT."""
    n_fft = 1
    while n_fft < frame_length:
        n_fft *= 2
    high_hz = sample_rate / 2 if high_hz is None else high_hz
    mel = lambda hz: 1127.0 * math.log(1.0 + hz / 700.0)  # noqa: E731
    step = (mel(high_hz) - mel(low_hz)) / (n_mels + 1)
    dft = np.exp(-2j * np.pi * np.outer(np.arange(n_fft // 2), np.arange(frame_length)) / n_fft)
    rows = []
    for start in range(0, len(samples) - frame_length + 1, hop_length):
        frame = samples[start : start + frame_length].astype(np.float64)
        frame = frame - frame.sum() / frame_length
        emphasised = np.empty(frame_length)
        emphasised[0] = frame[0] - 0.97 * frame[0]
        for i in range(1, frame_length):
            emphasised[i] = frame[i] - 0.97 * frame[i - 1]
        for i in range(frame_length):
            emphasised[i] *= 0.5 - 0.5 * math.cos(2 * math.pi * i / (frame_length - 1))
        power = np.abs(dft @ emphasised) ** 2
        row = []
        for m in range(n_mels):
            left, centre, right = (mel(low_hz) + (m + k) * step for k in range(3))
            energy = 0.0
            for k in range(n_fft // 2):
                position = mel(k * sample_rate / n_fft)
                if left < position < right:
                    rising = (position - left) / (centre - left)
                    energy += power[k] * min(rising, (right - position) / (right - centre))
            row.append(math.log(max(energy, np.finfo(np.float32).eps)))
        rows.append(row)
    return np.array(rows)


SETTINGS = [(16_000, 128, 400, 160, None), (8_000, 40, 200, 80, None), (22_050, 23, 551, 220, 7_600.0)]


def noise_and_tone(n_samples, sample_rate, seed=0):
    rng = np.random.default_rng(seed)
    return 0.3 + 0.1 * rng.normal(size=n_samples) + 0.4 * np.sin(np.arange(n_samples) * 2 * np.pi * 440 / sample_rate)


@pytest.mark.parametrize(("sample_rate", "n_mels", "frame_length", "hop_length", "high_hz"), SETTINGS)
def test_log_mel_agrees_with_kaldi_written_out_in_float64(sample_rate, n_mels, frame_length, hop_length, high_hz):
    samples = noise_and_tone(5 * hop_length + frame_length + 3, sample_rate)
    slow = reference(samples, sample_rate, n_mels, frame_length, hop_length, high_hz=high_hz)
    settings = {"n_mels": n_mels, "frame_length": frame_length, "hop_length": hop_length, "high_hz": high_hz}
    fast = log_mel(torch.from_numpy(samples), sample_rate=sample_rate, **settings)
    assert fast.dtype == torch.float64
    assert fast.shape == (6, n_mels)
    assert np.abs(fast.numpy() - slow).max() < 1e-10
    # float32 keeps 24 bits of a power that spans some 1e6 within a frame: the log is good to about 1e-3 at the quietest
    single = log_mel(torch.from_numpy(samples).float(), sample_rate=sample_rate, **settings)
    assert np.abs(single.numpy() - slow).max() < 2e-3
    assert np.abs(single.numpy() - slow).mean() < 2e-5


def test_one_second_gives_98_frames():
    assert log_mel(torch.zeros(16_000)).shape == (98, 128)
    assert n_frames(16_000) == 98
    assert n_frames(399) == 0


def test_silence_and_any_constant_are_the_floor():
    for level in (0.0, 0.25, -1.0):
        assert torch.equal(log_mel(torch.full((1000,), level)), torch.full((4, 128), math.log(POWER_FLOOR)))


def test_a_tone_peaks_in_the_bin_whose_centre_is_nearest():
    centres = mel_centres()
    assert bool((centres.diff() > 0).all())
    for hz in (600.0, 1_500.0, 4_000.0):
        tone = torch.sin(2 * math.pi * hz * torch.arange(16_000, dtype=torch.float64) / 16_000)
        peak = int(log_mel(tone).mean(dim=0).argmax())
        assert abs(peak - int((centres - hz).abs().argmin())) <= 1


def test_a_batch_is_its_items():
    waveforms = torch.from_numpy(np.stack([noise_and_tone(4_000, 16_000, seed) for seed in range(6)])).reshape(2, 3, -1)
    together = log_mel(waveforms)
    assert together.shape == (2, 3, 23, 128)
    apart = torch.stack([log_mel(w) for w in waveforms.reshape(6, -1)]).reshape(together.shape)
    assert torch.allclose(together, apart, rtol=0, atol=1e-10)


def test_gradient_is_that_of_finite_differences_and_finite_on_silence():
    samples = torch.from_numpy(noise_and_tone(90, 800)).requires_grad_()

    def small(x):
        return log_mel(x, sample_rate=800, n_mels=5, frame_length=20, hop_length=8)

    assert torch.autograd.gradcheck(small, samples)
    silence = torch.zeros(800, requires_grad=True)
    log_mel(silence).sum().backward()
    assert torch.equal(silence.grad, torch.zeros(800))


def test_gradients_pass_after_a_first_call_in_inference_mode():
    settings = {"sample_rate": 8_000, "n_mels": 7, "frame_length": 123, "hop_length": 50}  # no other test's tables
    with torch.inference_mode():
        log_mel(torch.zeros(400), **settings)
    waveform = torch.from_numpy(noise_and_tone(400, 8_000)).float().requires_grad_()
    log_mel(waveform, **settings).sum().backward()
    assert waveform.grad.abs().sum() > 0


def test_tables_stay_where_they_are_for_graphs_that_were_captured_with_them():
    cpu = torch.device("cpu")

    def tables():
        return (
            _window(400, torch.float32, cpu),
            _filters_like(16_000, 128, 512, LOW_HZ, None, torch.float32, cpu),
        )

    before = tables()
    for frame_length in range(100, 200):
        log_mel(torch.zeros(200), sample_rate=8_000, n_mels=frame_length // 10, frame_length=frame_length)
    assert all(new is old for new, old in zip(tables(), before, strict=True))


@pytest.mark.parametrize(
    ("waveform", "settings", "says"),
    [
        (torch.zeros(399), {}, "at least one frame of 400"),
        (torch.zeros(400, dtype=torch.int16), {}, "floating point"),
        (torch.zeros(400), {"high_hz": 9_000.0}, "Nyquist"),
        (torch.zeros(400), {"n_mels": 0}, "at least 1"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(waveform, settings, says):
    with pytest.raises(InputError, match=says) as caught:
        log_mel(waveform, **settings)
    assert "\n" not in str(caught.value)


def test_librosa_loads_where_numba_may_write_nowhere():
    code = """
import numba.core.caching as caching
def read_only(self):
    if "site-packages" in self.get_cache_path() or ".cache" in self.get_cache_path():
        raise OSError("read-only file system")
caching._CacheLocator.ensure_cache_path = read_only
from unipercept.pipelines.mel import mel_centres
print(len(mel_centres()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("128", 0), done.stderr[-400:]


def test_the_filters_are_librosas_where_a_straight_line_in_hz_is_one_in_mel():
    """Kaldi's triangles are straight in mel, librosa's in Hz: they share corners and peaks, and differ between them."""
    librosa = pytest.importorskip("librosa")
    ours = mel_filters(16_000, 40, 2048, 20.0, None).numpy()
    theirs = librosa.filters.mel(sr=16_000, n_fft=2048, n_mels=40, fmin=20.0, htk=True, norm=None, dtype=np.float64).T
    assert np.array_equal(ours[:-1] > 0, theirs[:-1] > 0)
    assert 1e-4 < np.abs(ours - theirs)[:-1].max() < 0.02
