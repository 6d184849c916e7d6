"use strict";
/* Times, memory and quality: a scatter, growth with size, and stages as stacked bars. */

const DIRECTIONS = [["encode", "Encode"], ["decode", "Decode"]];
const worked = (run) => !run.error && (run.encode || run.decode);

const systemOf = (run) => run.curves.find(Boolean) ?? run.system;
const differ = (runs, of) => new Set(runs.map(of)).size > 1;

function engineOf(run) {
  const device = (run.provider || run.device).replace("ExecutionProvider", "");
  // Of a classic codec, what Pillow takes is not told.
  const automatic = run.backend === "Pillow" ? "" : "threads: automatic";
  const threads = run.threads ? plural(run.threads, "thread") : automatic;
  return [run.backend, device, run.precision, threads].filter(Boolean);
}

/* What a run can be placed by: key, name, value of a run, logarithmic. Quality is the mean at the
   same setting over a data set, that of this number, from the files of rates. */
function measuresOf(number) {
  const of = (key, name, value, log) => ({ key, name, value, log });
  const found = [
    of("decode", "Decode (Mpx/s)", (r) => r.decode?.mpx_per_s, true),
    of("encode", "Encode (Mpx/s)", (r) => r.encode?.mpx_per_s, true),
    // On a machine with other work on it, these are what compares.
    ...DIRECTIONS.map(([way, name]) => of(`${way}-cpu`, `${name}, processor time (ms)`, (r) => r[way]?.cpu.median, true)),
    of("memory", "Peak memory (MB)", (r) => (r.peak_memory === null ? null : r.peak_memory / 1e6), true),
  ];
  const section = report.sections[number];
  if (!section) return found;
  const systemOf = (run) => run.curves[number];
  const anchor = section.anchors[0];
  for (const m of anchor ? section.metrics : [])
    found.push(of(`bd-${m.key}`, `BD-rate against ${anchor}, ${m.label} (%), less is better`, (run) =>
      (systemOf(run) === anchor ? 0
        : section.deltas[m.key].find((d) => d.system === systemOf(run) && d.anchor === anchor)?.percent), false));
  const curve = (run) => section.curves.find((c) => c.system === systemOf(run));
  for (const m of section.metrics)
    found.push(of(m.key, `${m.axis} at this setting`, (run) =>
      curve(run)?.points[m.key].find(([setting]) => setting === run.setting)?.[2], false));
  found.push(of("bpp", "bpp at this setting", (run) => curve(run)?.means[run.setting]?.bpp, false));
  return found;
}

