"""The report: one self-contained HTML page made of result files, and its tables and plots as separate files."""

from hwsim.report.page.build import build_page
from hwsim.report.page.inputs import Inputs, read_inputs

__all__ = ["Inputs", "build_page", "read_inputs"]
