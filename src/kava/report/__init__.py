"""Reports on finished runs: aggregates over seeds, tables (terminal, Markdown, CSV, LaTeX), the HTML page and the reference numbers."""
