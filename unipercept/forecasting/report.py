"""The forecast's report: one self-contained HTML page with what was detected, what was chosen and
why, and how accurate it was.
"""

from __future__ import annotations

import shlex
from html import escape
from pathlib import Path

import numpy as np

from unipercept.atomic import atomic_path
from unipercept.forecasting.backtest import Backtest
from unipercept.forecasting.choose import Choice
from unipercept.forecasting.forecast import ForecastResult
from unipercept.forecasting.pictures import draw_errors_by_step, draw_reliability
from unipercept.forecasting.prepare import Prepared
from unipercept.forecasting.scores import INTERVALS, MEDIAN, Score
from unipercept.page import facts, figure, page, table
from unipercept.results import plain_times
from unipercept.results.drawing import png

MAX_PICTURES = 12
MAX_LISTED = 40  # series in the table of errors
MAX_TOLD = 3  # series told in a sentence
MIN_GAIN = 3.0  # percent of loss below seasonal naive's that is worth a mixture
MAX_STEPS = 24  # of the table of the forecast


def write_report(result: ForecastResult, path: Path) -> Path:
    """Write the page for a forecast of `forecast_table`."""
    assert result.prepared is not None
    sections = [_forecast(result), _file(result.prepared, result.notices)]
    if result.backtest is not None and result.choice is not None:
        sections.insert(1, _backtest(result.backtest, result.choice))
        sections.insert(2, _trust(result.backtest, result.choice))
        sections.insert(3, _series(result, result.backtest, result.choice))
    sections += [_use(result), _made(result)]
    title = f"{Path(result.source).name}: the next {len(result.time)} steps"
    with atomic_path(path) as temporary:
        temporary.write_text(page(title, _lead(result), "".join(sections)), encoding="utf-8")
    return path


def _lead(result: ForecastResult) -> str:
    times = plain_times(result.time)
    count = len(result.variables)
    text = f"<p>{count} series, {times[0]} to {times[-1]}, {escape(str(result.metadata['step']))} apart.</p>"
    text += "".join(f"<p>{_expectation(result, v, times)}</p>" for v in range(min(count, MAX_TOLD)))
    if result.choice is None or result.backtest is None:
        return text + f'<p class="notice"><strong>Not tested.</strong> {escape(result.notices[-1])}.</p>'
    return text + f'<p class="notice">{_verdict(result.backtest, result.choice)}</p>'


def _expectation(result: ForecastResult, v: int, times: list[str]) -> str:
    """One series in a sentence."""
    middle, history = result.values[:, v], result.history
    low, high = (result.quantiles[q][:, v] for q in (0.1, 0.9))
    text = f"<strong>{escape(result.variables[v])}</strong>: {middle[0]:.4g} at {times[0]} (80 % interval {low[0]:.4g} to {high[0]:.4g})"
    if len(times) > 1:
        text += f", {middle[-1]:.4g} at {times[-1]} ({low[-1]:.4g} to {high[-1]:.4g})"
    before = (
        np.nan
        if history is None
        else np.nanmean(history[-len(times) :, v])
        if np.isfinite(history[-len(times) :, v]).any()
        else np.nan
    )
    if np.isfinite(before):
        text += f"; mean {middle.mean():.4g}, compared with {before:.4g} over as many steps before"
    return text + "."


def _verdict(found: Backtest, choice: Choice) -> str:
    """The accuracy to expect, in three sentences."""
    score = choice.score
    usual = found.named("seasonal naive") or found.named("naive")
    text = f"Forecast by {escape(choice.told_shares())}. "
    if usual is not None and usual.score.sql > 0:
        gain = 100 * (1 - score.sql / usual.score.sql)
        how = f"{gain:.0f} % less" if gain >= 0 else f"{-gain:.0f} % more"
        text += f"In the back-test its loss was {how} than that of {usual.method.name}"
        text += ", which is no clear improvement. " if gain < MIN_GAIN else ". "
    covered = " and ".join(
        f"its {100 * level:g} % interval covered {100 * score.coverage[level]:.0f} % of the observed values"
        for level in INTERVALS
    )
    return text + f"There, {covered}."


