"""Data pipeline: problems as text (sources, formats, built-in generator, answers), then as token sequences and batches."""
