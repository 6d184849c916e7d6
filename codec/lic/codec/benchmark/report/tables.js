"use strict";
/* Tables that sort, by click and by keyboard, and the BD-rate matrix. */

/* Columns: {label, value(row), show(row), number, heading}. What is missing comes last either way. */
function sortable({ caption, columns, rows, sort = 0, descending = false, limit = Infinity, name = "rows" }) {
  const body = el("tbody");
  const more = el("p", { class: "small soft" });
  const heads = columns.map((column, i) =>
    el("th", { scope: "col", class: column.number ? "number" : null },
      el("button", { type: "button", onclick: () => order(i) }, column.label)));
  let now = { by: sort, descending };
  let most = limit;

  function compared(a, b) {
    const column = columns[now.by];
    const [u, v] = [column.value(a), column.value(b)];
    const [lacksU, lacksV] = [u === null || u === undefined, v === null || v === undefined];
    if (lacksU || lacksV) return lacksU - lacksV;
    const way = typeof u === "string" ? u.localeCompare(v, "en", { numeric: true }) : u - v;
    return now.descending ? -way : way;
  }

  function order(by) {
    now = { by, descending: now.by === by ? !now.descending : Boolean(columns[by].number) };
    draw();
  }

  function draw() {
    const sorted = [...rows].sort(compared);
    heads.forEach((head, i) => {
      if (i === now.by) head.setAttribute("aria-sort", now.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    body.replaceChildren(...sorted.slice(0, most).map((row) => el("tr", {}, ...columns.map((column) =>
      el(column.heading ? "th" : "td", {
        class: [column.number ? "number" : "", column.className ?? ""].join(" ").trim() || null,
        scope: column.heading ? "row" : null,
      }, column.show ? column.show(row) : String(column.value(row) ?? missing))))));
    const button = el("button", { class: "plain", type: "button", onclick: () => { most = Infinity; draw(); } },
      "Show all");
    more.replaceChildren(`${count(Math.min(most, rows.length))} of ${count(rows.length)} ${name} `,
      ...(rows.length > most ? [button] : []));
    more.hidden = rows.length <= limit;
  }

  draw();
  const table = el("table", { class: "sortable" }, caption ? captionOf(caption) : null,
    el("thead", {}, el("tr", {}, ...heads)), body);
  return el("div", {}, scrolling(table, caption ?? name, rows.length > 18), more);
}

/* Stays in sight while the table below it scrolls sideways. */
function captionOf(text) {
  return el("caption", {}, el("span", {}, text));
}

/* Wide tables scroll by themselves, by keyboard too; the page never does sideways. */
function scrolling(table, label, tall = false) {
  return el("div", { class: `scroll${tall ? " tall" : ""}`, tabindex: 0, role: "region", "aria-label": label }, table);
}

function pointsTable(section, metric, curves) {
  const rows = curves.flatMap((curve) =>
    curve.points[metric.key].map(([setting, rate, quality]) => ({ curve, setting, rate, quality })));
  return sortable({
    caption: `${section.label}: bits per pixel and ${metric.axis}`,
    rows,
    name: "points",
    columns: [
      { label: "System", value: (r) => r.curve.system, heading: true },
      { label: "Origin", value: (r) => (r.curve.kind === "published" ? "published" : "measured here") },
      { label: "Setting", value: (r) => (r.curve.kind === "published" ? missing : r.setting) },
      { label: "bpp", number: true, value: (r) => r.rate, show: (r) => num(r.rate, 4) },
      { label: metric.axis, number: true, value: (r) => r.quality, show: (r) => num(r.quality, metric.digits + 1) },
    ],
  });
}

/* BD-rate: colour says which way and how far, the sign says it again. */
function deltaMatrix(section, metric) {
  const found = section.deltas[metric.key];
  const refusals = [];
  const kinds = new Map(section.curves.map((curve) => [curve.system, curve.kind]));
  const systems = [...new Set(found.map((delta) => delta.system))];
  const tag = (system) => (kinds.get(system) === "published" && !system.includes("published")
    ? el("span", { class: "tag published" }, "published") : null);
  // Who published no such quality is named once, not refused in every cell.
  const has = (name) => section.curves.some((c) => c.system === name && c.points[metric.key].length);
  const anchors = section.anchors.filter(has);
  const without = [...new Set([...section.anchors, ...systems])].filter((name) => !has(name));
  const heads = anchors.map((name) => el("th", { scope: "col" }, name, tag(name)));
  const rows = systems.filter(has).map((system) => el("tr", {}, el("th", { scope: "row" }, system, tag(system)),
    ...anchors.map((anchor) => deltaCell(
      found.find((d) => d.system === system && d.anchor === anchor), metric, refusals))));
  const table = el("table", { class: "matrix" },
    captionOf(`${section.label}, ${metric.label}: rate of the row's system against the column's`),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "System"), ...heads)), el("tbody", {}, ...rows));
  const key = el("p", { class: "key" },
    el("span", {}, "needs less", el("span", { class: "ramp" }), "needs more"),
    el("span", {}, "small: the quality that both reach, and its share of the narrower curve's"),
    el("span", {}, `⚠ below ${Math.round(100 * report.littleOverlap)} %: says little`),
    without.length ? el("span", {}, `no ${metric.label}: ${without.join(", ")}`) : null);
  const told = refusals.length
    ? el("div", {}, el("h3", {}, "Refused, and why"),
      el("ol", { class: "refusals" }, ...refusals.map((text) => el("li", {}, text))))
    : null;
  return el("div", {}, scrolling(table, "BD-rate"), key, told);
}

