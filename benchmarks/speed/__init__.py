"""Benchmarks of speed and memory: ratios of medians from interleaved runs, on the same adapters for us and for peers."""
