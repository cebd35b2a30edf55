"""Problems as text (sources, formats, the built-in generator, answers), then as token sequences and batches."""
