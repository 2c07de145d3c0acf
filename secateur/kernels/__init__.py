"""Kernels of pruned networks: the tangent kernel's trace, the path kernel."""
