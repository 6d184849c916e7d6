"use strict";
/* Puts the parts together. */

const chosen = { section: report.sections[0] ?? null, metric: report.sections[0]?.metrics[0] ?? null, log: false };

function drawTheme() {
  const root = document.documentElement;
  const set = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    // Not where a browser keeps nothing for files; the choice then lasts as long as the page.
    try { localStorage.setItem("lic-theme", theme); } catch { /* see above */ }
  };
  let kept = "auto";
  try { kept = localStorage.getItem("lic-theme") ?? kept; } catch { /* see above */ }
  set(kept);
  segments(byId("theme"), [["auto", "Auto"], ["light", "Light"], ["dark", "Dark"]], kept, set);
}

function drawHead() {
  byId("title").textContent = report.title;
  const parts = report.sections.map((section) => {
    const measured = section.curves.filter((curve) => curve.kind !== "published").length;
    const known = section.known ? "recognised by checksum" : "not a known data set";
    return `${section.label}: ${plural(section.pictures.length, "picture")} (${known}), ` +
      `${plural(measured, "system")} measured.`;
  });
  if (report.runs.length) parts.push(`${plural(report.runs.filter(worked).length, "timing")}.`);
  byId("lede").textContent = parts.join(" ");
  const remarks = report.sections.filter((section) => section.remark);
  byId("lede").after(...remarks.map((s) => el("p", { class: "notice small" }, `${s.label}: ${s.remark}`)));
}

/* What most readers came for: lic's systems against the first anchor. */
function drawFigures() {
  const { section, metric } = chosen;
  if (!section || !metric) return;
  const anchor = section.anchors[0];
  const ours = section.curves.filter((curve) => curve.kind === "lic").map((curve) => curve.system);
  const found = section.deltas[metric.key].filter((d) =>
    ours.includes(d.system) && d.anchor === anchor && d.percent !== null);
  byId("figures").replaceChildren(...found.slice(0, 4).map((d) => el("li", {},
    el("b", {}, `${signed(d.percent)} %`, el("small", {}, "rate")),
    el("span", {}, `${d.system} against ${anchor}, at equal ${metric.label}`))));
}

