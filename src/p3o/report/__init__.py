"""The report of a run, or of several held against each other: one self-contained HTML file; charts as files; a table."""

from p3o.report.comparison import build_comparison
from p3o.report.page import build_report
from p3o.report.picture import draw_frontier, export_charts
from p3o.report.terminal import terminal_summary

__all__ = ["build_comparison", "build_report", "draw_frontier", "export_charts", "terminal_summary"]
