"""Forecasts of time series: the verb `unipercept forecast`, its methods, and the long-term benchmark (outer ring).

    table ─prepare─▶ Prepared ─backtest─▶ Backtest ─choose─▶ Choice ─mixture─▶ quantiles ─▶ results.Forecast

The verb, in this order:
    forecast        the road above in one function; estimator wraps it in `fit` and `predict`; command serves the verb
    prepare         a table made ready: repairs, levels (jumps), periods, powers (logarithms, roots), attributes,
                    split_known
    methods         the methods by the names that `--methods` takes
    backtest        every method forecasts from the same origins; scores has the formulas
    choose          weights of the methods for each series
    mixture         the chosen methods fitted to the whole history
    residuals       quantiles for methods that forecast points; intervals calibrates their coverage
    report          the HTML page; pictures draws its figures
    anomalies       values far outside the interval that was forecast for them (`unipercept perceive TABLE`)

Methods, each fitted to many series at once:
    baselines       naive, seasonal naive, drift; the interface `Method`
    smoothing       exponential smoothing with statsmodels' parameters; ets, ces and theta are our own
    ets_forms       all of AutoETS's forms, averaged; ets_recursion has their recursion
    arima, cycles   seasonal ARIMA; waves for several cycles
    week            the season of a day and a week together
    linear, usual   ridge regression; quantiles of the latest values
    known           wraps a method: effects of columns known in advance are taken off before it
    filters, season what several of them share: linear filters, a season that is taken off and put back;
                    measured is the way back to measured values

The network, fitted to the table (`network`):
    learner         NetworkForecaster: fit, predict, save, load; settings configures it
    network, blocks the model; fit_tables, windows and scaling prepare its data
    training        the loop; losses, window_scores, least_squares (where it starts)
    calibration     factors for the width of its intervals
    forecaster_file weights and card as safetensors

The network that ships trained (`pretrained`):
    pretrained      the method; pretrained_network is the model
    pretraining     how it was trained, on the series of generated

The long-term benchmark (docs/forecasting_benchmark.md):
    benchmark       sets, splits, windows, a row of the table
    benchmark_network, benchmark_baselines
                    what fills the rows; published trains NLinear as its authors do
    lines, blend    forecasts in closed form; their weighted mean with networks
    rolling         intervals that follow the stream of forecasts
"""
