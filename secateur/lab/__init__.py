"""The lab: cells, their addresses, the store that keeps them, and what computes them.

The lab knows cells, not what is in them. Nothing here imports jax at the top, so that the command
answers `status` at once; the numbers come from `secateur.train.fit`, imported where it is used.
"""
