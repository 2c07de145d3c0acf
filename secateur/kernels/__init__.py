"""Kernels of any network: the tangent kernel, the path kernel, and what follows from them.

    from secateur.kernels import dynamics, ntk, path, spectrum

The modules that a program calls, in reading order (``docs/kernels.md`` goes through them,
``docs/large_kernels.md`` where memory is short):

- `ntk`: the empirical tangent kernel of any ``f(params, x)``, with or without a mask: `ntk.ntk`,
  `ntk.plan` (what would be done, and its cost), `ntk.ntk_blocks`, `ntk.ntk_operator`.
- `operator`: a kernel known by its products with vectors.
- `spectrum`: eigenvalues, all of a matrix or estimated from products: `spectrum.spectrum`.
- `dynamics`: training predicted from a kernel: `dynamics.linearise`.
- `regression`: kernel regression with a ridge, the after-kernel.
- `alignment`: how alike two kernels are, how fast one moves, how it lies to the targets; how far a
  linearised network is from the real one.
- `hessian`: curvature of a loss, its sharpness and spectral density.
- `path`: the path kernel's trace and what each weight is worth to it; `path_operator`: the path
  kernel itself; `decomposition`: the tangent kernel as data and paths.
- `infinite`: kernels of infinite width by their recursion; `expectation`: means over random
  weights.
- `trace`: the tangent kernel's trace and its saliency, as pruning criteria use them.

The rest is what these are made of. Nothing is imported here: each module is loaded by name.
"""
