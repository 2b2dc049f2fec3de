"""Figures, not verdicts: ``python -m tests.benchmarks.NAME`` prints them."""
