"""Runs on disk: suites, and the store that keeps what a run measured. Paper tower: no torch."""
