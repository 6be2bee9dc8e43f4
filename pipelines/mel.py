"""Kaldi-compatible log-mel filter bank in plain PyTorch: batched, differentiable, on any device.

Shapes: N samples, T frames, L samples a frame, K bins of the power spectrum, M mel bins.

Every step follows Kaldi's `compute-fbank-feats` as torchaudio's `compliance.kaldi.fbank` runs it for AST and
UniRepLKNet: no dither, edges snipped, DC removed and pre-emphasised frame by frame, symmetric Hann window, FFT padded
to a power of two, power spectrum, triangles on the HTK mel scale, floor of float32 epsilon, natural logarithm.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from unipercept.errors import InputError

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


def hz_to_mel(hz: float) -> float:
    """HTK's mel scale. Source: Young et al., The HTK Book."""
    return 1127.0 * math.log(1.0 + hz / 700.0)


def mel_centres(
    sample_rate: int = 16_000, n_mels: int = 128, low_hz: float = LOW_HZ, high_hz: float | None = None
) -> Tensor:
    """Centre frequency of each mel bin in Hz, ascending: M float64."""
    return 700.0 * torch.expm1(_mel_edges(sample_rate, n_mels, low_hz, high_hz)[1:-1] / 1127.0)


@lru_cache(maxsize=32)
def _filters_like(
    sample_rate: int,
    n_mels: int,
    n_fft: int,
    low_hz: float,
    high_hz: float | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """On the device once: a copy in every batch would make the processor wait for the GPU."""
    return mel_filters(sample_rate, n_mels, n_fft, low_hz, high_hz).to(device, dtype)


@lru_cache(maxsize=32)
def mel_filters(sample_rate: int, n_mels: int, n_fft: int, low_hz: float, high_hz: float | None) -> Tensor:
    """Triangles of height 1, linear in mel: KxM float64, K = n_fft/2 + 1. As in Kaldi, the Nyquist bin counts for nothing."""
    edges = _mel_edges(sample_rate, n_mels, low_hz, high_hz)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    hz = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (sample_rate / n_fft)
    mel = 1127.0 * torch.log1p(hz / 700.0)[:, None]
    filters = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)
    filters[-1] = 0
    return filters


def next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _mel_edges(sample_rate: int, n_mels: int, low_hz: float, high_hz: float | None) -> Tensor:
    """Corners of the triangles in mel: M + 2 float64; triangle m runs from edge m over m + 1 to m + 2."""
    high = sample_rate / 2 if high_hz is None else high_hz
    if not 0 <= low_hz < high <= sample_rate / 2:
        raise InputError(
            f"mel bins need 0 <= low_hz < high_hz <= {sample_rate / 2:g} (Nyquist), got {low_hz:g} and {high:g}"
        )
    low_mel, high_mel = hz_to_mel(low_hz), hz_to_mel(high)
    return low_mel + torch.arange(n_mels + 2, dtype=torch.float64) * ((high_mel - low_mel) / (n_mels + 1))


@lru_cache(maxsize=32)
def _window(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
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
