"use strict";
/* Curves and dots over two axes: hover, keyboard, zoom. */

function scaleOf([from, to], [start, end], log) {
  const f = log ? Math.log10 : (v) => v;
  const a = f(from);
  const span = f(to) - a || 1;
  return {
    to: (v) => start + ((f(v) - a) / span) * (end - start),
    back: (s) => {
      const v = a + ((s - start) / (end - start)) * span;
      return log ? 10 ** v : v;
    },
  };
}

function niceStep(span, wanted) {
  const rough = span / Math.max(1, wanted);
  const unit = 10 ** Math.floor(Math.log10(rough));
  return unit * [1, 2, 5, 10].find((m) => m * unit >= rough * 0.999);
}

function ticksOf([from, to], log, wanted) {
  if (log) {
    const found = [];
    const wide = Math.log10(to / from) > wanted / 2.5;
    for (let e = Math.floor(Math.log10(from)); e <= Math.ceil(Math.log10(to)); e++)
      for (const m of wide ? [1] : [1, 2, 5]) {
        const v = m * 10 ** e;
        if (v >= from * 0.999 && v <= to * 1.001) found.push(v);
      }
    if (found.length >= 2) return found;
  }
  const step = niceStep(to - from, wanted);
  const found = [];
  for (let i = Math.ceil(from / step - 1e-9); i * step <= to + step * 1e-9; i++) found.push(i * step);
  return found;
}

function tickText(value, ticks) {
  const gaps = ticks.slice(1).map((t, i) => t - ticks[i]);
  // Along an axis of even steps all have as many digits; of 0.5, 1, 2, 5, 10 each as it needs.
  const even = Math.max(...gaps) < 1.5 * Math.min(...gaps);
  const least = Math.min(...(even ? gaps : []), Math.abs(value) || Infinity);
  return num(value, Math.min(6, Math.max(0, -Math.floor(Math.log10(least) + 1e-9))));
}

