"""Validation: published end-to-end measurements, and hwsim's predictions for their conditions."""

from hwsim.studies.validate.predict import Prediction, Summary, predict, read_rows, summarize

__all__ = ["Prediction", "Summary", "predict", "read_rows", "summarize"]
