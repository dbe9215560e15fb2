// One chart over time: lines told apart by dash and colour, a legend of buttons, zoom by dragging or by keys.

import uPlot from "./uPlot.esm.js";
import { element } from "./dom.js";
import { markedNear, markPlugin, ROOM_PIXELS } from "./marks.js";

const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [4, 2], [12, 5], [1, 2], [6, 2, 2, 2, 2, 2]];
const COLOURS = 8;
const HEIGHT = 214;
const DAY = "\n{YYYY}-{MM}-{DD}";
/** uPlot's format: least step in seconds, text, and what is added where the year, the day or the minute changes. */
const TIMES = [
  [365 * 86400, "{YYYY}", null, null, null, null, null, null, 1],
  [28 * 86400, "{MMM}", "\n{YYYY}", null, null, null, null, null, 1],
  [86400, "{MM}-{DD}", "\n{YYYY}", null, null, null, null, null, 1],
  [60, "{HH}:{mm}", DAY, null, "\n{MM}-{DD}", null, null, null, 1],
  [1, "{HH}:{mm}:{ss}", DAY, null, "\n{MM}-{DD}", null, null, null, 1],
];

/** A colour of the style sheet, as it is in the theme now. */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const lineColour = (at) => colour(`line-${at % COLOURS}`);

/** Where a value has none beside it: no line goes there, so a point is drawn. */
const alone = (values) => [...values.keys()].filter((at) => values[at] != null && values[at - 1] == null && values[at + 1] == null);

export class Chart {
  #plot = null;
  #hidden = new Set();
  #data = [[]];
  #names = [];

  /**
   * history: zoomed and moved by this chart; format(value): a figure as text; tick(value): the same, on the y axis;
   * base, top: what the y axis shows at least;
   * events(), shownMarks(): see marks.js.
   */
  constructor(box, { title, history, format, tick = format, base = 0, top = null, events, shownMarks }) {
    Object.assign(this, { box, title, history, format, tick, base, top, events, shownMarks });
    this.canvas = element("div", { className: "plot", tabIndex: 0, role: "img" });
    this.legend = element("ul", { className: "legend", role: "list" });
    box.append(element("h3", { textContent: title }), this.canvas, this.legend);
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.canvas.addEventListener("mousemove", () => this.#tell());
    this.canvas.addEventListener("dblclick", () => history.followNow(history.span));
    new ResizeObserver(() => this.#resize()).observe(this.canvas);
  }

  /** lines: [{name, values}], values like times; null: nothing was counted. */
  show(times, lines) {
    const names = lines.map((line) => line.name);
    this.box.hidden = lines.length === 0;
    this.#data = [times, ...lines.map((line) => line.values)];
    if (this.#plot === null || names.join("\n") !== this.#names.join("\n")) {
      this.#names = names;
      this.#make();
    } else this.#plot.setData(this.#data);
    this.#describe();
  }

  /** After a change of theme. */
  repaint() {
    if (this.#plot !== null) this.#make();
  }

  #make() {
    this.#plot?.destroy();
    const width = Math.max(this.canvas.clientWidth, 200), muted = colour("muted"), grid = { stroke: colour("line"), width: 1 };
    const axis = { stroke: muted, grid, ticks: grid, font: "12px system-ui, sans-serif" };
    this.#plot = new uPlot({
      width, height: HEIGHT, padding: [ROOM_PIXELS, 22, 0, 0], legend: { show: false },
      cursor: { sync: { key: "osd" }, drag: { x: true, y: false, setScale: false }, points: { size: 6 } },
      scales: { x: { time: true, range: () => { const { from, to } = this.history.range(); return [from, to]; } },
        y: { range: (_, low, high) => this.#heights(low, high) } },
      axes: [{ ...axis, space: 70, values: TIMES }, { ...axis, size: 66, values: (_, ticks) => ticks.map((tick) => this.tick(tick)) }],
      series: [{}, ...this.#names.map((name, at) => ({
        label: name, stroke: lineColour(at), width: 2, dash: DASHES[at % DASHES.length], spanGaps: false,
        show: !this.#hidden.has(name), points: { show: false, filter: (_, series) => alone(this.#data[series]) },
      }))],
      hooks: {
        setSelect: [(plot) => this.#select(plot)],
        setCursor: [(plot) => this.#values(plot.cursor.idx)],
      },
      plugins: [markPlugin(this.events, this.shownMarks, colour)],
    }, this.#data, this.canvas);
    this.#makeLegend();
  }

  #heights(low, high) {
    const top = Math.max(high ?? 0, this.top ?? 0), base = Math.min(this.base, low ?? this.base);
    return [base, top > base ? base + (top - base) * 1.06 : base + 1];
  }

  #select(plot) {
    const { left, width } = plot.select;
    if (width < 4) return;
    const from = plot.posToVal(left, "x"), to = plot.posToVal(left + width, "x");
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.history.zoomTo(from, to);
  }