class Chart {
  /* Series: {name, look, line, points: [{x, y, r, tag, lines: [[label, value]]}]}. */
  constructor(host, { label, wide = 0.5, least = 320, most = 540 }) {
    this.series = [];
    this.axes = null;
    this.view = null;
    this.at = null;
    this.size = { wide, least, most };
    this.tip = el("div", { class: "tip", hidden: true });
    this.live = el("p", { class: "unseen", "aria-live": "polite" });
    this.svg = svg("svg", {
      tabindex: 0, role: "group", "aria-roledescription": "chart",
      "aria-label": `${label}. Arrow keys go from point to point, + and − zoom, 0 shows all again.`,
    });
    const button = (text, name, act) =>
      el("button", { class: "plain", type: "button", "aria-label": name, title: name, onclick: act }, text);
    this.tools = el("div", { class: "tools buttons" },
      button("−", "Zoom out", () => this.zoom(1.5)), button("+", "Zoom in", () => this.zoom(1 / 1.5)),
      button("Reset", "Show all again", () => this.reset()));
    this.node = el("div", { class: "chart" }, this.svg, this.tools, this.tip, this.live);
    host.append(this.node);
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.node);
  }

  /* Axes: {x: {name, log}, y: {name, log}, home: {x, y}, ends}; home is what is seen before any zoom,
     ends says that curves are named where they end. */
  show(series, axes, { keep = false } = {}) {
    this.series = series.filter((s) => s.points.length);
    this.axes = axes;
    if (!keep) this.view = null;
    this.at = null;
    this.tip.hidden = true;
    this.draw();
  }

  get domain() {
    return this.view ?? this.axes.home;
  }

  reset() {
    this.view = null;
    this.draw();
  }

  zoom(factor, centre = [0.5, 0.5]) {
    const around = ([from, to], log, share) => {
      const s = scaleOf([from, to], [0, 1], log);
      return [s.back(share - share * factor), s.back(share + (1 - share) * factor)];
    };
    const { x, y } = this.domain;
    this.view = { x: around(x, this.axes.x.log, centre[0]), y: around(y, this.axes.y.log, centre[1]) };
    if (!this.axes.x.log && this.axes.home.x[0] >= 0) this.view.x[0] = Math.max(0, this.view.x[0]);
    this.draw();
  }

  pan(dx, dy) {
    const move = ([from, to], log, share) => {
      const s = scaleOf([from, to], [0, 1], log);
      return [s.back(share), s.back(1 + share)];
    };
    const { x, y } = this.domain;
    this.view = { x: move(x, this.axes.x.log, dx), y: move(y, this.axes.y.log, dy) };
    this.draw();
  }

  emphasise(name) {
    for (const group of this.svg.querySelectorAll("[data-series]"))
      group.classList.toggle("faded", name !== null && group.dataset.series !== name);
  }

  draw() {
    const width = this.svg.clientWidth;
    if (!this.axes || !width) return;
    const height = Math.round(Math.min(this.size.most, Math.max(this.size.least, width * this.size.wide)));
    const labelled = width >= 720;
    const margin = { left: 52, right: labelled && this.axes.ends ? 196 : 16, top: 30, bottom: 46 };
    const plot = { left: margin.left, right: width - margin.right, top: margin.top, bottom: height - margin.bottom };
    this.plot = plot;
    this.sx = scaleOf(this.domain.x, [plot.left, plot.right], this.axes.x.log);
    this.sy = scaleOf(this.domain.y, [plot.bottom, plot.top], this.axes.y.log);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("height", height);
    const clip = `clip-${(this.number ??= Chart.made++)}`;
    const inside = svg("g", { "clip-path": `url(#${clip})` }, ...this.series.map((s) => this.drawSeries(s)));
    this.front = svg("g", {});
    const labels = this.axes.ends ? (labelled ? this.drawNames(this.ends(), width) : []) : this.drawNames(this.tags(), width);
    this.svg.replaceChildren(
      svg("defs", {}, svg("clipPath", { id: clip }, svg("rect", {
        x: plot.left - 1, y: plot.top - 6, width: plot.right - plot.left + 7, height: plot.bottom - plot.top + 7,
      }))),
      ...this.drawAxes(width, height), inside, ...labels, this.front);
    if (this.at) this.point(this.at);
  }

  drawAxes(width, height) {
    const { left, right, top, bottom } = this.plot;
    const nodes = [];
    const across = ticksOf(this.domain.x, this.axes.x.log, (right - left) / (right - left < 500 ? 60 : 90));
    const up = ticksOf(this.domain.y, this.axes.y.log, (bottom - top) / 55);
    for (const t of across) {
      const x = this.sx.to(t);
      nodes.push(svg("line", { class: "grid", x1: x, x2: x, y1: top, y2: bottom }),
        svg("text", { x, y: bottom + 18, "text-anchor": "middle" }, tickText(t, across)));
    }
    for (const t of up) {
      const y = this.sy.to(t);
      nodes.push(svg("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }),
        svg("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, tickText(t, up)));
    }
    nodes.push(svg("line", { class: "frame", x1: left, x2: right, y1: bottom, y2: bottom }),
      svg("text", { class: "axis-name", x: 8, y: 16 }, this.axes.y.name),
      // In narrow charts the buttons stand to the right of it.
      svg("text", width < 560
        ? { class: "axis-name", x: left, y: height - 6 }
        : { class: "axis-name", x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, this.axes.x.name));
    return nodes;
  }

  drawSeries(series) {
    const at = series.points.map((p) => [this.sx.to(p.x), this.sy.to(p.y)]);
    const group = svg("g", {
      "data-series": series.name, class: series.look.published ? "published" : "measured",
    });
    if (series.line && at.length > 1)
      group.append(svg("path", {
        class: "curve", d: `M${at.map(([x, y]) => `${x.toFixed(2)} ${y.toFixed(2)}`).join("L")}`,
        stroke: series.look.colour, "stroke-dasharray": series.look.dash,
      }));
    series.points.forEach((p, i) => {
      const mark = markOf(series.look, ...at[i], p.r ?? (series.look.published ? 3.2 : 4));
      if (p.r) mark.setAttribute("fill-opacity", 0.35);
      group.append(mark);
    });
    return group;
  }

  /* What is named: curves where they end or leave, or dots that have a tag. */
  ends() {
    return this.series.map((series) => ({ series, text: shortened(series.name), end: this.endOf(series) }))
      .filter(({ end }) => end);
  }

  tags() {
    return this.series.flatMap((series) => series.points.filter((p) => p.tag && this.seen(p)).map((p) => (
      { series, text: p.tag, end: { x: this.sx.to(p.x) + (p.r ?? 4) - 2, y: this.sy.to(p.y) } })));
  }

  /* Names move up or down until none covers another. */
  drawNames(named, width) {
    // Dots are large, so names keep off them; curves would leave no room at all.
    const taken = this.axes.ends ? [] : this.series.flatMap((s) => s.points.map((p) => {
      const r = p.r ?? 4;
      return { x: this.sx.to(p.x) - r, y: this.sy.to(p.y), w: 2 * r, h: 2 * r };
    }));
    const free = (box) => taken.every((b) => box.x + box.w < b.x || b.x + b.w < box.x ||
      Math.abs(box.y - b.y) > (box.h + b.h) / 2);
    const found = [];
    named.sort((a, b) => a.end.y - b.end.y);
    for (const { series, text, end } of named) {
      const w = text.length * 6.9;
      const x = Math.min(end.x + 9, width - w - 4);
      const tries = Array.from({ length: 21 }, (_, i) => (i % 2 ? 1 : -1) * Math.ceil(i / 2) * 7);
      const inside = (y) => y < this.plot.bottom - 4 && y > this.plot.top - 12;
      const offset = tries.find((dy) => free({ x, y: end.y + dy, w, h: 14 }) && inside(end.y + dy));
      if (offset === undefined) continue;
      taken.push({ x, y: end.y + offset, w, h: 14 });
      found.push(svg("text", {
        class: `end ${series.look.published ? "published" : ""}`, "data-series": series.name,
        x, y: end.y + offset + 4, style: `fill:${series.look.colour}`,
      }, text));
    }
    return found;
  }

  endOf(series) {
    const { left, right, top, bottom } = this.plot;
    const at = series.points.map((p) => [this.sx.to(p.x), this.sy.to(p.y)]);
    const seen = ([x, y]) => x >= left - 1 && x <= right + 1 && y >= top - 1 && y <= bottom + 1;
    const last = at.findLastIndex(seen);
    if (last < 0) return null;
    const next = at[last + 1];
    const [x, y] = at[last];
    if (!next || !series.line) return { x, y };
    const share = Math.min(1,
      next[0] > right ? (right - x) / (next[0] - x) : 1,
      next[1] < top ? (top - y) / (next[1] - y) : 1);
    return { x: x + share * (next[0] - x), y: y + share * (next[1] - y) };
  }

  /* Pointing */
  listen() {
    const node = this.svg;
    let start = null;
    const place = (event) => {
      const box = node.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    node.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || event.button !== 0) return;
      start = place(event);
      node.setPointerCapture(event.pointerId);
    });
    node.addEventListener("pointermove", (event) => {
      if (start) this.drawBox(start, place(event));
      else this.point(this.nearest(...place(event)));
    });
    node.addEventListener("pointerup", (event) => {
      if (start) this.zoomTo(start, place(event));
      else this.point(this.nearest(...place(event)));
      start = null;
    });
    node.addEventListener("pointercancel", () => { start = null; this.draw(); });
    // A finger leaves as soon as it is lifted; what it tapped stays until the next tap.
    node.addEventListener("pointerleave", (event) => {
      if (!start && event.pointerType === "mouse") this.point(null);
    });
    node.addEventListener("dblclick", () => this.reset());
    node.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const [x, y] = place(event);
      const { left, right, top, bottom } = this.plot;
      this.zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, [(x - left) / (right - left), (bottom - y) / (bottom - top)]);
    }, { passive: false });
    node.addEventListener("keydown", (event) => this.key(event));
    node.addEventListener("blur", () => this.point(null));
  }

  drawBox([x0, y0], [x1, y1]) {
    this.point(null);
    this.front.replaceChildren(svg("rect", {
      class: "box", x: Math.min(x0, x1), y: Math.min(y0, y1), width: Math.abs(x1 - x0), height: Math.abs(y1 - y0),
    }));
  }

  zoomTo([x0, y0], [x1, y1]) {
    if (Math.abs(x1 - x0) > 8 && Math.abs(y1 - y0) > 8)
      this.view = {
        x: [this.sx.back(Math.min(x0, x1)), this.sx.back(Math.max(x0, x1))],
        y: [this.sy.back(Math.max(y0, y1)), this.sy.back(Math.min(y0, y1))],
      };
    this.draw();
  }

  seen(p) {
    const { x, y } = this.domain;
    return p.x >= x[0] && p.x <= x[1] && p.y >= y[0] && p.y <= y[1];
  }

  nearest(x, y) {
    let best = null;
    let least = 44 ** 2;
    for (const series of this.series)
      series.points.forEach((p, index) => {
        const d = (this.sx.to(p.x) - x) ** 2 + (this.sy.to(p.y) - y) ** 2;
        if (d < least && this.seen(p)) [least, best] = [d, { series, index }];
      });
    return best;
  }

  point(at) {
    this.at = at;
    this.tip.hidden = !at;
    this.front?.replaceChildren();
    this.emphasise(at && this.series.length > 1 && this.series.every((s) => s.line) ? at.series.name : null);
    if (!at) return;
    const p = at.series.points[at.index];
    const [x, y] = [this.sx.to(p.x), this.sy.to(p.y)];
    const { left, bottom } = this.plot;
    this.front.append(
      svg("line", { class: "cross", x1: x, x2: x, y1: y, y2: bottom }),
      svg("line", { class: "cross", x1: left, x2: x, y1: y, y2: y }),
      svg("path", { class: "ring", d: markPath(at.series.look.mark, x, y, (p.r ?? 4) + 4) }));
    const origin = at.series.look.published ? "published" : "measured here";
    this.tip.replaceChildren(el("b", {}, at.series.name), el("span", { class: "soft" }, origin),
      el("dl", {}, ...p.lines.flatMap(([label, value]) => [el("dt", {}, label), el("dd", {}, value)])));
    const box = this.svg.getBoundingClientRect();
    const outer = this.node.getBoundingClientRect();
    const [w, h] = [this.tip.offsetWidth, this.tip.offsetHeight];
    const px = x + box.left - outer.left;
    const py = y + box.top - outer.top;
    this.tip.style.left = `${Math.max(4, px + 18 + w < outer.width ? px + 18 : px - w - 18)}px`;
    this.tip.style.top = `${Math.max(4, py - h - 14 > 0 ? py - h - 14 : py + 18)}px`;
  }

  key(event) {
    const keys = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (event.key in keys && event.shiftKey) this.pan(...keys[event.key].map((v) => v * 0.15));
    else if (event.key in keys) this.step(...keys[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom(1 / 1.5);
    else if (event.key === "-") this.zoom(1.5);
    else if (event.key === "0") this.reset();
    else if (event.key === "Escape") this.point(null);
    else return;
    event.preventDefault();
  }

  /* Sideways along a curve, up and down to another at about the same place. */
  step(along, across) {
    if (!this.series.length) return;
    let { series, index } = this.at ?? { series: this.series[0], index: -along };
    if (across) {
      const here = series.points[Math.max(0, index)];
      const i = this.series.indexOf(series);
      series = this.series[(i + across + this.series.length) % this.series.length];
      const away = (p) => Math.abs(this.sx.to(p.x) - this.sx.to(here.x));
      index = series.points.reduce((best, p, k) => (away(p) < away(series.points[best]) ? k : best), 0);
    }
    index = Math.min(series.points.length - 1, Math.max(0, index + along));
    this.point({ series, index });
    const lines = series.points[index].lines.map(([label, value]) => `${label} ${value}`).join(", ");
    this.live.textContent = `${series.name}${series.look.published ? ", published" : ""}: ${lines}`;
  }
}
Chart.made = 0;

/* The range of values with room around it. */
function padded(values, log, share = 0.05) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  if (log) {
    const room = Math.max((high / low) ** share, 1.04);
    return [low / room, high * room];
  }
  const room = (high - low || Math.abs(high) || 1) * share;
  return [low - room, high + room];
}
