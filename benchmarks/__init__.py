"""Measurements behind the figures in docs: importable from a checkout as `treewright.benchmarks`, not in the wheel."""
