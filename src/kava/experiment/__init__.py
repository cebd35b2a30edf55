"""Runs side by side: several seeds, their aggregation, and what may be compared with what."""
