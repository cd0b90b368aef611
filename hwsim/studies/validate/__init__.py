"""Published end-to-end measurements, and what hwsim predicts for their conditions."""

from hwsim.studies.validate.predict import Prediction, Summary, predict, read_rows, summarize

__all__ = ["Prediction", "Summary", "predict", "read_rows", "summarize"]
