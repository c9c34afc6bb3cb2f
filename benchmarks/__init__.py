"""What should stay fast, measured side by side in one run, as ratios: `python -m benchmarks`; docs/performance.md."""
