/* Numbers of the what-if view, free of the page: laws, intervals, the linked simplex and the convex solve.
   Arrays: c[E], t[E][D], A[K][D] (what each coordinate stands for), x[K] on the simplex, p[D] = sum_k x_k A_k. */
const numerics = (() => {
  "use strict";

  const dot = (a, b, n) => { let sum = 0; for (let i = 0; i < n; i++) sum += a[i] * b[i]; return sum; };

  function mixture(A, x) {
    const p = new Float64Array(A[0].length);
    A.forEach((row, k) => row.forEach((share, d) => { p[d] += x[k] * share; }));
    return p;
  }

  /* A law: `losses(p)`; `drawn(draws, p)`, losses of every draw as one flat array, draw-major; and `along(A)`, the law over
     coordinates y with `varying(y)`, losses less `constant`, and `slopes(y)`: per loss its gradient G and a number `bend`
     and domain terms `diagonal` (or null) so that its Hessian is bend G G' + A diag(diagonal) A'. */
  const lawOf = (data) => (data.kind === "effective_tokens" ? effectiveTokens(data) : logLinear(data));

  /* loss_e = c_e + exp(sum_d t_ed p_d) */
  function logLinear({ c, t }) {
    const losses = (p) => c.map((offset, e) => offset + Math.exp(dot(t[e], p, p.length)));
    function drawn(draws, p) {
      const out = new Float64Array(draws.c.length), size = p.length;
      for (let i = 0; i < out.length; i++) {
        let exponent = 0;
        for (let d = 0, at = i * size; d < size; d++) exponent += draws.t[at + d] * p[d];
        out[i] = draws.c[i] + Math.exp(exponent);
      }
      return out;
    }
    function along(A) {
      // Exponents on coordinates: T[e][k] = t_e . A_k
      const T = t.map((row) => A.map((share) => dot(share, row, row.length))), K = A.length;
      const varying = (y) => T.map((row) => Math.exp(dot(row, y, K)));
      const slopes = (y) => varying(y).map((growth, e) =>
        ({ gradient: T[e].map((v) => growth * v), bend: growth > 0 ? 1 / growth : 0, diagonal: null }));
      return { varying, slopes };
    }
    return { constant: c, losses, drawn, along };
  }

  /* loss_e = base_e - b_e log(1 + sum_d worth_ed x_d^rho), x_d the effective tokens of domain d in a stage of `tokens`:
     all of the first `unique` (null: never repeated), and of repetitions less and less. */
  function effectiveTokens({ base, b, worth, rho, tokens, unique, decay }) {
    /* Effective tokens of a share with their first and second derivative by the share. */
    function effective(share, d) {
      const seen = tokens * Math.max(share, 0);
      if (unique[d] === null || seen <= unique[d]) return [seen, tokens, 0];
      const room = Math.max(unique[d] * decay, 1e-300), left = Math.exp(-(seen - unique[d]) / room);
      return [unique[d] + room * (1 - left), tokens * left, -tokens * tokens * left / room];
    }
    const powers = (p, power) => Float64Array.from(p, (share, d) => effective(share, d)[0] ** power);
    const losses = (p) => {
      const have = powers(p, rho);
      return base.map((start, e) => start - b[e] * Math.log1p(dot(worth[e], have, have.length)));
    };
    function drawn(draws, p) {
      const out = new Float64Array(draws.base.length), E = base.length, D = p.length;
      draws.rho.forEach((power, draw) => {
        const have = powers(p, power);
        for (let e = 0; e < E; e++) {
          const i = draw * E + e;
          let gained = 0;
          for (let d = 0; d < D; d++) gained += draws.worth[i * D + d] * have[d];
          out[i] = draws.base[i] - draws.b[i] * Math.log1p(gained);
        }
      });
      return out;
    }
    function along(A) {
      const varying = (y) => losses(mixture(A, y)).map((loss, e) => loss - base[e]);
      function slopes(y) {
        const p = mixture(A, y), D = p.length;
        const have = new Float64Array(D), first = new Float64Array(D), second = new Float64Array(D);
        p.forEach((share, d) => {
          if (!(share > 0)) return; // no coordinate holds it
          const [x, rise, bent] = effective(share, d), steep = rho * x ** (rho - 1);
          have[d] = x ** rho;
          first[d] = steep * rise;
          second[d] = steep * (bent + (rho - 1) * rise * rise / x);
        });
        return worth.map((row, e) => {
          const scale = -b[e] / (1 + dot(row, have, D));
          const along = row.map((value, d) => scale * value * first[d]);
          return { gradient: A.map((share) => dot(share, along, D)), bend: b[e] > 0 ? 1 / b[e] : 0,
            diagonal: row.map((value, d) => scale * value * second[d]) };
        });
      }
      return { varying, slopes };
    }
    return { constant: base, losses, drawn, along };
  }

  /* Linear interpolation between order statistics, as numpy's default. */
  function quantile(sorted, q) {
    const at = q * (sorted.length - 1), low = Math.floor(at), high = Math.min(low + 1, sorted.length - 1);
    return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
  }

  function interval(values, level) {
    const sorted = Float64Array.from(values).sort();
    return [quantile(sorted, (1 - level) / 2), quantile(sorted, (1 + level) / 2)];
  }

  /* Set x[index] to value; the other unlocked ones rescale in proportion so that the sum stays 1. */
  function rebalance(x, locked, index, value) {
    const held = x.reduce((sum, v, k) => sum + (locked[k] && k !== index ? v : 0), 0);
    const free = x.map((_, k) => k).filter((k) => !locked[k] && k !== index);
    const room = Math.max(0, 1 - held);
    const target = free.length ? Math.min(Math.max(value, 0), room) : room;
    const before = free.reduce((sum, k) => sum + x[k], 0);
    const out = x.slice();
    out[index] = target;
    free.forEach((k) => { out[k] = (room - target) * (before > 1e-12 ? x[k] / before : 1 / free.length); });
    return out;
  }

  /* Cholesky solve for several right-hand sides; H is symmetric, its lower triangle given; null if not definite. */
  function choleskySolve(H, sides) {
    const n = H.length, L = H.map(() => new Float64Array(n));
    for (let i = 0; i < n; i++) {
      for (let j = 0; j <= i; j++) {
        let sum = H[i][j];
        for (let k = 0; k < j; k++) sum -= L[i][k] * L[j][k];
        if (i === j && !(sum > 0)) return null;
        L[i][j] = i === j ? Math.sqrt(sum) : sum / L[j][j];
      }
    }
    return sides.map((side) => {
      const y = Float64Array.from(side);
      for (let i = 0; i < n; i++) {
        for (let k = 0; k < i; k++) y[i] -= L[i][k] * y[k];
        y[i] /= L[i][i];
      }
      for (let i = n - 1; i >= 0; i--) {
        for (let k = i + 1; k < n; k++) y[i] -= L[k][i] * y[k];
        y[i] /= L[i][i];
      }
      return y;
    });
  }

  /* KL(A^T x || q), its gradient and Hessian (lower triangle) in x. Domains that no coordinate holds are left out. */
  function divergence(A, q, x) {
    const p = mixture(A, x), K = A.length;
    let value = 0;
    const gradient = new Float64Array(K), hessian = A.map(() => new Float64Array(K));
    for (let d = 0; d < p.length; d++) {
      if (!(p[d] > 0)) continue;
      const ratio = Math.log(p[d] / q[d]);
      value += p[d] * ratio;
      for (let k = 0; k < K; k++) {
        if (!A[k][d]) continue;
        gradient[k] += A[k][d] * (ratio + 1);
        for (let j = 0; j <= k; j++) hessian[k][j] += A[k][d] * A[j][d] / p[d];
      }
    }
    return { value, gradient, hessian };
  }

  /* The objective at x: mean (weights) or worst case (largest loss minus reference), plus the KL term. */
  function objective(problem, x) {
    const p = mixture(problem.A, x), gains = problem.law.along(problem.A).varying(x);
    const fit = problem.worst
      ? Math.max(...gains.map((g, e) => g + problem.law.constant[e] - problem.reference[e]))
      : gains.reduce((sum, g, e) => sum + problem.weights[e] * g, 0);
    return fit + (problem.kl > 0 ? problem.kl * klValue(problem.q, p) : 0);
  }

  function klValue(q, p) {
    let value = 0;
    p.forEach((share, d) => { if (share > 0) value += q[d] > 0 ? share * Math.log(share / q[d]) : Infinity; });
    return value;
  }

  /* min over the simplex with ceilings: log-barrier Newton. In the worst case one more variable s bounds all losses.
     Returns {x, gap, steps} or {problem: sentence}. `gap` bounds the distance from the optimum in nats. */
  function solve(problem) {
    const all = problem.A.length;
    const ceilings = problem.ceilings || new Array(all).fill(1);
    // Where the prior has no mass the KL term forbids a coordinate; a ceiling of 0 does the same.
    const used = [...Array(all).keys()].filter((k) => ceilings[k] > 1e-9 &&
      !(problem.kl > 0 && problem.A[k].some((share, d) => share > 0 && !(problem.q[d] > 0))));
    const room = used.reduce((sum, k) => sum + Math.min(1, ceilings[k]), 0);
    if (!used.length || room < 1 - 1e-9) {
      return { problem: `the ceilings add up to ${(100 * room).toFixed(1)} %; a mixture needs 100 %` };
    }
    const spread = (inside) => {
      const x = new Array(all).fill(0);
      const total = used.reduce((sum, _, i) => sum + inside[i], 0);
      used.forEach((k, i) => { x[k] = inside[i] / total; });
      return x;
    };
    if (used.length === 1 || room <= 1 + 1e-9) {
      return { x: spread(used.map((k) => Math.min(1, ceilings[k]))), gap: 0, steps: 0 };
    }
    const state = barrierState(problem, used, ceilings, room);
    let steps = 0;
    const terms = state.terms;
    for (let sharpness = 1; ; sharpness *= 8) {
      for (let inner = 0; inner < 60; inner++, steps++) {
        if (newtonStep(state, sharpness) < 1e-9) break;
      }
      if (terms / sharpness < 1e-9) return { x: spread(state.y), gap: terms / sharpness, steps };
    }
  }

  function barrierState(problem, used, ceilings, room) {
    const A = used.map((k) => problem.A[k]);
    const law = problem.law.along(A);
    const upper = used.map((k) => Math.min(1, ceilings[k]));
    const capped = upper.map((u) => u < 1);
    const y = upper.map((u) => u / room);
    const state = { problem, A, law, upper, capped, y, size: used.length };
    if (problem.worst) y.push(Math.max(...rises(state, y)) + 0.1);
    state.terms = used.length + capped.filter(Boolean).length + (problem.worst ? problem.law.constant.length : 0);
    return state;
  }

  /* loss_e - reference_e */
  function rises({ problem, law, size }, y) {
    return [...law.varying(y.slice(0, size))].map((v, e) => problem.law.constant[e] - problem.reference[e] + v);
  }

  function barrierValue(state, y, sharpness) {
    const { problem, A, law, upper, capped, size } = state;
    let barrier = 0;
    for (let k = 0; k < size; k++) {
      if (!(y[k] > 0) || (capped[k] && !(y[k] < upper[k]))) return Infinity;
      barrier -= Math.log(y[k]) + (capped[k] ? Math.log(upper[k] - y[k]) : 0);
    }
    let fit = 0;
    if (problem.worst) {
      fit = y[size];
      for (const rise of rises(state, y)) {
        if (!(y[size] > rise)) return Infinity;
        barrier -= Math.log(y[size] - rise);
      }
    } else {
      law.varying(y).forEach((v, e) => { fit += problem.weights[e] * v; });
    }
    if (problem.kl > 0) fit += problem.kl * klValue(problem.q, mixture(A, y));
    return sharpness * fit + barrier;
  }

  /* Gradient and Hessian (its lower triangle) of the barrier function in (x, s). */
  function derivatives(state, sharpness) {
    const { problem, A, law, upper, capped, y, size } = state, n = y.length;
    const gradient = new Float64Array(n), hessian = y.map(() => new Float64Array(n));
    const above = problem.worst ? rises(state, y) : null, curved = new Float64Array(A[0].length);
    law.slopes(y.slice(0, size)).forEach((loss, e) => {
      const pull = problem.worst ? 1 / (y[size] - above[e]) : sharpness * problem.weights[e];
      const bend = pull * loss.bend + (problem.worst ? pull * pull : 0);
      for (let k = 0; k < size; k++) {
        gradient[k] += pull * loss.gradient[k];
        for (let j = 0; j <= k; j++) hessian[k][j] += bend * loss.gradient[k] * loss.gradient[j];
        if (problem.worst) hessian[size][k] -= pull * pull * loss.gradient[k];
      }
      if (loss.diagonal) loss.diagonal.forEach((v, d) => { curved[d] += pull * v; });
      if (problem.worst) {
        gradient[size] -= pull;
        hessian[size][size] += pull * pull;
      }
    });
    curved.forEach((v, d) => {
      if (!v) return;
      for (let k = 0; k < size; k++) for (let j = 0; j <= k; j++) hessian[k][j] += A[k][d] * A[j][d] * v;
    });
    if (problem.worst) gradient[size] += sharpness;
    if (problem.kl > 0) {
      const kl = divergence(A, problem.q, y.slice(0, size));
      for (let k = 0; k < size; k++) {
        gradient[k] += sharpness * problem.kl * kl.gradient[k];
        for (let j = 0; j <= k; j++) hessian[k][j] += sharpness * problem.kl * kl.hessian[k][j];
      }
    }
    for (let k = 0; k < size; k++) {
      const left = upper[k] - y[k];
      gradient[k] += -1 / y[k] + (capped[k] ? 1 / left : 0);
      hessian[k][k] += 1 / (y[k] * y[k]) + (capped[k] ? 1 / (left * left) : 0);
    }
    return { gradient, hessian };
  }

  /* One damped Newton step along the plane sum_k x_k = 1; returns half the squared Newton decrement. */
  function newtonStep(state, sharpness) {
    const { y, size } = state, { gradient, hessian } = derivatives(state, sharpness);
    const plane = y.map((_, k) => (k < size ? 1 : 0));
    const solved = choleskySolve(hessian, [gradient.map((g) => -g), plane]);
    if (!solved) return 0;
    const [free, along] = solved, n = y.length;
    const shift = dot(plane, free, n) / dot(plane, along, n);
    const step = free.map((v, k) => v - shift * along[k]);
    const slope = dot(gradient, step, n);
    if (!(slope < 0)) return 0;
    const before = barrierValue(state, y, sharpness);
    for (let length = 1; length > 1e-12; length /= 2) {
      const trial = y.map((v, k) => v + length * step[k]);
      if (barrierValue(state, trial, sharpness) <= before + 0.25 * length * slope) {
        state.y = trial;
        return -slope / 2;
      }
    }
    return 0;
  }

  return { mixture, lawOf, quantile, interval, rebalance, objective, solve };
})();
