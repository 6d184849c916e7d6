"use strict";
/* Original and reconstruction under a divider, zoom and pan, and the map of their difference. */

const GAINS = [1, 4, 8, 16, 32];
const STEPS = [1, 2, 4, 8, 16];

class Viewer {
  constructor(host, views) {
    this.views = views;
    this.now = { view: views[0], left: -1, right: -1, mode: "slider", gain: 8, split: 50 };
    this.zoom = null;
    this.panes = ["left", "right", "map"].map((name) => el("div", { class: `pane ${name}` }));
    this.images = [el("img", { alt: "" }), el("img", { alt: "" })];
    this.canvas = el("canvas", { role: "img" });
    this.panes[0].append(this.images[0]);
    this.panes[1].append(this.images[1]);
    this.panes[2].append(this.canvas);
    this.divider = el("div", { class: "divider" });
    this.sides = ["left", "right"].map((side) => el("span", { class: `side ${side}` }));
    this.stage = el("div", {
      class: "stage", tabindex: 0, role: "group",
      "aria-label": "Picture. Plus and minus zoom, arrow keys pan, 0 fits; the divider has a slider below.",
    }, ...this.panes, this.divider, ...this.sides);
    this.range = el("input", {
      type: "range", min: 0, max: 100, step: 0.5, value: 50, "aria-label": "Divider between the two pictures",
      oninput: () => { this.now.split = Number(this.range.value); this.place(); },
    });
    this.split = el("label", { class: "split" }, "Divider", this.range);
    this.bar = el("div", { class: "bar" });
    this.notes = el("div");
    host.replaceChildren(this.bar, this.stage, this.split, this.notes);
    this.listen();
    new ResizeObserver(() => this.place()).observe(this.stage);
    this.choose(views[0]);
  }

  choose(view) {
    this.now.view = view;
    const shown = view.versions.map((v, i) => [v, i]).filter(([v]) => v.uri);
    this.now.left = -1;
    this.now.right = shown.length ? shown[0][1] : -1;
    this.zoom = null;
    this.drawBar();
    this.drawNotes();
    this.load();
  }

  versionOf(side) {
    const i = this.now[side];
    return i < 0 ? { system: "Original", setting: "", uri: this.now.view.uri, row: null } : this.now.view.versions[i];
  }

  nameOf(version, rate = true) {
    if (!version.row) return version.system;
    const detail = rate && version.row.bpp !== null ? `, ${num(version.row.bpp, 3)} bpp` : "";
    return `${version.system} ${version.setting}${detail}`;
  }

  drawBar() {
    const { now } = this;
    const options = [["-1", "Original"], ...now.view.versions.map((v, i) => [String(i), this.nameOf(v)])
      .filter((_, i) => now.view.versions[i].uri)];
    const side = (key, label) => field(label, choice(options, String(now[key]), (value) => {
      now[key] = Number(value);
      this.load();
    }, { id: `view-${key}` }), "grow");
    const button = (text, name, act) =>
      el("button", { class: "plain", type: "button", "aria-label": name, title: name, onclick: act }, text);
    this.gain = field("Gain", choice(GAINS.map((g) => [String(g), `× ${g}`]), String(now.gain), (value) => {
      now.gain = Number(value);
      this.drawMap();
    }));
    this.bar.replaceChildren(
      field("Picture", choice(this.views.map((v, i) => [String(i), v.picture]), String(this.views.indexOf(now.view)),
        (value) => this.choose(this.views[Number(value)])), "grow"),
      side("left", "Left"), side("right", "Right"),
      labelledSegments("Show", [["slider", "Divider"], ["difference", "Difference"]], now.mode, (value) => {
        now.mode = value;
        this.place();
        this.drawMap();
      }), this.gain,
      el("div", { class: "field" }, "Zoom", el("span", { class: "buttons" },
        button("−", "Zoom out", () => this.zoomBy(0.5)), button("Fit", "Fit the picture", () => this.fit()),
        button("1:1", "One pixel of the picture for one of the screen", () => this.zoomTo(1 / devicePixelRatio)),
        button("+", "Zoom in", () => this.zoomBy(2)))));
  }

