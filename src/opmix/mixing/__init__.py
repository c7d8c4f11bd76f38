"""Mixtures as mathematics: points, laws, the convex solve, intervals and the decision (numpy, scipy; no torch)."""