function drawSpeed(host) {
  const sources = [...new Set(report.runs.map((run) => run.source))];
  const sections = [...report.sections.keys()].filter((i) => report.runs.some((run) => run.curves[i]));
  const now = { source: sources[0], size: null, section: sections[0] ?? null, x: "decode", y: null };
  const chosen = () => report.runs.filter((run) => run.source === now.source);
  const sizes = () => [...new Set(chosen().filter(worked).map((run) => run.size))];
  const usual = () => {
    // What most systems were timed on; of several such sizes, that of the pictures, or the middle one.
    const often = (size) => chosen().filter((run) => worked(run) && run.size === size).length;
    const most = Math.max(0, ...sizes().map(often));
    const common = sizes().filter((size) => often(size) === most);
    const photo = report.sections[now.section]?.pictures[0];
    return common.find((size) => photo && size === `${photo.height}x${photo.width}`) ??
      common[Math.floor((common.length - 1) / 2)] ?? "";
  };
  const bar = el("div", { class: "bar" });
  const scatterHost = el("div");
  const tableHost = el("div");
  const growthHost = el("div");
  const there = (m) => report.runs.some((run) => worked(run) && (m.value(run) ?? null) !== null);
  let usable = measuresOf(now.section).filter(there);
  now.size = usual();
  now.y = (usable.find((m) => m.key.startsWith("bd-")) ?? usable.find((m) => m.key === "psnr") ??
    usable.find((m) => m.key === "memory") ?? usable[0])?.key;
  host.replaceChildren(bar, el("div", { class: "two" }, scatterHost, growthHost), tableHost);
  const scatter = usable.length > 1
    ? new Chart(scatterHost, { label: "Speed, memory and quality of systems", wide: 0.72, least: 330, most: 430 })
    : null;

  const key = el("p", { class: "key" });
  if (scatter) scatterHost.append(key);

  function drawBar() {
    const fields = [];
    if (sources.length > 1)
      fields.push(field("Measured in", choice(sources.map((i) => [String(i), report.sources[i].name]),
        String(now.source), (value) => { now.source = Number(value); now.size = usual(); draw(); })));
    if (sizes().length > 1)
      fields.push(field("Height x width", choice(sizes().map((s) => [s, s]), now.size, (v) => { now.size = v; drawParts(); })));
    if (sections.length > 1)
      fields.push(field("Rates and qualities of", choice(sections.map((i) => [String(i), report.sections[i].label]),
        String(now.section), (value) => { now.section = Number(value); draw(); }, { id: "speed-set" })));
    if (scatter) {
      const options = usable.map((m) => [m.key, m.name]);
      fields.push(field("Across", choice(options, now.x, (v) => { now.x = v; drawScatter(); }, { id: "speed-x" }), "grow"),
        field("Up", choice(options, now.y, (v) => { now.y = v; drawScatter(); }, { id: "speed-y" }), "grow"));
    }
    bar.replaceChildren(...fields);
  }

  function drawScatter() {
    if (!scatter) return;
    const told = now.section === null ? "" : ` Rates and qualities are means over ${report.sections[now.section].label}.`;
    key.textContent = `Area: peak memory. Dots of one kind are settings and engines of one system; point at them.${told}`;
    const [x, y] = [now.x, now.y].map((key) => usable.find((m) => m.key === key) ?? usable[0]);
    const runs = chosen().filter((run) => worked(run) && run.size === now.size);
    scatter.show(scatterSeries(runs, x, y), scatterAxes(runs, x, y));
  }

  function drawParts() {
    drawScatter();
    const runs = chosen().filter((run) => !worked(run) || run.size === now.size);
    tableHost.replaceChildren(...speedTable(runs));
  }

  function draw() {
    usable = measuresOf(now.section).filter(there);
    drawBar();
    drawParts();
    drawGrowth(growthHost, chosen());
  }

  draw();
  return { redraw: draw };
}

function scatterSeries(runs, x, y) {
  const most = Math.max(...runs.map((run) => run.peak_memory ?? 0), 1);
  const there = runs.filter((run) => [x, y].every((m) => (m.value(run) ?? null) !== null));
  // One name a system, at its rightmost dot, beside which there is room: the others have the same
  // mark, and tell the rest when pointed at.
  const named = (run) => there.filter((other) => systemOf(other) === systemOf(run))
    .reduce((a, b) => (x.value(b) > x.value(a) ? b : a)) === run;
  const several = differ(runs, (run) => run.picture);
  return there.map((run) => ({
    name: systemOf(run), look: looks.get(systemOf(run)), line: false,
    points: [{
      x: x.value(run), y: y.value(run),
      r: run.peak_memory === null ? 5 : 15 * Math.sqrt(run.peak_memory / most),
      tag: named(run) ? shortened(systemOf(run), 24) : null,
      lines: [["setting", run.setting], ["engine", engineOf(run).join(", ")],
        ...(several ? [["picture", run.picture]] : []),
        [x.name, brief(x.value(run))], [y.name, brief(y.value(run))],
        ["peak memory", run.peak_memory === null ? "not measured" : bytesText(run.peak_memory)]],
    }],
  }));
}

