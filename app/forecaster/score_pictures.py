"""Pictures of scores: curves over the lead with their intervals, a scorecard, spectra that show blur."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.app.forecaster.evaluate import CLIMATOLOGY, PERSISTENCE
from unipercept.app.forecaster.pictures import new_figure, save
from unipercept.app.forecaster.score_formulas import EVERYWHERE
from unipercept.errors import InputError, one_line
from unipercept.pipelines.weather import open_dataset

if TYPE_CHECKING:
    import xarray

BASELINE_STYLE = {PERSISTENCE: ("0.45", "--"), CLIMATOLOGY: ("0.45", ":")}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by all eyes
SHOWN_CHANNELS = 4
MOST_LABELS = 20  # below a scorecard
LIKED: tuple[str, ...] = ("z500", "t850", "t2m", "msl", "u850", "u10")  # shown where none are asked for
LEVEL_ROWS = ("rmse", "acc", "activity")
TITLES = {"rmse": "RMSE", "acc": "anomaly correlation", "activity": "activity over the truth's"}


def open_scores(path: str | Path) -> xarray.Dataset:
    """Scores that `Evaluation.save` wrote as .nc.

    Raises:
        InputError: it is something else.
    """
    try:
        table = open_dataset(path).load()
    except InputError as error:
        raise InputError(f"{path} holds no scores: {one_line(error)}") from error
    if "model" not in table.dims or "rmse" not in table:
        raise InputError(f"{path} holds no scores; make them with: unipercept weather evaluate … -o scores.nc")
    lead = table["lead"]
    hours = lead.values / np.timedelta64(1, "h") if lead.dtype.kind == "m" else lead.values
    return table.assign_coords(lead=np.asarray(hours, float))


def is_scores(path: str | Path) -> bool:
    """Whether a file holds scores rather than fields."""
    if Path(path).suffix != ".nc" or not Path(path).is_file():
        return False
    with open_dataset(path) as dataset:
        return "model" in dataset.dims and "rmse" in dataset


def plot_curves(
    path: str | Path, table: xarray.Dataset, channels: Sequence[str] | None = None, region: str = EVERYWHERE
) -> None:
    """RMSE with its 95 % interval, anomaly correlation and activity against the lead, a column a channel."""
    chosen = shown_channels(table, channels)
    rows = [name for name in LEVEL_ROWS if name in table]
    figure, axes = new_figure(len(rows), len(chosen), (3.6 * len(chosen) + 0.6, 2.5 * len(rows) + 0.6))
    days = table["lead"].values / 24
    for column, channel in enumerate(chosen):
        for row, name in enumerate(rows):
            axis, part = axes[row, column], table.sel(channel=channel)
            for model, colour, line in _styles(table):
                _curve(axis, part.sel(model=model), name, region, days, model, colour, line)
            if row == 0:
                axis.set_title(channel)
            axis.set_xlabel("lead (days)" if row == len(rows) - 1 else "")
            axis.set_ylabel(TITLES[name] if column == 0 else "")
            axis.grid(alpha=0.25)
            if name == "activity":
                axis.axhline(1, color="black", linewidth=0.6)
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.suptitle(f"scores, {region}", fontsize=12)
    save(figure, path)


def plot_scorecard(
    path: str | Path,
    table: xarray.Dataset,
    model: str | None = None,
    against: str = PERSISTENCE,
    region: str = EVERYWHERE,
) -> None:
    """RMSE of a model over that of another, in percent, channels by leads; blue is better.

    Raises:
        InputError: a model that the table lacks.
    """
    names = [str(m) for m in table["model"].values]
    model = model or names[0]
    for name in (model, against):
        if name not in names:
            raise InputError(f"no scores of {name}; there are {', '.join(names)}")
    rmse = table["rmse"].sel(region=region)
    ratio = 100 * (rmse.sel(model=model) / rmse.sel(model=against) - 1).transpose("channel", "lead")
    height, width = ratio.shape
    figure, axes = new_figure(1, 1, (min(16, 2.2 + 0.55 * width), min(20, 1.6 + 0.32 * height)))
    axis, most = axes[0, 0], float(np.nanmax(abs(ratio.values))) or 1.0
    mesh = axis.imshow(ratio.values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    axis.set_yticks(range(height), ratio["channel"].values, fontsize=8)
    days = ratio["lead"].values / 24
    labelled = [i for i in range(width) if width <= MOST_LABELS or days[i] % 1 == 0]
    labelled = labelled[:: -(-len(labelled) // MOST_LABELS) or 1]
    axis.set_xticks(labelled, [f"{days[i]:g}" for i in labelled], fontsize=8)
    axis.set_xlabel("lead (days)")
    if height * width <= 400:
        for (i, j), value in np.ndenumerate(ratio.values):
            dark = abs(value) > 0.6 * most
            axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    figure.colorbar(mesh, ax=axis, label="difference of RMSE (%)", pad=0.02)
    axis.set_title(f"{model} against {against}, {region}: blue is better", fontsize=11)
    save(figure, path)


def plot_spectra(
    path: str | Path, table: xarray.Dataset, channels: Sequence[str] | None = None, lead_hours: float | None = None
) -> None:
    """Zonal power spectra of the models and of the truth at a lead: what has fallen below the truth is blurred.

    Raises:
        InputError: no spectra (a region has none, nor a channel with missing cells), or no such lead.
    """
    if "spectrum" not in table:
        raise InputError("these scores have no spectra; only grids that go round the earth have")
    chosen, leads = shown_channels(table, channels), table["lead"].values
    wanted = leads[-1] if lead_hours is None else lead_hours
    if not np.isclose(leads, wanted).any():
        raise InputError(f"no lead of {wanted:g} h; there are {', '.join(f'{h:g}' for h in leads[:12])}")
    at = table.isel(lead=int(np.flatnonzero(np.isclose(leads, wanted))[0]))
    figure, axes = new_figure(1, len(chosen), (3.9 * len(chosen) + 0.4, 3.6))
    for axis, channel in zip(axes[0], chosen, strict=True):
        part = at.sel(channel=channel)
        waves = np.arange(1, part.sizes["wavenumber"])
        truth = part["truth_spectrum"].isel(model=0).values[1:]
        if not np.isfinite(truth).all():
            raise InputError(f"{channel} has no spectrum, as its truth has missing cells; choose other channels")
        axis.loglog(waves, truth, color="black", linewidth=2, label="truth")
        for model, colour, line in _styles(table):
            if model != CLIMATOLOGY:
                axis.loglog(waves, part["spectrum"].sel(model=model).values[1:], line, color=colour, label=model)
        axis.set_ylim(truth.max() * 1e-7, truth.max() * 4)  # float32 ends there
        axis.set_title(f"{channel}, + {wanted:g} h", fontsize=10)
        axis.set_xlabel("zonal wavenumber")
        axis.grid(alpha=0.25, which="both")
    axes[0, 0].set_ylabel("power")
    axes[0, 0].legend(fontsize=8, frameon=False)
    save(figure, path)


def _curve(
    axis: Any, part: xarray.Dataset, name: str, region: str, days: Any, model: str, colour: str, line: str
) -> None:
    values = part[name].sel(region=region).values
    if name == "activity":
        values = values / part["truth_activity"].sel(region=region).values
    axis.plot(days, values, line, color=colour, label=model, linewidth=1.6)
    if name == "rmse" and "rmse_low" in part and region == EVERYWHERE:
        axis.fill_between(
            days, part["rmse_low"].values, part["rmse_high"].values, color=colour, alpha=0.15, linewidth=0
        )


def _styles(table: xarray.Dataset) -> list[tuple[str, str, str]]:
    """Model, colour and line; forecasts in colour, baselines in grey."""
    found, i = [], 0
    for model in map(str, table["model"].values):
        if model in BASELINE_STYLE:
            found.append((model, *BASELINE_STYLE[model]))
        else:
            found.append((model, COLOURS[i % len(COLOURS)], "-"))
            i += 1
    return found


def shown_channels(table: xarray.Dataset, wanted: Sequence[str] | None) -> list[str]:
    known = [str(c) for c in table["channel"].values]
    if wanted:
        missing = [c for c in wanted if c not in known]
        if missing:
            raise InputError(f"no scores of {', '.join(missing)}; there are {', '.join(known[:24])}")
        return list(wanted)
    liked: list[str] = [c for c in LIKED if c in known]
    return (liked or known)[:SHOWN_CHANNELS]
