"""The report of a run: one self-contained HTML file, the frontier as a picture, the last table in the terminal."""

from p3o.report.page import build_report
from p3o.report.picture import draw_frontier
from p3o.report.terminal import terminal_summary

__all__ = ["build_report", "draw_frontier", "terminal_summary"]
