"""Results that a caller gets: Labels, Embedding, Forecast, Anomalies. Each can print, draw and save itself."""

from unipercept.results.anomalies import Anomalies
from unipercept.results.base import SAVED_SUFFIXES, ModelOutput, Result
from unipercept.results.drawing import BLUE, GREY, ORANGE
from unipercept.results.embedding import Embedding
from unipercept.results.forecast import Forecast
from unipercept.results.labels import Labels
from unipercept.results.words import plain_times

__all__ = [
    "BLUE",
    "GREY",
    "ORANGE",
    "SAVED_SUFFIXES",
    "Anomalies",
    "Embedding",
    "Forecast",
    "Labels",
    "ModelOutput",
    "Result",
    "plain_times",
]