function drawNav() {
  const there = [...document.querySelectorAll("main > section")].filter((section) => !section.hidden);
  const links = new Map(there.map((section) =>
    [section, el("a", { href: `#${section.id}` }, section.querySelector("h2").textContent)]));
  byId("nav").replaceChildren(...[...links.values()].map((link) => el("li", {}, link)));
  const mark = () => {
    const atEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 4;
    const begun = there.filter((section) => section.getBoundingClientRect().top < innerHeight * 0.4);
    const now = atEnd && scrollY > 0 ? there.at(-1) : begun.at(-1);
    for (const [section, link] of links)
      section === now ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
}

/* Rate and distortion */
const hiddenCurves = new Set();
const visible = (section) => section.curves.filter((curve) => !hiddenCurves.has(`${section.label}/${curve.system}`));

function rdSeries(section, metric) {
  return visible(section).map((curve) => ({
    name: curve.system, look: looks.get(curve.system), line: true,
    points: curve.points[metric.key].map(([setting, rate, quality]) => ({
      x: rate, y: quality,
      lines: [...(curve.kind === "published" ? [] : [["setting", setting]]),
        ["bits per pixel", num(rate, 4)], [metric.axis, num(quality, metric.digits)]],
    })),
  }));
}

/* Where lic's own rates are; classic codecs go on far beyond, and "zoom out" shows them. */
function rdAxes(section, metric, series) {
  const rates = (kind) => section.curves.filter((c) => c.kind === kind)
    .flatMap((c) => c.points[metric.key].map((p) => p[1]));
  const ours = rates("lic").length ? rates("lic") : rates("classic");
  const most = Math.max(...ours, 0.1) * 1.35;
  const points = series.flatMap((s) => s.points);
  const inside = [...points.filter((p) => p.x <= most), ...series.flatMap((s) => crossing(s.points, most))];
  const shown = inside.length ? inside : points;
  const least = Math.min(...shown.map((p) => p.x), most);
  return {
    ends: true,
    x: { name: "Bits per pixel", log: chosen.log },
    y: { name: metric.falls ? `${metric.axis}, less is better` : metric.axis },
    home: {
      x: chosen.log ? [least * 0.9, most] : [0, most],
      y: shown.length ? padded(shown.map((p) => p.y), false) : [0, 1],
    },
  };
}

/* Where a curve leaves to the right, so that it does not leave through the top instead. */
function crossing(points, x) {
  const next = points.findIndex((p) => p.x > x);
  if (next < 1) return [];
  const [a, b] = [points[next - 1], points[next]];
  return [{ x, y: a.y + ((x - a.x) / (b.x - a.x)) * (b.y - a.y) }];
}

function drawRd(chart, keep = false) {
  const { section, metric } = chosen;
  const series = rdSeries(section, metric);
  chart.show(series, rdAxes(section, metric, series), { keep });
  byId("rd-points").querySelector("div").replaceChildren(pointsTable(section, metric, visible(section)));
}

function drawLegend(chart) {
  const { section, metric } = chosen;
  const chip = (curve) => {
    const key = `${section.label}/${curve.system}`;
    const node = el("button", {
      class: "chip", type: "button", "aria-pressed": String(!hiddenCurves.has(key)), "data-system": curve.system,
      title: curve.source || null,
      onclick: () => {
        hiddenCurves.has(key) ? hiddenCurves.delete(key) : hiddenCurves.add(key);
        node.setAttribute("aria-pressed", String(!hiddenCurves.has(key)));
        drawRd(chart, true);
      },
      onmouseenter: () => chart.emphasise(hiddenCurves.has(key) ? null : curve.system),
      onmouseleave: () => chart.emphasise(null),
    }, sampleOf(looks.get(curve.system)), el("span", {}, curve.system));
    return node;
  };
  const there = section.curves.filter((curve) => curve.points[metric.key].length);
  const group = (name, list) => (list.length ? el("div", {}, el("h3", {}, name), ...list.map(chip)) : null);
  const published = there.filter((curve) => curve.kind === "published");
  const rest = published.filter((curve) => !curve.shown);
  const open = byId("rd-legend").querySelector("details")?.open ?? false;
  byId("rd-legend").replaceChildren(el("div", { class: "legend" },
    group("Measured here", there.filter((curve) => curve.kind !== "published")),
    group("Published", published.filter((curve) => curve.shown)),
    rest.length ? el("details", { open }, el("summary", {}, `${plural(rest.length, "more published curve")}`),
      el("div", { class: "chips" }, ...rest.map(chip))) : null));
}

function drawRdBar(all) {
  const { section, metric } = chosen;
  const parts = [];
  if (report.sections.length > 1)
    parts.push(field("Data set", choice(report.sections.map((s, i) => [String(i), s.label]),
      String(report.sections.indexOf(section)), (value) => {
        chosen.section = report.sections[Number(value)];
        chosen.metric = chosen.section.metrics.find((m) => m.key === chosen.metric.key) ?? chosen.section.metrics[0];
        all();
      }, { id: "data-set" })));
  parts.push(labelledSegments("Quality", section.metrics.map((m) => [m.key, m.label]), metric.key, (key) => {
    chosen.metric = section.metrics.find((m) => m.key === key);
    all();
  }), labelledSegments("Rate", [["linear", "linear"], ["log", "logarithmic"]], chosen.log ? "log" : "linear", (value) => {
    chosen.log = value === "log";
    all();
  }));
  byId("rd-bar").replaceChildren(...parts);
}

function drawRates() {
  if (!chosen.section || !chosen.metric) return;
  for (const section of report.sections)
    for (const curve of section.curves) if (!curve.shown) hiddenCurves.add(`${section.label}/${curve.system}`);
  for (const id of ["rd", "bd", "files"]) byId(id).hidden = false;
  byId("bd").hidden = report.sections.every((section) => !section.anchors.length);
  const chart = new Chart(byId("rd-chart"), { label: "Rate and distortion" });
  let drawn = null;
  const all = () => {
    const focused = document.activeElement?.value;
    if (drawn !== chosen.section) drawRdBar(all);
    drawLegend(chart);
    drawRd(chart);
    drawFigures();
    byId("bd-table").replaceChildren(deltaMatrix(chosen.section, chosen.metric));
    if (drawn !== chosen.section) filesTable(byId("files-body"), chosen.section);
    if (focused && drawn !== chosen.section) byId("data-set")?.focus();
    drawn = chosen.section;
  };
  all();
}

/* How it was made */
function commandBox(text) {
  const button = el("button", {
    class: "plain", type: "button", onclick: async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(box.firstChild);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    },
  }, "Copy");
  const box = el("div", { class: "command" }, el("pre", {}, text), button);
  return box;
}

