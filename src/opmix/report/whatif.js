/* The what-if view: sliders over the mixture, a live solve, predictions with intervals, one curve. */
(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const { number, percent, make } = plot;

  if (!$("whatif-data")) return;

  const data = JSON.parse($("whatif-data").textContent);
  const K = data.coordinates.length, E = data.metrics.length;
  const law = numerics.lawOf(data);
  const draws = data.draws && Object.fromEntries(Object.entries(data.draws).map(([name, value]) =>
    [name, name === "count" ? value : floats(value)]));
  const state = {
    x: data.start.slice(), locked: new Array(K).fill(false), ceilings: new Array(K).fill(1), kl: data.kl,
    objective: data.objective, best: null, metric: -1, coordinate: data.coordinate, span: 1,
  };
  const preset = (name) => data.presets.find((p) => p.name === name);
  const reference = preset(data.reference) || data.presets[data.presets.length - 1];
  const proposal = preset("proposal") || data.presets[0];
  const rows = [], lines = [];

  function floats(text) {
    const bytes = Uint8Array.from(atob(text), (ch) => ch.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  }

  /* ---- the mixture's rows ---- */
  function buildRows() {
    data.coordinates.forEach((name, k) => {
      const inside = data.inside[k];
      const slider = make("input", { type: "range", min: 0, max: 100 * state.span, step: 0.1, "aria-label": `share of ${name}, percent` });
      const entry = make("input", {
        type: "number", min: 0, max: 100, step: 0.1, inputmode: "decimal", "aria-label": `share of ${name}, percent`,
      });
      const lock = make("input", { type: "checkbox", "aria-label": `hold ${name} where it is` });
      const ceiling = make("input", {
        type: "number", min: 0, max: 100, step: 1, value: 100, class: "ceiling", inputmode: "decimal",
        "aria-label": `ceiling of ${name} for the solver, percent`,
      });
      const head = make("span", { class: "name" }, name);
      if (inside) head.append(make("small", {}, ` ${inside}`));
      slider.addEventListener("input", () => move(k, slider.valueAsNumber / 100));
      entry.addEventListener("change", () => {
        if (Number.isFinite(entry.valueAsNumber)) move(k, entry.valueAsNumber / 100);
        else show();
      });
      lock.addEventListener("change", () => { state.locked[k] = lock.checked; });
      ceiling.addEventListener("change", () => {
        const asked = ceiling.valueAsNumber;
        state.ceilings[k] = Number.isFinite(asked) ? Math.min(1, Math.max(0, asked / 100)) : 1;
        ceiling.value = Math.round(1000 * state.ceilings[k]) / 10;
        solve(true);
      });
      const marks = ticks(k), track = make("span", { class: "track" }, slider, ...marks);
      $("sliders").append(make("div", { class: "slide", role: "group", "aria-label": name },
        head, track, entry, make("label", { class: "lock" }, lock, make("span", {}, "hold")), ceiling));
      rows.push({ slider, entry, lock, marks });
    });
  }

  /* Where the proposal and the reference are, under each slider. */
  function ticks(k) {
    return [[proposal, "t-own"], [reference, "t-ref"]].map(([mark, kind]) => {
      const tick = make("i", { class: kind, title: `${mark.label}: ${percent(mark.x[k])}` });
      tick.style.setProperty("--at", Math.min(1, mark.x[k] / state.span));
      return tick;
    });
  }

  /* With many domains all shares are small: sliders then reach as far as the presets need, until something larger
     is typed or solved for. */
  function startSpan() {
    const largest = Math.max(...data.presets.flatMap((p) => p.x));
    state.span = K <= 8 ? 1 : Math.min(1, Math.ceil(20 * largest) / 10);
  }

  function widen() {
    state.span = 1;
    rows.forEach(({ slider, marks }, k) => {
      slider.max = 100;
      marks.forEach((tick, i) => tick.style.setProperty("--at", [proposal, reference][i].x[k]));
    });
  }

  function move(k, share) {
    state.x = numerics.rebalance(state.x, state.locked, k, share);
    show();
  }

  /* ---- the predictions' rows ---- */
  const WIDE = 100;
  function buildPredictions() {
    const names = ["Mean", ...data.metrics];
    names.forEach((name, i) => {
      const svg = make("svg", { class: "strip", viewBox: "0 0 100 16", preserveAspectRatio: "none", "aria-hidden": "true" });
      const zero = make("path", { class: "zero" }), wire = make("path", { class: "wire" }), dot = make("path");
      svg.append(zero, wire, dot);
      const cells = ["loss", "range", "fig", "delta", "own"].map((kind) => make("td", { class: kind }));
      cells[2].append(svg);
      $("predictions").append(make("tr", i ? {} : { class: "total" }, make("th", { scope: "row" }, name), ...cells));
      lines.push({ cells, zero, wire, dot });
    });
    $("against").textContent = `Gain over ${reference.label}`;
    $("level").textContent = draws ? `${Math.round(100 * data.level)} % interval` : "";
  }

  const mean = (values, from = 0) => {
    let sum = 0;
    for (let e = 0; e < E; e++) sum += data.weights[e] * values[from + e];
    return sum;
  };

  /* Losses at x with their draws; entry 0 is the mean. */
  function evaluate(x) {
    const p = numerics.mixture(data.A, x);
    const point = law.losses(p);
    const drawn = draws && law.drawn(draws, p);
    return { point: [mean(point), ...point], drawn };
  }

  function drawnColumn(drawn, i) {
    const out = new Float64Array(draws.count);
    for (let b = 0; b < draws.count; b++) out[b] = i ? drawn[b * E + i - 1] : mean(drawn, b * E);
    return out;
  }

  const fixed = {};
  function remember() {
    fixed.reference = evaluate(reference.x);
    fixed.proposal = evaluate(proposal.x);
    if (draws) fixed.columns = [...Array(E + 1).keys()].map((i) => drawnColumn(fixed.reference.drawn, i));
    // One scale for all rows and all slider positions, so that dots do not jump when the scale does:
    // the widest change among the presets.
    const reach = data.presets.flatMap((p) => evaluate(p.x).point.map((v, i) => Math.abs(v - fixed.reference.point[i])));
    fixed.scale = 1.6 * Math.max(1e-4, ...reach);
  }

  function predict() {
    const here = evaluate(state.x), out = [];
    for (let i = 0; i <= E; i++) {
      const entry = { loss: here.point[i], delta: here.point[i] - fixed.reference.point[i],
        own: here.point[i] - fixed.proposal.point[i] };
      if (draws) {
        const column = drawnColumn(here.drawn, i);
        entry.range = numerics.interval(column, data.level);
        entry.deltaRange = numerics.interval(column.map((v, b) => v - fixed.columns[i][b]), data.level);
      }
      out.push(entry);
    }
    return out;
  }

  const place = (value) => Math.min(WIDE, Math.max(0, WIDE / 2 + (WIDE / 2) * (value / fixed.scale)));

  function drawRow(line, entry) {
    const { cells, zero, wire, dot } = line;
    cells[0].textContent = number(entry.loss);
    cells[1].textContent = entry.range ? entry.range.map((v) => number(v)).join(" to ") : "";
    cells[3].textContent = number(-entry.delta, 3, true);
    cells[4].textContent = number(-entry.own, 3, true);
    zero.setAttribute("d", `M${WIDE / 2} 0L${WIDE / 2} 16`);
    const ends = entry.deltaRange ? entry.deltaRange.map((v) => place(-v)).reverse() : null;
    wire.setAttribute("d", ends ? `M${ends[0]} 8L${ends[1]} 8` : "");
    const at = place(-entry.delta);
    dot.setAttribute("d", `M${at} 8L${at + 0.01} 8`);
    dot.setAttribute("class", entry.delta > 0 ? "dot worse" : "dot");
  }

  /* ---- everything that follows from x ---- */
  let waiting = false;
  function show() {
    if (state.span < 1 && Math.max(...state.x) > state.span + 1e-9) widen();
    rows.forEach(({ slider, entry }, k) => {
      const value = (100 * state.x[k]).toFixed(1);
      // A slider or field in use keeps what its user typed unless it is out of reach.
      if (Math.abs(slider.valueAsNumber - 100 * state.x[k]) > 0.05) slider.value = value;
      entry.value = value;
      slider.setAttribute("aria-valuetext", `${value} percent`);
    });
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; render(); });
  }

  function render() {
    const entries = predict();
    entries.forEach((entry, i) => drawRow(lines[i], entry));
    headline(entries[0]);
    drawCurve();
    $("yaml").textContent = yaml();
    extrapolation();
    pressed();
  }

  function headline(entry) {
    const better = entry.delta <= 0;
    $("headline").textContent = number(entry.loss);
    $("headline-delta").textContent = `gain ${number(-entry.delta, 4, true)} over ${reference.label}` +
      (entry.deltaRange ? ` [${entry.deltaRange.map((v) => number(-v, 4, true)).reverse().join(", ")}]` : "");
    $("headline-delta").className = better ? "good" : "bad";
    $("headline-own").textContent = `${number(-entry.own, 4, true)} over the proposal`;
    const extra = state.best === null ? null : numerics.objective(problem(), state.x) - state.best;
    $("excess").textContent = extra === null || !Number.isFinite(extra) ? (extra === null ? "" : "outside the prior's support")
      : extra < 5e-7 ? "at the optimum of these settings"
        : `${number(extra, 5)} above the optimum of these settings (objective with KL)`;
  }

  function extrapolation() {
    const beyond = data.reach ? data.coordinates.filter((_, k) =>
      state.x[k] > data.reach[k][1] + 0.005 || state.x[k] < data.reach[k][0] - 0.005) : [];
    const few = beyond.slice(0, 4).join(", ") + (beyond.length > 4 ? ` and ${beyond.length - 4} more` : "");
    $("beyond").textContent = beyond.length ? `Outside the simulated range: ${few}. The law extrapolates there.` : "";
  }

  function pressed() {
    document.querySelectorAll("#presets button").forEach((button) => {
      const there = preset(button.dataset.preset).x.every((v, k) => Math.abs(v - state.x[k]) < 1e-6);
      button.setAttribute("aria-pressed", String(there));
    });
  }

  /* Double-quoted JSON strings are YAML. Shares add up to exactly 1 after rounding: the largest takes the rest. */
  function yaml() {
    const p = [...numerics.mixture(data.A, state.x)].map((v) => Math.round(1e6 * v));
    p[p.indexOf(Math.max(...p))] += 1e6 - p.reduce((a, b) => a + b, 0);
    const key = (name) => (/^[A-Za-z_][A-Za-z0-9_]*$/.test(name) && !/^(y|n|yes|no|on|off|true|false|null)$/i.test(name)
      ? name : JSON.stringify(name));
    return `mixture:\n${data.domains.map((d, i) => `  ${key(d)}: ${(p[i] / 1e6).toFixed(6)}`).join("\n")}\n`;
  }

  async function copyYaml() {
    const text = yaml();
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Pages opened from a file may not have the clipboard: select the text and ask the old way.
      $("yaml-box").open = true;
      getSelection().selectAllChildren($("yaml"));
      document.execCommand("copy");
    }
    say("Copied the mixture as YAML.");
  }

  /* ---- the live solve ---- */
  function problem() {
    return { A: data.A, law, weights: data.weights, reference: data.worstReference, q: data.prior,
      kl: state.kl, worst: state.objective === "worst_case", ceilings: state.ceilings };
  }

  function solve(apply) {
    const started = performance.now(), answer = numerics.solve(problem());
    if (answer.problem) {
      state.best = null;
      say(`No mixture: ${answer.problem}.`);
      if (apply) render();
      return;
    }
    state.best = numerics.objective(problem(), answer.x);
    if (!apply) return;
    state.x = answer.x;
    const ms = Math.max(1, Math.round(performance.now() - started));
    say(`Solved in ${answer.steps} Newton steps, ${ms} ms; within ${answer.gap.toExponential(0)} nats of the optimum.`);
    show();
  }

  let speaking = 0;
  function say(text) {
    clearTimeout(speaking);
    speaking = setTimeout(() => { $("status").textContent = text; }, 60);
  }

  /* The slider is logarithmic from 0.001 to 1 with 0 at its left end. */
  const klOf = (position) => (position <= 0 ? 0 : 10 ** (-3 + (3 * (position - 1)) / 99));
  const positionOf = (kl) => (kl <= 0 ? 0 : Math.min(100, Math.max(1, 1 + (99 * (Math.log10(kl) + 3)) / 3)));

  /* Weights of the targets: the objective is theirs, and the sliders of shares go to its optimum. */
  function buildAims() {
    const aims = data.aims || [];
    if (!aims.length) return;
    $("aims").hidden = false;
    const sliders = aims.map((aim) => {
      const slider = make("input", { type: "range", min: 0, max: 100, step: 1, "aria-label": `weight of ${aim.name}, percent` });
      const value = make("output", {});
      slider.value = Math.round(100 * aim.weight);
      $("aims").append(make("div", { class: "slide", role: "group", "aria-label": `weight of ${aim.name}` },
        make("span", { class: "name" }, aim.name), make("span", { class: "track" }, slider), value));
      return { aim, slider, value };
    });
    const others = data.weights.map((w, e) => (aims.some((aim) => aim.metric === e) ? 0 : w));
    const spent = others.reduce((a, b) => a + b, 0);
    const tell = () => sliders.forEach(({ aim, value }) => { value.textContent = percent(data.weights[aim.metric]); });
    const weigh = () => {
      const asked = sliders.map(({ slider }) => slider.valueAsNumber);
      const total = asked.reduce((a, b) => a + b, 0);
      if (total <= 0) return; // something must be minimised
      data.weights = others.slice();
      sliders.forEach(({ aim }, i) => { data.weights[aim.metric] = (1 - spent) * asked[i] / total; });
      tell();
      remember();
      solve(true);
    };
    sliders.forEach(({ slider }) => slider.addEventListener("change", weigh));
    tell();
  }

  function buildControls() {
    data.presets.forEach((p) => {
      const button = make("button", { type: "button", "data-preset": p.name, "aria-pressed": "false" }, p.label);
      button.addEventListener("click", () => { state.x = p.x.slice(); say(`Showing ${p.label}.`); show(); });
      $("presets").append(button);
    });
    const slider = $("kl"), entry = $("kl-value");
    slider.value = positionOf(state.kl);
    entry.value = Number(state.kl.toPrecision(3));
    slider.setAttribute("aria-valuetext", `KL weight ${entry.value}`);
    const setKl = (kl) => {
      state.kl = kl;
      solve(true);
    };
    let queued = false;
    slider.addEventListener("input", () => {
      entry.value = Number(klOf(slider.valueAsNumber).toPrecision(3));
      slider.setAttribute("aria-valuetext", `KL weight ${entry.value}`);
      if (queued) return;
      queued = true;
      requestAnimationFrame(() => { queued = false; setKl(entry.valueAsNumber); });
    });
    entry.addEventListener("change", () => {
      const kl = Number.isFinite(entry.valueAsNumber) ? Math.max(0, entry.valueAsNumber) : data.kl;
      entry.value = kl;
      slider.value = positionOf(kl);
      setKl(kl);
    });
    $("objective").value = state.objective;
    $("objective").addEventListener("change", (event) => { state.objective = event.target.value; solve(true); });
    $("solve").addEventListener("click", () => solve(true));
    $("caps").addEventListener("change", (event) => {
      $("sliders").classList.toggle("with-caps", event.target.checked);
      if (!event.target.checked) {
        state.ceilings.fill(1);
        document.querySelectorAll(".ceiling").forEach((c) => { c.value = 100; });
        solve(true);
      }
    });
    $("copy").addEventListener("click", copyYaml);
  }

  /* ---- the curve: one loss along one share ---- */
  function buildCurve() {
    const metric = $("curve-metric"), coordinate = $("curve-coordinate");
    metric.append(make("option", { value: -1 }, "mean of the eval sets"),
      ...data.metrics.map((m, e) => make("option", { value: e }, m)));
    coordinate.append(...data.coordinates.map((c, k) => make("option", { value: k }, c)));
    coordinate.value = state.coordinate;
    $("curve-words").textContent = draws ? `Band: ${Math.round(100 * data.level)} % interval of the change against ` +
      `${reference.label}.${data.reach ? " Dashed: outside the simulated range." : ""}` : "";
    metric.addEventListener("change", () => { state.metric = Number(metric.value); drawCurve(); });
    coordinate.addEventListener("change", () => { state.coordinate = Number(coordinate.value); drawCurve(); });
  }

  function drawCurve() {
    const k = state.coordinate, i = state.metric + 1, steps = 40, free = new Array(K).fill(false);
    // A coordinate that has everything leaves no proportions behind: the others come back in equal parts.
    const sample = (x) => {
      const here = evaluate(x), y = here.point[i], base = fixed.reference.point[i];
      if (!draws) return { y, band: null };
      // Paired over draws: how sure the change is. How sure the level is says little about where to go.
      const change = drawnColumn(here.drawn, i).map((v, b) => v - fixed.columns[i][b]);
      return { y, band: numerics.interval(change, data.level).map((v) => base + v) };
    };
    // As far as the law has been shown anything, and a little further; all the way for a few domains.
    const wanted = K <= 8 || !data.reach ? 1 : Math.max(1.2 * data.reach[k][1], state.x[k]);
    const span = [0.04, 0.08, 0.12, 0.2, 0.4, 0.6, 0.8, 1].find((s) => s >= wanted) || 1;
    const curve = [...Array(steps + 1).keys()].map((n) => {
      const s = (span * n) / steps;
      return { s, ...sample(numerics.rebalance(state.x, free, k, s)) };
    });
    const here = { s: state.x[k], ...sample(state.x) };
    const values = curve.map((c) => c.y);
    const words = `${i ? data.metrics[i - 1] : "mean"} loss as the share of ${data.coordinates[k]} changes: ` +
      `${number(values[0])} at 0 percent, ${number(here.y)} at ${percent(here.s)}, ${number(values[steps])} at ${percent(span, 0)}`;
    const reach = data.reach && data.reach[k];
    plot.curve($("curve"), curve, here, { span, reach, name: data.coordinates[k], words });
  }

  startSpan();
  buildRows();
  buildPredictions();
  buildControls();
  buildAims();
  buildCurve();
  remember();
  solve(false);
  $("whatif").hidden = false;
  show();

  /* For tests and for people with a console. */
  window.opmix = { data, state, numerics, draws, predict, move, solve, problem };
})();