def _forecast(result: ForecastResult) -> str:
    shown = result.variables[:MAX_PICTURES]
    pictures = "".join(
        figure(png(result.plot(name)), f"{name}: history, forecast, intervals and back-test") for name in shown
    )
    more = (
        f"<p class=soft>The first {len(shown)} of {len(result.variables)} series.</p>"
        if len(shown) < len(result.variables)
        else ""
    )
    first = result.variables[0]
    rows = [
        [
            time,
            *(
                f"{value:.6g}"
                for value in (result.values[i, 0], *(result.quantiles[q][i, 0] for q in (0.025, 0.1, 0.9, 0.975)))
            ),
        ]
        for i, time in enumerate(plain_times(result.time)[:MAX_STEPS])
    ]
    head = ["time", "median", "95 %: from", "80 %: from", "80 %: to", "95 %: to"]
    steps = f"the first {len(rows)} steps of " if len(result.time) > MAX_STEPS else ""
    return (
        f'<h2>The forecast</h2>{more}<div class="wide">{pictures}</div>'
        f"<details><summary>Numbers: {steps}{escape(first)}</summary>{table(head, rows)}</details>"
    )


def _file(prepared: Prepared, notices: tuple[str, ...]) -> str:
    times = plain_times(prepared.time[[0, -1]])
    missing = float(np.isnan(prepared.truth).mean())
    pairs = [
        ("file", Path(prepared.source).name),
        ("rows used", f"{len(prepared):,}, {times[0]} to {times[1]}"),
        ("step", str(prepared.step)),
        ("cycle", f"{prepared.period} steps" if prepared.period > 1 else "none"),
        (
            "series",
            f"{len(prepared.variables):,}" + (f", {len(prepared.left_out)} left out" if prepared.left_out else ""),
        ),
        ("missing", f"{100 * missing:.2f} % of the values"),
    ]
    said = "".join(f"<li>{escape(line)}</li>" for line in notices)
    return f"<h2>The file: what was detected and changed</h2>{facts(pairs)}" + (f"<ul>{said}</ul>" if said else "")


def _backtest(found: Backtest, choice: Choice) -> str:
    plan = found.plan
    rows = [["chosen", *_numbers(choice.score), f"{sum(one.seconds for one in found.tested):.1f}"]]
    ordered = sorted(found.tested, key=lambda one: one.score.sql)
    rows += [[one.method.name, *_numbers(one.score), f"{one.seconds:.1f}"] for one in ordered]
    text = (
        f"<p>Each method was fitted once to the first {plan.fit_end:,} rows (regressions to {plan.learn_end:,}). Then, from each of "
        f"{len(plan.scored)} origins in the remaining rows, it forecast {plan.horizon} steps from the rows before. SQL scores the whole "
        "distribution and MASE the median, both relative to the error of repeating the last cycle; wQL is the quantile loss relative "
        "to the values. Lower is better. The row <em>chosen</em> is scored at origins that were not used to choose or calibrate it: "
        "each half of the origins with the choice and calibration made on the other half.</p>"
    )
    why = (
        "<p>Why this choice: for each series, methods are weighted by their losses on that series and on the whole table; the shorter the "
        "back-test, the more a prior counts. Methods far behind the best one are left out. "
        f"{_reason(choice)}</p>"
    )
    head = ["method", "SQL", "wQL", "MASE", *(f"coverage of {100 * level:g} %" for level in INTERVALS), "seconds"]
    picture = figure(
        png(draw_errors_by_step(found, choice)), "Errors of every method by steps ahead", "error by steps ahead"
    )
    return (
        f'<h2>Accuracy on the past: the back-test</h2>{text}{table(head, rows)}{why}<div class="wide">{picture}</div>'
    )


def _numbers(score: Score) -> list[str]:
    return [
        f"{score.sql:.3f}",
        f"{score.wql:.4f}",
        f"{score.mase:.3f}",
        *(f"{100 * score.coverage[level]:.1f} %" for level in INTERVALS),
    ]