function definitions(pairs) {
  return el("dl", {}, ...pairs.filter(([, value]) => value).flatMap(([name, value]) =>
    [el("dt", {}, name), el("dd", {}, value)]));
}

function drawAbout() {
  const cards = report.sources.map(({ name, kind, command, machine }) => el("div", { class: "card" },
    el("h3", {}, name), definitions([
      ["What", kind === "rd" ? "rate and distortion" : "speed"], ["Processor", machine.cpu],
      ["Cores", String(machine.cores)], ["Memory", machine.memory === null ? "" : bytesText(machine.memory)],
      ["System", machine.system], ["Accelerators", machine.accelerators.join(", ")],
      ["Versions", Object.entries(machine.versions).map((pair) => pair.join(" ")).join(", ")],
    ]), command ? commandBox(command) : null));
  cards.push(el("div", { class: "card" }, el("h3", {}, "This page"), definitions([["Made by", `lic ${report.version}`],
    ["Network", "none: everything is in this file"]]), report.command ? commandBox(report.command) : null));
  const published = report.sections.flatMap((s) => s.curves.filter((c) => c.kind === "published")
    .map((curve) => ({ ...curve, set: s.label })));
  const details = report.sections.flatMap((s) => s.curves.filter((c) => c.kind !== "published")
    .map((curve) => ({ ...curve, set: s.label })));
  const told = (curve) => Object.entries(curve.details).map(([key, value]) =>
    `${key}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join("; ");
  byId("about-body").replaceChildren(el("div", { class: "cards" }, ...cards),
    published.length ? el("details", {}, el("summary", {}, "Sources of published curves"), el("div", {}, sortable({
      rows: published, name: "curves", columns: [
        { label: "System", value: (c) => c.system, heading: true }, { label: "Data set", value: (c) => c.set },
        { label: "Source", value: (c) => c.source || "not stated" }],
    }))) : "",
    details.length ? el("details", {}, el("summary", {}, "What fixes each system's files"), el("div", {}, sortable({
      rows: details, name: "systems", columns: [
        { label: "System", value: (c) => c.system, heading: true }, { label: "Data set", value: (c) => c.set },
        { label: "Details", value: (c) => told(c) || missing, className: "small" }],
    }))) : "",
    ...report.sections.map((s) => el("details", {}, el("summary", {}, `Pictures of ${s.label}, with checksums`),
      el("div", {}, sortable({
        rows: s.pictures, name: "pictures", columns: [
          { label: "Picture", value: (p) => p.name, heading: true },
          { label: "Width × height", value: (p) => p.width * p.height, show: (p) => (p.width ? `${p.width} × ${p.height}` : "cannot be read") },
          { label: "SHA-256", value: (p) => p.sha256, show: (p) => el("code", {}, p.sha256) }],
      })))));
}

drawTheme();
drawHead();
drawRates();
if (report.runs.length) {
  byId("speed").hidden = false;
  drawSpeed(byId("speed-body"));
}
if (report.views.length) {
  byId("look").hidden = false;
  new Viewer(byId("viewer"), report.views);
}
drawAbout();
drawNav();
byId("footer").textContent = `Made by lic ${report.version}. Numbers that were not measured are not shown.`;
document.documentElement.dataset.ready = "true";
