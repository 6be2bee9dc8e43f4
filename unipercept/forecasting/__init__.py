"""Forecasts of series by a large-kernel network: settings, network, training, the long-term benchmark (outer ring)."""