def _reason(choice: Choice) -> str:
    ordered = sorted(choice.loss.items(), key=lambda pair: pair[1])
    best = ordered[0][0]
    if len(choice.shares) == 1:
        return f"No other method came near {escape(next(iter(choice.shares)))}."
    return f"The best single method was {escape(best)}. The weights: {escape(choice.told_shares())}."


def _trust(found: Backtest, choice: Choice) -> str:
    raw, score = choice.raw, choice.score
    before = ", ".join(f"{100 * raw.coverage[level]:.1f} %" for level in INTERVALS)
    after = ", ".join(f"{100 * score.coverage[level]:.1f} %" for level in INTERVALS)
    said = ", ".join(f"{100 * level:g} %" for level in INTERVALS)
    picture = figure(png(draw_reliability(found, choice)), "Coverage of quantiles and intervals")
    return (
        "<h2>Calibration of the intervals</h2>"
        f"<p>In the back-test the {said} intervals covered {before} of the observed values before calibration, and {after} after it (one factor "
        "per level, fitted on the other half of the origins). This holds if the future resembles the past: no calibration "
        f'covers a change that has never occurred.</p><div class="wide">{picture}</div>'
    )


def _series(result: ForecastResult, found: Backtest, choice: Choice) -> str:
    """Errors of each series compared with seasonal naive: where the forecast is better, and where it is not."""
    usual = found.named("seasonal naive") or found.named("naive")
    if usual is None or len(found.columns) < 2:
        return ""
    with np.errstate(all="ignore"):
        truth = found.measured(found.truth)
        ours, theirs = (
            np.nanmean(np.abs(truth - found.measured(q[..., MEDIAN])), axis=(0, 1))
            for q in (choice.judged, usual.quantiles)
        )
        ratio = np.where(theirs > 0, ours / theirs, np.nan)
    order = np.argsort(-np.nan_to_num(ratio, nan=-1))
    rows = []
    for v in order[:MAX_LISTED].tolist():
        name = result.variables[int(found.columns[v])]
        first = choice.names[int(choice.weights[:, v].argmax())]
        rows.append(
            [
                name,
                f"{ours[v]:.4g}",
                f"{theirs[v]:.4g}",
                f"{ratio[v]:.2f}",
                f"{100 * choice.weights[:, v].max():.0f} % {first}",
            ]
        )
    worse = int((ratio > 1).sum())
    text = (
        f"<p>On {worse} of {len(ratio)} series {usual.method.name} was more accurate in the back-test.</p>"
        if worse
        else ""
    )
    head = ["series (worst ratio first)", "mean absolute error", f"of {usual.method.name}", "ratio", "largest weight"]
    return f"<h2>Each series</h2>{text}{table(head, rows)}"


def _use(result: ForecastResult) -> str:
    name = Path(result.source).name
    long = result.metadata["layout"] == "long"
    first = result.variables[0]
    picked = (
        f'forecast[forecast["series"] == {first!r}][["time", "forecast", "q0.1", "q0.9"]]'
        if long
        else f'forecast[["time", {first!r}, {first + "_q0.1"!r}, {first + "_q0.9"!r}]]'
    )
    file = shlex.quote(f"./{name}" if name.startswith("-") else name)
    code = (
        f"unipercept forecast {file} --horizon {len(result.time)} -o forecast.csv --plot forecast.png --report forecast.html\n\n"
        "import pandas as pd\n"
        'forecast = pd.read_csv("forecast.csv", parse_dates=["time"])\n'
        f"{picked}   # the median and the 80 % interval"
    )
    return (
        f"<h2>Use it</h2><pre>{escape(code)}</pre><p>Use the median if one number is needed, an upper quantile if a shortage costs more than "
        "a surplus (stock, capacity), and a lower quantile in the opposite case.</p>"
    )


def _made(result: ForecastResult) -> str:
    from unipercept import __version__

    return "<h2>Made with</h2>" + facts([("unipercept", __version__), ("seconds", f"{result.seconds:.0f}")])
