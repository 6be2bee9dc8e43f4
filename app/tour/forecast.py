"""The demo's forecast: a small large-kernel network fitted on the spot to a real series, beside what anyone can do without.

Shapes: B windows, L past steps, T future steps, P period.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unipercept.blocks import Block
from unipercept.datasets.synthetic import tone
from unipercept.heads import ForecastHead, ReversibleInstanceNorm
from unipercept.metrics import mean_absolute_error, mean_squared_error
from unipercept.pipelines.folding import dominant_period
from unipercept.results import Forecast
from unipercept.train import TrainConfig, fit

LOOKBACK, HORIZON, WIDTH = 256, 64, 16
RATE_HZ = 4000  # the recording is averaged down to it
SECONDS = 2.5
SPLIT = (0.7, 0.8)  # ends of training and validation, as shares of the series; the rest is the test
STRIDE = 4  # steps between training windows
EPOCHS = 3
NETWORK = "large-kernel network"  # its row in the table of errors


class SeriesNetwork(nn.Module):
    """Windows to forecasts: normalise, fold by the period, blocks of the shared backbone, head, and back to units."""

    def __init__(self, period: int, width: int = WIDTH, kernel_sizes: tuple[int, ...] = (13, 3)) -> None:
        super().__init__()
        self.period = period
        self.rows = -(-LOOKBACK // period)
        self.norm = ReversibleInstanceNorm()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width, k, layer_scale=None) for k in kernel_sizes))
        self.head = ForecastHead(width * self.rows * period, HORIZON, dropout=0.1)

    def forward(self, past: Tensor) -> Tensor:
        """BxL to BxT, in the units of the series."""
        scaled, statistics = self.norm.normalize(past[:, :, None])
        padded = nn.functional.pad(scaled[:, :, 0], (self.rows * self.period - LOOKBACK, 0))
        features = self.blocks(self.stem(padded.reshape(len(past), 1, self.rows, self.period)))
        forecast: Tensor = self.norm.denormalize(self.head(features)[:, :, None], statistics)
        return forecast[:, :, 0]


@dataclass(frozen=True)
class ForecastDemo:
    """One window of the test part, drawn, and errors over all its windows: method to (MSE, MAE), in units of the training part's deviation."""

    forecast: Forecast
    errors: dict[str, tuple[float, float]]
    source: str
    n_parameters: int
    n_windows: dict[str, int]
    period: int


def run_forecast(recording: Path | None, seed: int = 0) -> ForecastDemo:
    """Fit on the first 70 % of the series, look at 10 % for nothing but its loss, and test once on the last 20 %."""
    series, rate, source = _series(recording)
    ends = [int(share * len(series)) for share in SPLIT]
    train_part = series[: ends[0]]
    scaled = torch.from_numpy(((series - train_part.mean()) / train_part.std()).astype(np.float32))
    windows = {
        "training": _windows(scaled[: ends[0]], STRIDE),
        "validation": _windows(scaled[ends[0] - LOOKBACK : ends[1]], STRIDE),
        "test": _windows(scaled[ends[1] - LOOKBACK :], 1),
    }
    period = min(LOOKBACK // 4, max(4, dominant_period(scaled[None, : ends[0]], max_period=LOOKBACK // 4)))
    torch.manual_seed(seed)
    network = SeriesNetwork(period)
    config = TrainConfig(
        epochs=EPOCHS, batch_size=64, learning_rate=2e-3, weight_decay=0.01, warmup_steps=20, seed=seed, device="cpu"
    )
    fit(network, None, list(windows["training"]), loss=_loss, config=config)
    past, truth = windows["test"][:, :LOOKBACK], windows["test"][:, LOOKBACK:]
    network.eval()
    with torch.inference_mode():
        ours = torch.cat([network(part) for part in torch.split(past, 256)])
    methods = {
        NETWORK: ours,
        "last period again": _last_period_again(past),
        "last value again": past[:, -1:].expand_as(truth),
        "mean of the past": past.mean(dim=1, keepdim=True).expand_as(truth),
    }
    errors = {
        name: (
            float(mean_squared_error(values, truth)),
            float(mean_absolute_error(values, truth)),
        )
        for name, values in methods.items()
    }
    return ForecastDemo(
        _drawn(past, ours, truth, rate, source),
        errors,
        source,
        sum(p.numel() for p in network.parameters()),
        {name: len(part) for name, part in windows.items()},
        period,
    )


def _series(recording: Path | None) -> tuple[NDArray[np.float64], float, str]:
    if recording is None:
        return tone(SECONDS).astype(np.float64)[::4], 4000.0, "a generated tone"
    from unipercept.pipelines.sound_file import open_sound

    sound = open_sound(recording)
    every = max(1, round(sound.sample_rate / RATE_HZ))
    parts, have = [], 0
    for block in sound.blocks():
        parts.append(block)
        have += len(block)
        if have >= SECONDS * 2 * sound.sample_rate:
            break
    wave = np.concatenate(parts)[: int(SECONDS * 2 * sound.sample_rate)]
    wave = wave[int(len(wave) - SECONDS * sound.sample_rate) :]
    usable = len(wave) // every * every
    means = wave[:usable].reshape(-1, every).mean(axis=1).astype(np.float64)
    return means, sound.sample_rate / every, f"air pressure in {recording.name}"


def _windows(series: Tensor, stride: int) -> Tensor:
    return series.unfold(0, LOOKBACK + HORIZON, stride)


def _last_period_again(past: Tensor) -> Tensor:
    """Seasonal naive, BxL to BxT: the period is each window's own, the lag in [4, L/2] at which its past is most like itself.

    The training part's period would be a weak opponent: a player changes the note.
    """
    centred = past - past.mean(dim=1, keepdim=True)
    lags = range(4, LOOKBACK // 2 + 1)
    alike = torch.stack([(centred[:, lag:] * centred[:, :-lag]).mean(dim=1) for lag in lags], dim=1)
    lag = lags.start + alike.argmax(dim=1, keepdim=True)
    return past.gather(1, LOOKBACK - lag + torch.arange(HORIZON) % lag)


def _loss(model: nn.Module, batch: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(batch[:, :LOOKBACK]), batch[:, LOOKBACK:])


def _drawn(past: Tensor, ours: Tensor, truth: Tensor, rate: float, source: str) -> Forecast:
    """The middle window of the test part, in milliseconds from its first forecast step."""
    middle = len(past) // 2
    milliseconds = 1000 / rate
    return Forecast(
        time=np.arange(HORIZON) * milliseconds,
        values=ours[middle, :, None].numpy(),
        variables=("pressure, in deviations",),
        source=source,
        model="large-kernel network fitted on the spot",
        history_time=np.arange(-LOOKBACK, 0) * milliseconds,
        history=past[middle, :, None].numpy(),
        truth=truth[middle, :, None].numpy(),
        metadata={"time_unit": "ms"},
    )
