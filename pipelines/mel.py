"""Kaldi-compatible log-mel filter bank: batched, differentiable, on any device.

The mel scale is librosa's, the rest is PyTorch.

Shapes: N samples, T frames, L samples a frame, K bins of the power spectrum, M mel bins.

Every step follows Kaldi's `compute-fbank-feats` as torchaudio's `compliance.kaldi.fbank` runs it for AST and
UniRepLKNet: no dither, edges snipped, DC removed and pre-emphasised frame by frame, symmetric Hann window, FFT padded
to a power of two, power spectrum, triangles on the HTK mel scale, floor of float32 epsilon, natural logarithm.

librosa's own spectrogram is another one: its frames keep their mean, and its triangles are straight in Hz, Kaldi's in
mel (docs/decisions/0014-librosa.md).
"""

import importlib
import tempfile
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unipercept.errors import InputError, import_optional

PRE_EMPHASIS = 0.97  # Kaldi's default; a frame's first sample is its own predecessor
LOW_HZ = 20.0  # Kaldi's default lower edge of the lowest triangle
POWER_FLOOR = 2.0**-23  # float32 epsilon, Kaldi's floor before the logarithm: silence becomes -15.94


def log_mel(
    waveform: Tensor,
    *,
    sample_rate: int = 16_000,
    n_mels: int = 128,
    frame_length: int = 400,
    hop_length: int = 160,
    low_hz: float = LOW_HZ,
    high_hz: float | None = None,
) -> Tensor:
    """Log-mel energies of each frame.

    Args:
        waveform: ...xN floating point, N >= frame_length; N = (T - 1) * hop_length + frame_length gives T frames.
        sample_rate: samples per second.
        n_mels: number M of triangles between low_hz and high_hz (default: Nyquist), evenly spaced in mel.
        frame_length: samples in a frame (25 ms at 16 kHz).
        hop_length: samples from one frame to the next (10 ms at 16 kHz).

    Returns:
        ...xTxM in the dtype of `waveform`, T = 1 + (N - frame_length) // hop_length.

    Raises:
        InputError: the waveform is shorter than a frame or not floating point, or the settings cannot be.

    Source: Kaldi feat/feature-fbank.cc, feat/mel-computations.cc, feat/feature-window.cc.
    """
    _check(waveform, sample_rate, n_mels, frame_length, hop_length)
    frames = waveform.unfold(-1, frame_length, hop_length)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    frames = (frames - PRE_EMPHASIS * previous) * _window(frame_length, waveform.dtype, waveform.device)
    n_fft = next_power_of_two(frame_length)
    spectrum = torch.view_as_real(torch.fft.rfft(frames, n=n_fft)).square().sum(dim=-1)
    filters = _filters_like(sample_rate, n_mels, n_fft, low_hz, high_hz, spectrum.dtype, spectrum.device)
    return (spectrum @ filters).clamp(min=POWER_FLOOR).log()


def n_frames(n_samples: int, frame_length: int = 400, hop_length: int = 160) -> int:
    """Whole frames that fit into so many samples."""
    return max(0, 1 + (n_samples - frame_length) // hop_length)


def mel_centres(
    sample_rate: int = 16_000, n_mels: int = 128, low_hz: float = LOW_HZ, high_hz: float | None = None
) -> Tensor:
    """Centre frequency of each mel bin in Hz, ascending: M float64."""
    return torch.from_numpy(_edges_hz(sample_rate, n_mels, low_hz, high_hz)[1:-1].copy())


@cache  # nothing is evicted: a CUDA graph reads the table at this address in each replay
def _filters_like(
    sample_rate: int,
    n_mels: int,
    n_fft: int,
    low_hz: float,
    high_hz: float | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The filters, copied to the device once: a copy per batch would be a synchronisation."""
    with torch.inference_mode(False):  # a later call may need gradients, which a tensor made in inference mode refuses
        return mel_filters(sample_rate, n_mels, n_fft, low_hz, high_hz).to(device, dtype, copy=True)


@lru_cache(maxsize=32)
def mel_filters(sample_rate: int, n_mels: int, n_fft: int, low_hz: float, high_hz: float | None) -> Tensor:
    """Triangles of height 1, linear in mel: KxM float64, K = n_fft/2 + 1.

    As in Kaldi, the Nyquist bin counts for nothing.
    """
    librosa = _librosa()
    edges = librosa.hz_to_mel(_edges_hz(sample_rate, n_mels, low_hz, high_hz), htk=True)
    mel = librosa.hz_to_mel(librosa.fft_frequencies(sr=sample_rate, n_fft=n_fft), htk=True)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    filters = np.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clip(min=0)
    filters[-1] = 0
    return torch.from_numpy(filters)


def next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


@lru_cache(maxsize=32)
def _edges_hz(sample_rate: int, n_mels: int, low_hz: float, high_hz: float | None) -> np.ndarray[Any, Any]:
    """Corners of the triangles, evenly spaced in mel: M + 2 in Hz; triangle m runs from edge m over m + 1 to m + 2."""
    high = sample_rate / 2 if high_hz is None else high_hz
    if not 0 <= low_hz < high <= sample_rate / 2:
        raise InputError(
            f"mel bins need 0 <= low_hz < high_hz <= {sample_rate / 2:g} (Nyquist), got {low_hz:g} and {high:g}"
        )
    edges: np.ndarray[Any, Any] = _librosa().mel_frequencies(n_mels=n_mels + 2, fmin=low_hz, fmax=high, htk=True)
    return edges


@lru_cache(maxsize=1)
def _librosa() -> ModuleType:
    """librosa with its scales loaded (it imports the module behind a name when asked for it):
    half a second, most of it numba.
    """
    librosa = import_optional("librosa", extra="audio")
    try:
        librosa.hz_to_mel  # noqa: B018
    except RuntimeError:  # numba wants a folder for its cache and finds none: a read-only installation and no home
        config = importlib.import_module("numba").config
        with tempfile.TemporaryDirectory() as folder:
            config.CACHE_DIR = folder
            librosa.hz_to_mel  # noqa: B018
            config.CACHE_DIR = ""  # nothing here is compiled, so nothing was written
    return librosa


@cache  # as _filters_like
def _window(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.hann_window(length, periodic=False, dtype=torch.float64).to(dtype=dtype, device=device)


def _check(waveform: Tensor, sample_rate: int, n_mels: int, frame_length: int, hop_length: int) -> None:
    if min(sample_rate, n_mels, hop_length) < 1 or frame_length < 2:
        raise InputError(
            "sample_rate, n_mels and hop_length must be at least 1 and frame_length at least 2, "
            f"got {sample_rate}, {n_mels}, {hop_length}, {frame_length}"
        )
    if not waveform.is_floating_point():
        raise InputError(f"waveform must be floating point in [-1, 1], got {waveform.dtype}; divide by its full scale")
    if waveform.ndim < 1 or waveform.shape[-1] < frame_length:
        raise InputError(
            f"waveform must hold at least one frame of {frame_length} samples, got shape {tuple(waveform.shape)}; "
            "pad it with zeros"
        )