function deltaCell(delta, metric, refusals) {
  if (!delta) return el("td", { class: "none" }, el("span", { "aria-hidden": "true" }, "·"), el("span", { class: "unseen" }, "itself"));
  if (delta.refusal) {
    refusals.push(`${delta.system} against ${delta.anchor}: ${delta.refusal}.`);
    return el("td", { class: "none" }, "refused", el("sup", {}, String(refusals.length)));
  }
  const little = delta.overlap < report.littleOverlap;
  const range = `${num(delta.low, 1)}–${num(delta.high, 1)}${metric.unit ? ` ${metric.unit}` : ""}`;
  // The ratio, not the difference: half the rate and twice the rate are equally far.
  const far = Math.min(1, Math.abs(Math.log2(1 + delta.percent / 100)));
  return el("td", {
    "--tint": delta.percent < 0 ? "var(--less)" : "var(--more)", "--share": `${Math.round(8 + 47 * far)}%`,
  }, el("b", {}, `${signed(delta.percent)} %`),
  el("small", {}, range),
  el("small", { class: little ? "little" : null }, `${little ? "⚠ " : ""}${Math.round(100 * delta.overlap)} % of it`));
}

/* Every picture, one file a row; a thousand rows are more than anyone reads, so it starts with one setting. */
function filesTable(host, section) {
  const systems = [...new Set(section.rows.map((row) => row.system))];
  const settingsOf = (system) => [...new Set(section.rows.filter((r) => r.system === system).map((r) => r.setting))];
  const middle = (list) => list[Math.floor(list.length / 2)];
  const now = { system: systems[0] ?? "", setting: middle(settingsOf(systems[0] ?? "")) ?? "", text: "" };
  const place = el("div");
  const settingPlace = el("div");
  const measures = section.metrics;

  function draw() {
    const text = now.text.toLowerCase();
    const rows = section.rows.filter((row) =>
      (!now.system || row.system === now.system) && (!now.setting || row.setting === now.setting) &&
      row.picture.toLowerCase().includes(text));
    place.replaceChildren(sortable({
      caption: `${section.label}: ${plural(rows.length, "file")}`,
      rows, limit: 200, name: "files",
      columns: [
        { label: "Picture", value: (r) => r.picture, heading: true },
        { label: "System", value: (r) => r.system },
        { label: "Setting", value: (r) => r.setting },
        { label: "Bytes", number: true, value: (r) => r.bytes, show: (r) => count(r.bytes) },
        { label: "bpp", number: true, value: (r) => r.bpp, show: (r) => num(r.bpp, 4) },
        ...measures.map((m) => ({
          label: m.axis, number: true, value: (r) => r[m.key], show: (r) => num(r[m.key], m.digits),
        })),
        ...(rows.some((r) => r.error) ? [{ label: "Failed", value: (r) => r.error, className: "failed",
          show: (r) => r.error ?? "" }] : []),
      ],
    }));
  }

  function drawSettings() {
    const all = now.system ? settingsOf(now.system) : [];
    settingPlace.replaceChildren(field("Setting", choice(
      [["", "all"], ...all.map((s) => [s, s])], now.setting, (value) => { now.setting = value; draw(); })));
  }

  host.replaceChildren(el("div", { class: "bar" },
    field("System", choice([...systems.map((s) => [s, s]), ["", "all"]], now.system, (value) => {
      now.system = value;
      now.setting = value ? middle(settingsOf(value)) : "";
      drawSettings();
      draw();
    })), settingPlace,
    field("Picture's name contains", el("input", {
      type: "search", oninput: (event) => { now.text = event.target.value; draw(); },
    }), "grow")), place);
  drawSettings();
  draw();
}
