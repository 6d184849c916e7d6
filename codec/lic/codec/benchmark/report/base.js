"use strict";
/* What every part uses: the data, elements, numbers in words, and how systems look. */

const report = JSON.parse(document.getElementById("results").textContent);
const byId = (id) => document.getElementById(id);

/* Names of files and systems are other people's text: they only ever become text nodes. */
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/* Numbers: a real minus, and nothing rather than a nought for what was not measured. */
const missing = "–";

function num(value, digits = 2) {
  if (value === null || value === undefined) return missing;
  return value.toFixed(digits).replace("-", "−");
}

function signed(value, digits = 1) {
  const text = num(value, digits);
  return value > 0 ? `+${text}` : text;
}

function brief(value) {
  if (value === null || value === undefined) return missing;
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return num(value, digits);
}

function count(value) {
  return value === null || value === undefined ? missing : value.toLocaleString("en-GB");
}

function bytesText(value) {
  if (value === null || value === undefined) return missing;
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const step = Math.min(4, Math.max(0, Math.floor(Math.log10(Math.max(value, 1)) / 3)));
  return step === 0 ? `${value} bytes` : `${brief(value / 1000 ** step)} ${units[step]}`;
}

const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

/* The middle goes: what distinguishes names of one family is usually at their end. */
function shortened(name, most = 26) {
  if (name.length <= most) return name;
  const tail = Math.ceil((most - 1) * 0.58);
  return `${name.slice(0, most - 1 - tail)}…${name.slice(-tail)}`;
}

/* A system looks the same in every chart. Published ones are muted, dashed and hollow. */
const MARKS = ["circle", "square", "triangle", "diamond", "down", "plus", "hexagon", "star"];
const DASHES = ["7 4", "3 3", "10 3 2 3", "5 2", "2 4", "12 4"];

const looks = (() => {
  const found = new Map();
  let ours = 0;
  let theirs = 0;
  const add = (system, kind) => {
    if (found.has(system)) return;
    const published = kind === "published";
    const i = published ? theirs++ : ours++;
    found.set(system, {
      colour: published ? `var(--p${(i % 6) + 1})` : `var(--c${(i % 8) + 1})`,
      mark: MARKS[(i + Math.floor(i / 8)) % MARKS.length],
      dash: published ? DASHES[i % DASHES.length] : null,
      published,
    });
  };
  const curves = report.sections.flatMap((section) => section.curves);
  for (const curve of [...curves.filter((c) => c.shown), ...curves]) add(curve.system, curve.kind);
  for (const run of report.runs) add(run.curves.find(Boolean) ?? run.system, "measured");
  return found;
})();

function markPath(shape, x, y, r) {
  const polygon = (n, turn, radius = () => r) =>
    Array.from({ length: n }, (_, i) => {
      const angle = turn + (2 * Math.PI * i) / n;
      const at = [x + radius(i) * Math.sin(angle), y - radius(i) * Math.cos(angle)];
      return `${i ? "L" : "M"}${at[0].toFixed(2)} ${at[1].toFixed(2)}`;
    }).join("") + "Z";
  const a = r * 0.36;
  switch (shape) {
    case "square": return polygon(4, Math.PI / 4, () => r * 1.25);
    case "triangle": return polygon(3, 0, () => r * 1.3);
    case "diamond": return polygon(4, 0, () => r * 1.3);
    case "down": return polygon(3, Math.PI, () => r * 1.3);
    case "hexagon": return polygon(6, 0, () => r * 1.15);
    case "star": return polygon(10, 0, (i) => (i % 2 ? r * 0.6 : r * 1.4));
    case "plus":
      return `M${x - a} ${y - r * 1.2}h${2 * a}v${r * 1.2 - a}h${r * 1.2 - a}v${2 * a}h${a - r * 1.2}` +
        `v${r * 1.2 - a}h${-2 * a}v${a - r * 1.2}h${a - r * 1.2}v${-2 * a}h${r * 1.2 - a}Z`;
    default: return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
  }
}

function markOf(look, x, y, r) {
  const inside = look.published ? "var(--panel)" : look.colour;
  return svg("path", {
    class: "mark", d: markPath(look.mark, x, y, r), fill: inside, stroke: look.colour,
  });
}

function sampleOf(look) {
  return svg("svg", { width: 30, height: 12, "aria-hidden": "true" },
    svg("line", {
      x1: 1, x2: 29, y1: 6, y2: 6, stroke: look.colour, "stroke-width": look.published ? 1.5 : 2.25,
      "stroke-dasharray": look.dash,
    }), markOf(look, 15, 6, 4));
}

/* Controls */
function field(label, control, className = "") {
  return el("label", { class: `field ${className}` }, label, control);
}

function choice(options, chosen, onchange, attributes = {}) {
  const select = el("select", { ...attributes, onchange: () => onchange(select.value) },
    ...options.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
  return select;
}

let groups = 0;
function segments(host, options, chosen, onchange) {
  const name = `segments-${groups++}`;
  host.append(...options.map(([value, text]) => el("label", {},
    el("input", {
      type: "radio", name, value, checked: value === chosen, onchange: () => onchange(value),
    }), el("span", {}, text))));
  return host;
}

function labelledSegments(label, options, chosen, onchange) {
  const host = el("fieldset", { class: "segments", "aria-label": label });
  segments(host, options, chosen, onchange);
  return el("div", { class: "field" }, label, host);
}
