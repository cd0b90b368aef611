"""The report: result files -> one page of HTML that needs nothing else, and the same tables and plots as files."""

from hwsim.report.page.build import build_page
from hwsim.report.page.inputs import Inputs, read_inputs

__all__ = ["Inputs", "build_page", "read_inputs"]
