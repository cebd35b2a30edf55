"""Smoke test of the installation: a small real run of every component, with the measured values and, on failure, a fix."""
