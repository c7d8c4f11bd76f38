"""The theory page's claims in worlds where everything can be computed: quadratic losses, gradient descent, mixtures of gradients.

    python benchmarks/evidence/quadratic.py

Domains have losses `(x - x_d)' H_d (x - x_d) / 2`; `overlap` says how much of the space they share. Training on p follows the p-weighted
gradient for a time T (rate times steps). Around uniform, along "more of domain d", the slope and the curvature of d's own loss and of the
mean loss are computed after training itself and on the line between the joint probe and the probe of share s. "Corrected" is twice the
interpolated slope minus the chord to the trained probe.
"""

from __future__ import annotations

import numpy as np
from stage import RESULTS

from opmix.mixing.mixture import FloatArray
from opmix.runs.files import write_json

DOMAINS, SIZE, STEPS = 5, 12, 200


def world(overlap: float, seed: int) -> tuple[FloatArray, FloatArray]:
    """Curvatures (D, N, N), largest eigenvalue about 1, and minima (D, N)."""
    rng = np.random.default_rng(seed)
    width = DOMAINS * SIZE
    H, minima = np.zeros((DOMAINS, width, width)), np.zeros((DOMAINS, width))
    for d in range(DOMAINS):
        own = np.zeros(width)
        own[d * SIZE : (d + 1) * SIZE] = 1
        mask = np.sqrt(own * (1 - overlap) + overlap / DOMAINS)
        root = rng.standard_normal((width, width)) * mask
        H[d] = root.T @ root
        H[d] /= np.linalg.eigvalsh(H[d])[-1]
        minima[d] = rng.standard_normal(width) * mask
    return H, minima


def trained(p: FloatArray, H: FloatArray, minima: FloatArray, time: float) -> FloatArray:
    """Weights after gradient descent on the mixture for `time`."""
    x, curve = np.zeros(H.shape[1]), np.einsum("d,dij->ij", p, H)
    pull = np.einsum("d,dij,dj->i", p, H, minima)
    for _ in range(STEPS):
        x = x - time / STEPS * (curve @ x - pull)
    return x


def losses(x: FloatArray, H: FloatArray, minima: FloatArray) -> FloatArray:
    """(D,)."""
    gap = x - minima
    return 0.5 * np.einsum("di,dij,dj->d", gap, H, gap)


def ratios(overlap: float, time: float, share: float, seed: int) -> dict[str, float]:
    """Interpolated over true: slope and curvature, of d's own loss and of the mean, averaged over domains."""
    H, minima = world(overlap, seed)
    m = np.full(DOMAINS, 1 / DOMAINS)
    found: dict[str, list[float]] = {
        f"{k} {w}": [] for k in ("slope", "corrected", "curvature") for w in ("own", "mean")
    }
    for d in range(DOMAINS):
        direction = np.eye(DOMAINS)[d] - m
        joint, probe = trained(m, H, minima, time), trained(m + share * direction, H, minima, time)
        step = 1e-3
        true, line = (
            [losses(at(s), H, minima) for s in (-step, 0.0, step)]
            for at in (
                lambda s, u=direction: trained(m + s * u, H, minima, time),
                lambda s, a=joint, b=probe: a + s / share * (b - a),
            )
        )
        for label, pick in (("own", lambda v, d=d: v[d]), ("mean", np.mean)):
            a, b = np.array([pick(v) for v in true]), np.array([pick(v) for v in line])
            slope, chord = (b[2] - b[0]) / (2 * step), (pick(losses(probe, H, minima)) - b[1]) / share
            found[f"slope {label}"].append((b[2] - b[0]) / (a[2] - a[0]))
            found[f"corrected {label}"].append((2 * slope - chord) * 2 * step / (a[2] - a[0]))
            found[f"curvature {label}"].append((b[2] - 2 * b[1] + b[0]) / (a[2] - 2 * a[1] + a[0]))
    return {key: float(np.median(values)) for key, values in found.items()}


def main() -> None:
    rows = []
    for overlap in (0.0, 0.3):
        for time in (0.1, 1.0, 5.0):
            for share in (0.9, 0.25):
                seeds = [ratios(overlap, time, share, seed) for seed in range(5)]
                row = {key: float(np.median([s[key] for s in seeds])) for key in seeds[0]}
                rows.append({"overlap": overlap, "time": time, "share": share, **row})
                print(
                    f"overlap {overlap:.1f}, time {time:3.1f}, share {share:.2f}: "
                    + ", ".join(f"{k} {v:.2f}" for k, v in row.items())
                )
    write_json(RESULTS / "quadratic.json", {"rows": rows})


if __name__ == "__main__":
    main()