  load() {
    ["left", "right"].forEach((side, i) => {
      const version = this.versionOf(side);
      this.images[i].src = version.uri;
      this.images[i].alt = `${this.now.view.picture}, ${this.nameOf(version)}`;
      this.sides[i].textContent = this.nameOf(version);
    });
    this.place();
    this.drawMap();
  }

  /* Absolute difference of both sides, each colour by itself, times the gain. */
  async drawMap() {
    if (this.now.mode !== "difference") return;
    const { width, height } = this.now.view;
    try {
      await Promise.all(this.images.map((image) => image.decode()));
    } catch {
      return; // Another picture was chosen meanwhile, and is drawn by whoever chose it.
    }
    const read = (image) => {
      const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      return context.getImageData(0, 0, width, height);
    };
    const [a, b] = this.images.map(read);
    for (let i = 0; i < a.data.length; i++)
      a.data[i] = i % 4 === 3 ? 255 : Math.min(255, Math.abs(a.data[i] - b.data[i]) * this.now.gain);
    Object.assign(this.canvas, { width, height });
    this.canvas.getContext("2d").putImageData(a, 0, 0);
    this.canvas.setAttribute("aria-label", `Difference, ${this.sides.map((s) => s.textContent).join(" and ")}`);
    this.stage.dataset.map = String(this.now.gain);
  }

  /* Where things are: one transformation for all panes; the clip is in the stage's coordinates. */
  get scale() {
    return this.zoom?.scale ?? this.fitted;
  }

  get fitted() {
    const { width, height } = this.now.view;
    return Math.min(this.stage.clientWidth / width, (window.innerHeight * 0.78) / height);
  }

  place() {
    const { width, height } = this.now.view;
    const { clientWidth } = this.stage;
    if (!clientWidth) return;
    this.stage.style.height = `${Math.round(height * this.fitted)}px`;
    const s = this.scale;
    const [x, y] = this.corner();
    for (const node of [...this.images, this.canvas]) node.style.transform = `translate(${x}px,${y}px) scale(${s})`;
    const difference = this.now.mode === "difference";
    // The divider runs over the picture, which may be narrower than the stage.
    const from = Math.max(0, x);
    const to = Math.min(clientWidth, x + width * s);
    const at = from + ((to - from) * this.now.split) / 100;
    this.panes[0].style.clipPath = `inset(0 ${clientWidth - at}px 0 0)`;
    this.panes[1].style.clipPath = `inset(0 0 0 ${at}px)`;
    this.divider.style.left = `${at}px`;
    this.range.value = this.now.split;
    this.panes.forEach((pane, i) => {
      pane.hidden = (i === 2) !== difference;
      pane.classList.toggle("crisp", s * devicePixelRatio >= 2);
    });
    this.divider.hidden = this.split.hidden = difference;
    this.gain.hidden = !difference;
    this.stage.classList.toggle("zoomed", this.zoom !== null);
    this.stage.classList.toggle("difference", difference);
    this.span = [from, to];
  }

  corner() {
    const { width, height } = this.now.view;
    const s = this.scale;
    const hold = (at, size, room) => (size <= room ? (room - size) / 2 : Math.min(0, Math.max(room - size, at)));
    const { clientWidth, clientHeight } = this.stage;
    const wanted = this.zoom ?? { x: 0, y: 0 };
    const held = [hold(wanted.x, width * s, clientWidth), hold(wanted.y, height * s, clientHeight)];
    if (this.zoom) [this.zoom.x, this.zoom.y] = held;
    return held;
  }

  fit() {
    this.zoom = null;
    this.place();
  }

  zoomBy(factor, at) {
    const steps = STEPS.map((s) => s / devicePixelRatio);
    const wanted = factor > 1
      ? steps.find((s) => s > this.scale * 1.01) ?? steps.at(-1)
      : steps.findLast((s) => s < this.scale * 0.99) ?? 0;
    this.zoomTo(wanted, at);
  }

