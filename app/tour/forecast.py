"""The tour's forecast: `unipercept forecast` itself on a real series, the last steps of which are
kept back and drawn beside it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unipercept.datasets.synthetic import tone
from unipercept.forecasting.forecast import ForecastResult, forecast_table

HORIZON = 64
RATE_HZ = 4000  # the recording is averaged down to it
SECONDS = 2.5  # of sound
BUDGET_SECONDS = 10.0
METHODS = ("naive", "seasonal", "linear", "network")


def run_forecast(recording: Path | None, seed: int = 0) -> ForecastResult:
    """Forecast the last steps of a sound's pressure wave from what lies before them, with
    its back-test and the truth.
    """
    series, rate, source = _series(recording)
    result = forecast_table(
        series[:-HORIZON], HORIZON, methods=METHODS, seconds=BUDGET_SECONDS, device="cpu", seed=seed
    )
    return replace(
        result, truth=series[-HORIZON:, None], source=f"{source}, {1000 / rate:g} ms a step", variables=("pressure",)
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