  #key(event) {
    const moves = { ArrowLeft: [-0.25], ArrowRight: [0.25], "+": [0, 0.5], "=": [0, 0.5], "-": [0, 2] }[event.key];
    if (event.key === "Home") this.history.followNow(this.history.span);
    else if (moves) this.history.move(...moves);
    else return;
    event.preventDefault();
  }

  /** The mark under the pointer, as a tooltip. */
  #tell() {
    const text = this.#plot === null ? "" : markedNear(this.#plot, this.#plot.cursor.left, this.events(), this.shownMarks());
    if (this.canvas.title !== text) this.canvas.title = text;
  }

  #resize() {
    const width = this.canvas.clientWidth;
    if (this.#plot !== null && width > 0 && width !== this.#plot.width) this.#plot.setSize({ width, height: HEIGHT });
  }

  #makeLegend() {
    this.legend.replaceChildren(...this.#names.map((name, at) => {
      const button = element("button", { type: "button", className: "key", "aria-pressed": String(!this.#hidden.has(name)) });
      const sample = element("canvas", { width: 60, height: 4, className: "sample", "aria-hidden": "true" });
      const pen = sample.getContext("2d");
      pen.strokeStyle = lineColour(at);
      pen.lineWidth = 4;
      pen.setLineDash(DASHES[at % DASHES.length].map((length) => 2 * length));
      pen.beginPath();
      pen.moveTo(0, 2);
      pen.lineTo(60, 2);
      pen.stroke();
      button.append(sample, element("span", { textContent: name }), element("span", { className: "value" }));
      button.addEventListener("click", () => {
        const shows = this.#hidden.delete(name) || !this.#hidden.add(name);
        button.setAttribute("aria-pressed", String(shows));
        this.#plot.setSeries(at + 1, { show: shows });
      });
      return element("li", {}, button);
    }));
    this.#values(null);
  }

  /** The values at the cursor, or the newest ones. */
  #values(at) {
    [...this.legend.querySelectorAll(".value")].forEach((span, index) => {
      const values = this.#data[index + 1] ?? [];
      const value = at === null || at === undefined ? values.findLast((one) => one !== null) : values[at];
      const text = value === null || value === undefined ? "–" : this.format(value);
      if (span.textContent !== text) span.textContent = text;
    });
  }

  /** What the chart shows, for who cannot see it. */
  #describe() {
    if (this.#plot?.cursor.idx == null) this.#values(null);
    const newest = this.#names.map((name, at) => {
      const value = this.#data[at + 1].findLast((one) => one !== null);
      return `${name} ${value === undefined ? "nothing counted" : this.format(value)}`;
    });
    const text = `${this.title}. Newest: ${newest.join(", ") || "nothing counted"}. Arrow keys move, plus and minus zoom, Home returns to now.`;
    if (this.canvas.getAttribute("aria-label") !== text) this.canvas.setAttribute("aria-label", text);
  }

  /** For tests: how many points are drawn, and in what range. */
  get drawn() {
    return { points: this.#data[0].length, lines: this.#names, from: this.#plot?.scales.x.min, to: this.#plot?.scales.x.max };
  }
}