function scatterAxes(runs, x, y) {
  const values = (m) => runs.map(m.value).filter((v) => v !== null && v !== undefined);
  const range = (m, share) => (values(m).length ? padded(values(m), m.log, share) : [1, 2]);
  const home = { x: range(x, 0.25), y: range(y, 0.18) };
  // Names stand to the right of their dots, a letter on about a hundredth of the width.
  const along = (v) => (x.log ? Math.log(v / home.x[0]) / Math.log(home.x[1] / home.x[0])
    : (v - home.x[0]) / (home.x[1] - home.x[0]));
  const ends = runs.filter((run) => (x.value(run) ?? null) !== null)
    .map((run) => along(x.value(run)) + 0.011 * shortened(systemOf(run), 24).length);
  const room = Math.max(0, ...ends.map((end) => end - 1));
  if (x.log) home.x[1] *= (home.x[1] / home.x[0]) ** room;
  else home.x[1] += (home.x[1] - home.x[0]) * room;
  return { x: { name: x.name, log: x.log }, y: { name: y.name, log: y.log }, home };
}

/* How cost grows with the size of pictures, where several sizes were measured. */
function drawGrowth(host, runs) {
  host.replaceChildren();
  const byEngine = new Map();
  for (const run of runs.filter((r) => worked(r) && r.batch === 1)) {
    const key = [systemOf(run), run.setting, run.picture, ...engineOf(run)].join(" · ");
    byEngine.set(key, [...(byEngine.get(key) ?? []), run]);
  }
  const grown = [...byEngine].filter(([, list]) => differ(list, (run) => run.size));
  host.hidden = !grown.length;
  if (!grown.length) return;
  const chart = new Chart(host, { label: "Time by size of picture", wide: 0.72, least: 330, most: 430 });
  const area = (run) => (run.width * run.height) / 1e6;
  const series = grown.flatMap(([, list]) => DIRECTIONS.filter(([way]) => list.every((r) => r[way])).map(([way]) => ({
    name: `${systemOf(list[0])} ${list[0].setting}, ${way}`, line: true,
    look: { ...looks.get(systemOf(list[0])), dash: way === "decode" ? "2 4" : null, published: false },
    points: [...list].sort((a, b) => area(a) - area(b)).map((run) => ({
      x: area(run), y: run[way].wall.median,
      lines: [["engine", engineOf(run).join(", ")], ["height x width", run.size],
        ["median", `${brief(run[way].wall.median)} ms`],
        ["a megapixel", `${brief(run[way].wall.median / area(run))} ms`]],
    })),
  })));
  const all = series.flatMap((s) => s.points);
  chart.show(series, {
    x: { name: "Megapixels", log: true }, y: { name: "Milliseconds", log: true },
    home: { x: padded(all.map((p) => p.x), true, 0.06), y: padded(all.map((p) => p.y), true, 0.06) },
  });
  const names = [...new Set(grown.map(([, list]) => systemOf(list[0])))];
  host.append(el("ul", { class: "swatches" }, ...names.map((name) => el("li", {}, sampleOf(looks.get(name)), name)),
    el("li", {}, "solid: encode, dotted: decode")));
}

