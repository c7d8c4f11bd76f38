/* Numbers as people read them, elements, and the one curve of the what-if view. */
const plot = (() => {
  "use strict";
  const MINUS = "\u2212", THIN = "\u202f";

  function number(value, digits = 3, sign = false) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const text = Math.abs(value).toFixed(digits);
    const zero = Number(text) === 0;
    return (value < 0 && !zero ? MINUS : sign && !zero ? "+" : "") + text;
  }
  const percent = (share, digits = 1) => `${number(100 * share, digits)}${THIN}%`;

  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "path", "rect", "text", "circle", "title", "g"].includes(tag);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  const BOX = { width: 560, height: 216, left: 54, right: 10, top: 10, bottom: 40 };

  /* points: {s, y, band}[] from s = 0 to span; here: the present point; reach: the simulated range or null. */
  function curve(art, points, here, { span, reach, name, words }) {
    const values = points.map((c) => c.y);
    let low = Math.min(...values, here.y), high = Math.max(...values, here.y);
    // Room for the band, but a runaway one does not squeeze the curve into a line.
    const room = high - low || 0.01, ends = points.flatMap((c) => c.band || []);
    const [least, most] = [Math.min(low - 0.2 * room, ...ends), Math.max(high + 0.2 * room, ...ends)];
    low = Math.max(least, low - 1.2 * room);
    high = Math.min(most, high + 1.2 * room);
    const px = (s) => BOX.left + (s / span) * (BOX.width - BOX.left - BOX.right);
    const py = (v) => BOX.top + ((high - v) / (high - low)) * (BOX.height - BOX.top - BOX.bottom);
    const path = (pairs) => pairs.map(([s, v], n) => `${n ? "L" : "M"}${px(s).toFixed(1)} ${py(v).toFixed(1)}`).join("");
    art.setAttribute("aria-label", words);
    art.replaceChildren(make("title", {}, words), ...axes(px, py, low, high, name, span));
    const clip = make("g", { "clip-path": "url(#curve-clip)" });
    if (here.band) {
      const band = [...points.map((c) => [c.s, c.band[1]]), ...points.map((c) => [c.s, c.band[0]]).reverse()];
      clip.append(make("path", { class: "band", d: `${path(band)}Z` }));
    }
    const inside = points.filter((c) => reach && c.s >= reach[0] - 1e-9 && c.s <= reach[1] + 1e-9);
    if (inside.length > 1) clip.append(make("path", { class: "line", d: path(inside.map((c) => [c.s, c.y])) }));
    clip.append(make("path", { class: reach ? "line outside" : "line", d: path(points.map((c) => [c.s, c.y])) }));
    art.append(clip, make("circle", { class: "here", cx: px(here.s), cy: py(here.y), r: 5 }));
  }

  function axes(px, py, low, high, name, span) {
    const parts = [make("path", { class: "axis", d: `M${px(0)} ${BOX.top}L${px(0)} ${py(low)}L${px(span)} ${py(low)}` })];
    [0, 0.25, 0.5, 0.75, 1].forEach((f) => parts.push(
      make("text", { x: px(f * span), y: py(low) + 15, "text-anchor": f === 1 ? "end" : "middle" },
        `${Number((100 * f * span).toFixed(2))}${f === 1 ? " %" : ""}`)));
    parts.push(make("text", { x: px(span / 2), y: BOX.height - 4, "text-anchor": "middle" }, `share of ${name}`));
    const raw = (high - low) / 4, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
    const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
    for (let v = Math.ceil(low / step) * step; v <= high; v += step) {
      parts.push(make("path", { class: "grid", d: `M${px(0)} ${py(v)}L${px(span)} ${py(v)}` }),
        make("text", { x: px(0) - 6, y: py(v) + 4, "text-anchor": "end" }, number(v, digits)));
    }
    return parts;
  }

  return { number, percent, make, curve };
})();
