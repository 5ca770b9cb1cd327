"""Benchmarks: ``pytest bench`` for each instruction set, and programs, each run as ``python -m bench.NAME``."""