/* Stages as bars on one scale for both directions, numbers beside them. */
function speedTable(runs) {
  const good = runs.filter(worked);
  const failed = runs.filter((run) => !worked(run));
  const stages = [...new Set(good.flatMap((run) => DIRECTIONS.flatMap(([way]) => Object.keys(run[way]?.stages ?? {}))))];
  const colour = (stage) => {
    const i = stages.indexOf(stage);
    const plain = i < 0 ? "var(--line)" : `var(--s${(i % 9) + 1})`;
    return i < 9 ? plain : `repeating-linear-gradient(45deg,${plain} 0 3px,var(--panel) 3px 5px)`;
  };
  const most = Math.max(...good.flatMap((run) => DIRECTIONS.map(([way]) => run[way]?.wall.median ?? 0)), 1e-9);
  const swatches = el("ul", { class: "swatches" }, ...stages.map((stage) =>
    el("li", {}, el("i", { style: `background:${colour(stage)}` }), stage)),
  el("li", {}, el("i", { style: `background:${colour(null)}` }), "in no stage"));
  const table = sortable({
    caption: "Medians in milliseconds; p95: 95 of 100 runs take less. Bars share one scale.",
    rows: good, name: "runs", sort: differ(good, (r) => r.picture) ? 3 : 2,
    columns: [
      { label: "System", value: systemOf, heading: true, className: "system-cell", show: systemCell },
      ...(differ(good, (r) => r.picture) ? [{ label: "Picture", value: (r) => r.picture }] : []),
      ...DIRECTIONS.map(([way, name]) => ({
        label: `${name} (ms)`, value: (r) => r[way]?.wall.median ?? null, className: "stack-cell", number: false,
        show: (r) => stackCell(r[way], most, colour),
      })),
      ...DIRECTIONS.map(([way, name]) => ({
        label: `${name} Mpx/s`, number: true, value: (r) => r[way]?.mpx_per_s ?? null,
        show: (r) => brief(r[way]?.mpx_per_s),
      })),
      { label: "Peak memory", number: true, value: (r) => r.peak_memory, show: (r) => bytesText(r.peak_memory) },
      ...(good.some((r) => (r.peak_device_memory ?? null) !== null) ? [{ label: "On the GPU", number: true,
        value: (r) => r.peak_device_memory ?? null, show: (r) => bytesText(r.peak_device_memory) }] : []),
      { label: "Cold start (ms)", number: true, value: (r) => r.cold_start, show: (r) => brief(r.cold_start) },
      { label: "File", number: true, value: (r) => r.bytes, show: (r) => bytesText(r.bytes) },
      { label: "kMAC/px (counted)", number: true, value: macs, show: (r) => brief(macs(r)) },
      { label: "Parameters", number: true, value: (r) => r.parameters, show: (r) => count(r.parameters) },
      ...(good.some((r) => DIRECTIONS.some(([way]) => (r[way]?.energy ?? null) !== null))
        ? DIRECTIONS.map(([way, name]) => ({ label: `${name} (J)`, number: true,
          value: (r) => r[way]?.energy ?? null, show: (r) => brief(r[way]?.energy) })) : []),
    ],
  });
  return [el("h3", {}, "Where the time goes"), swatches, good.length ? table : "", failed.length ? failures(failed) : ""];
}

function macs(run) {
  const parts = Object.values(run.kmac_per_pixel);
  return parts.length ? parts.reduce((a, b) => a + b) : null;
}

function systemCell(run) {
  return el("div", {}, systemOf(run), el("small", {}, [`setting ${run.setting}`, ...engineOf(run)].join(" · ")),
    ...run.fallbacks.map((text) => el("small", { class: "failed" }, `elsewhere: ${text}`)));
}

function stackCell(times, most, colour) {
  if (!times) return missing;
  const parts = Object.entries(times.stages).map(([stage, t]) => [stage, t.median]);
  const rest = times.wall.median - parts.reduce((sum, [, ms]) => sum + ms, 0);
  if (rest > 0.005 * times.wall.median) parts.push([null, rest]);
  const told = parts.map(([stage, ms]) => `${stage ?? "in no stage"} ${brief(ms)} ms`);
  const total = Math.max(times.wall.median, times.wall.median - rest);
  return el("div", {},
    el("b", {}, brief(times.wall.median)), " ",
    el("span", { class: "small" }, `p95 ${brief(times.wall.p95)} · CPU ${brief(times.cpu.median)}`),
    el("div", { class: "stack", role: "img", "aria-label": told.join(", "), style: `width:${(100 * total) / most}%` },
      ...parts.map(([stage, ms], i) =>
        el("i", { style: `flex:${ms} 0 0;background:${colour(stage)}`, title: told[i] }))));
}

function failures(runs) {
  return el("div", {}, el("h3", {}, "Not measured, and why"), sortable({
    rows: runs, name: "failures",
    columns: [
      { label: "System", value: systemOf, heading: true, show: systemCell, className: "system-cell" },
      { label: "Height x width", value: (r) => (r.width ? r.size : missing), className: "size" },
      { label: "Reason", value: (r) => r.error ?? "nothing was timed", className: "failed" },
    ],
  }));
}
