"""Benchmarks: `make bench` prints what was measured, side by side with what people would use instead. Not tests: nothing fails."""
