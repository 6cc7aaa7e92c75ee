"""A run folder becomes one self-contained HTML page and a table for the terminal.

Nothing heavy is imported here: matplotlib loads with the page, not with the table.
"""

from adapter_mu.report.rows import Results, load_results, load_rows
from adapter_mu.report.table import headline_table, render_text

__all__ = ["Results", "headline_table", "load_results", "load_rows", "render_text"]
