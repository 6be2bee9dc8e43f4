"""The forecast as an estimator with `fit` and `predict`, as users of scikit-learn, sktime and darts know them.

>>> model = TableForecaster(horizon=24).fit(frame)          # DataFrame, Series, xarray object, NumPy array or file
>>> model.predict()                                         # DataFrame of medians, indexed by time
>>> model.predict_interval(coverage=0.8)                    # columns (name, "lower") and (name, "upper")
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.devices import on_cpu
from unipercept.errors import InputError
from unipercept.forecasting.forecast import DEFAULT_SECONDS, ForecastResult, forecast_table
from unipercept.forecasting.prepare import Prepared, prepare, whole_steps
from unipercept.forecasting.scores import MEDIAN
from unipercept.forecasting.settings import QUANTILES

if TYPE_CHECKING:
    import pandas


class TableForecaster:
    """Back-tests, chooses and calibrates in `fit`; forecasts from the end of the table, or
    of another one, in `predict`.

    Args:
        horizon: steps ahead.
        known, static, period, methods, seconds, device, seed: as for `unipercept.forecast`.
    """

    def __init__(
        self,
        horizon: int = 24,
        *,
        known: Sequence[str] = (),
        static: Sequence[str] = (),
        period: int | None = None,
        methods: Sequence[str] = (),
        seconds: float = DEFAULT_SECONDS,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.horizon, self.known, self.static = horizon, known, static
        self.period, self.methods = period, methods
        self.seconds, self.device, self.seed = seconds, device, seed

    def fit(self, X: Any, y: Any = None) -> TableForecaster:
        """Learn from a table; `self`. Its result, with back-test and notices, is in `result_`.

        Args:
            X: the series; or, where `y` is given, nothing: sktime hands the series over as `y`, scikit-learn as `X`.
        """
        settings = self.get_params()
        horizon = settings.pop("horizon")
        self.result_: ForecastResult = forecast_table(X if y is None else y, horizon, **settings)
        self.variables_ = self.result_.variables
        return self

    def predict(self, horizon: int | None = None, *, history: Any = None) -> pandas.DataFrame:
        """Medians: a row a step, a column a series, indexed by time.

        Args:
            horizon: steps; None for that of the estimator.
            history: the same series, further on; None for the table of `fit`. Methods learn nothing from it; intervals
                follow what came true of forecasts from its rows.

        Raises:
            InputError: the horizon is no number of steps, or `history` is of other series.
        """
        return self._frame(self._quantiles(horizon, history)[MEDIAN], horizon, history)

    def predict_interval(
        self, horizon: int | None = None, *, coverage: float = 0.8, history: Any = None
    ) -> pandas.DataFrame:
        """Lower and upper ends: columns (series, "lower") and (series, "upper").

        Raises:
            InputError: a coverage that was not forecast; there are 0.95, 0.8, 0.6, 0.4 and 0.2.
        """
        import pandas as pd

        low = min(QUANTILES, key=lambda q: abs(q - (1 - coverage) / 2))
        if abs(low - (1 - coverage) / 2) > 1e-6 or low >= 0.5:
            raise InputError(f"intervals of 0.95, 0.8, 0.6, 0.4 and 0.2 are forecast, got {coverage}")
        place = QUANTILES.index(low)
        found = self._quantiles(horizon, history)
        lower, upper = (self._frame(found[i], horizon, history) for i in (place, len(QUANTILES) - 1 - place))
        columns = {
            (name, end): part[name] for name in self.variables_ for end, part in (("lower", lower), ("upper", upper))
        }
        return pd.DataFrame(columns)

    def score(self, X: Any, y: Any = None) -> float:
        """Minus the mean absolute error of the medians against the values that followed (so that higher is better).

        Raises:
            InputError: a DataFrame without any of the series, or an array that is not steps x series.
        """
        table = X if y is None else y
        scored = list(self.variables_)
        if hasattr(table, "columns"):  # by name: they may come in another order, or beside others
            named = {str(name): name for name in table.columns}
            scored = [name for name in scored if name in named]
            if not scored:
                raise InputError(f"the values that followed have no column {self.variables_[0]!r}")
            table = table[[named[name] for name in scored]]
        truth = np.asarray(table, np.float64)
        truth = truth[:, None] if truth.ndim == 1 else truth
        if truth.shape[1:] != (len(scored),):
            raise InputError(f"the values that followed must be steps x {len(scored)}, got {truth.shape}")
        return -float(np.nanmean(np.abs(self.predict(len(truth))[scored].to_numpy() - truth)))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names}

    def set_params(self, **settings: Any) -> TableForecaster:
        """Change settings by name; `self`.

        Raises:
            InputError: there is no such setting.
        """
        for name, value in settings.items():
            if name not in self.get_params():
                raise InputError(f"TableForecaster has no setting {name!r}; there are {', '.join(self.get_params())}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn 1.6 and newer ask of an estimator; only they call it."""
        from sklearn.utils import InputTags, Tags, TargetTags

        takes = InputTags(allow_nan=True, string=True, categorical=True)
        return Tags(estimator_type=None, target_tags=TargetTags(required=False), input_tags=takes)

    def _prepared(self, history: Any) -> tuple[Any, Any]:
        """What was fitted to, and the rows to forecast from in its units."""
        if not hasattr(self, "result_"):
            raise InputError("this forecaster has not been fitted; call fit first")
        fitted = self.result_.prepared
        assert fitted is not None
        if history is None:
            return fitted, fitted
        later = self._later(history, fitted)
        if later.variables != fitted.variables or str(later.step) != str(fitted.step):
            raise InputError(
                f"history must hold the series of the fit, {', '.join(fitted.variables[:5])}, {fitted.step} apart; "
                f"got {', '.join(later.variables[:5])}, {later.step} apart"
            )
        return fitted, later

    def _later(self, history: Any, fitted: Prepared) -> Prepared:
        """A later table read as that of the fit was."""
        targets = self.variables_ if fitted.layout == "wide" else ()
        later = prepare(history, horizon=1, targets=targets, period=fitted.period)
        if later.attributes is not None:
            if fitted.attributes is None:
                raise InputError(
                    f"history has static attributes, {', '.join(later.attributes.names)}; the fit had none"
                )
            if later.variables == fitted.variables:
                fitted.attributes.check_same(later.attributes, later.variables)
        return later

    @on_cpu
    def _quantiles(self, horizon: int | None, history: Any) -> Any:
        """Q x H x V as measured."""
        fitted, later = self._prepared(history)
        assert self.result_.mixture is not None
        values, moved = fitted.values, 0
        if later is not fitted:  # rows keep their place in the cycle
            first = int(fitted.step.slots(np.array([fitted.time[0], later.time[0]]))[1]) if fitted.has_dates else 0
            ahead = first % fitted.period
            moved = ahead - first
            values = fitted.scaled(later.restored(later.values))
            values = np.concatenate([np.full((ahead, values.shape[1]), np.nan), values])
        found = self.result_.mixture.quantiles(values, [len(values)], self._steps(horizon), moved=moved)[0]
        return np.moveaxis(fitted.forecast(found, values), -1, 0)

    def _frame(self, values: Any, horizon: int | None, history: Any) -> pandas.DataFrame:
        import pandas as pd

        _, later = self._prepared(history)
        index = pd.Index(later.after(self._steps(horizon)), name="time")
        if isinstance(index, pd.DatetimeIndex) and later.in_utc:
            index = index.tz_localize("UTC")
        return pd.DataFrame(values, index=index, columns=list(self.variables_))

    def _steps(self, horizon: int | None) -> int:
        return whole_steps(self.horizon if horizon is None else horizon, "horizon")
