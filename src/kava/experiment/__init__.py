"""Experiments with several runs: seeds of one configuration, suites of configurations, and the collection of their results."""