  zoomTo(wanted, at = [this.stage.clientWidth / 2, this.stage.clientHeight / 2]) {
    if (wanted <= this.fitted) return this.fit();
    const [x, y] = this.corner();
    const ratio = wanted / this.scale;
    this.zoom = { scale: wanted, x: at[0] - (at[0] - x) * ratio, y: at[1] - (at[1] - y) * ratio };
    return this.place();
  }

  pan(dx, dy) {
    if (!this.zoom) return;
    this.zoom.x += dx;
    this.zoom.y += dy;
    this.place();
  }

  splitAt(x) {
    const [from, to] = this.span;
    this.now.split = Math.min(100, Math.max(0, (100 * (x - from)) / (to - from)));
    this.place();
  }

  listen() {
    let drag = null;
    const place = (event) => {
      const box = this.stage.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      const [x, y] = place(event);
      const near = Math.abs(x - parseFloat(this.divider.style.left)) < 26;
      const moves = this.now.mode === "slider" && (near || !this.zoom);
      drag = { moves, x, y };
      this.stage.setPointerCapture(event.pointerId);
      if (moves) this.splitAt(x);
    });
    this.stage.addEventListener("pointermove", (event) => {
      if (!drag) return;
      const [x, y] = place(event);
      if (drag.moves) this.splitAt(x);
      else this.pan(x - drag.x, y - drag.y);
      Object.assign(drag, { x, y });
    });
    for (const name of ["pointerup", "pointercancel"]) this.stage.addEventListener(name, () => { drag = null; });
    this.stage.addEventListener("dblclick", (event) => (this.zoom ? this.fit() : this.zoomBy(2, place(event))));
    this.stage.addEventListener("dragstart", (event) => event.preventDefault());
    this.stage.addEventListener("wheel", (event) => {
      // A plain wheel scrolls the page, as everywhere else on it.
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.zoomBy(event.deltaY < 0 ? 2 : 0.5, place(event));
    }, { passive: false });
    this.stage.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const arrows = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (event.key in arrows && this.zoom) this.pan(...arrows[event.key]);
    else if (event.key in arrows && event.key.endsWith("t") && this.now.mode === "slider") {
      this.now.split = Math.min(100, Math.max(0, this.now.split + (event.key === "ArrowRight" ? 2 : -2)));
      this.place();
    } else if (event.key === "+" || event.key === "=") this.zoomBy(2);
    else if (event.key === "-") this.zoomBy(0.5);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
  }

  drawNotes() {
    const { view } = this.now;
    const notes = view.versions.filter((v) => v.note).map((v) => `${v.system} ${v.setting}: ${v.note}`);
    if (view.crop) notes.unshift(`The middle of the picture, ${view.width} × ${view.height} pixels from ` +
      `(${view.crop.join(", ")}); numbers are of the whole.`);
    const section = report.sections.find((s) => s.label === view.section);
    const decibels = (row, m) => num(m.key === "ms_ssim_db" && row.ms_ssim !== null
      ? -10 * Math.log10(1 - row.ms_ssim) : row[m.key], m.digits);
    this.notes.replaceChildren(...notes.map((text) => el("p", { class: "notice small" }, text)),
      el("div", { class: "versions" }, sortable({
        caption: `${view.picture}: what each file costs and how near it comes`,
        rows: view.versions, name: "versions", sort: 2,
        columns: [
          { label: "System", value: (v) => v.system, heading: true },
          { label: "Setting", value: (v) => v.setting },
          { label: "Bytes", number: true, value: (v) => v.row.bytes, show: (v) => count(v.row.bytes) },
          { label: "bpp", number: true, value: (v) => v.row.bpp, show: (v) => num(v.row.bpp, 4) },
          ...section.metrics.map((m) => ({
            label: m.axis, number: true, show: (v) => decibels(v.row, m),
            value: (v) => (m.key === "ms_ssim_db" ? v.row.ms_ssim : v.row[m.key]),
          })),
        ],
      })));
  }
}
