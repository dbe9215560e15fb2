// The charts and tables over time: which figures of the history each shows.

import { Chart } from "./chart.js";
import { $, element, emptyRow, head, number, replaceRows, row } from "./dom.js";
import { bytes, percent, two } from "./figures.js";
import { MARKS } from "./marks.js";
import { divided, line, summed, totals } from "./ratio.js";

const SETTLED_S = 30; // a newest point that began less long ago is not drawn
const SMOOTH = 4; // points over which ratios of few rounds are taken
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const times = (value) => (value === null || value === undefined ? "–" : `${value.toFixed(2)}×`);
const whole = (value) => `${Math.round(value * 100)}%`;
const tiny = (value) => (value === 0 ? "0" : Math.abs(value) < 0.01 ? value.toExponential(1) : String(Number(value.toPrecision(3))));

/** Figures of served queries: one line for each series. */
const SERVED = [
  { id: "rate", title: "Acceptance rate (accepted / proposed)", format: percent, tick: whole, base: 0, top: 0.2,
    of: (figures) => line(figures.accepted, figures.proposed ?? [], SMOOTH) },
  { id: "length", title: "Acceptance length (committed / rounds, tokens)", format: two, base: 1, top: 1.5,
    of: (figures) => line(figures.committed, figures.rounds ?? [], SMOOTH) },
  { id: "speed", title: "Committed tokens a second", format: (value) => compact.format(value), base: 0, top: 1,
    of: (figures, seconds) => (figures.committed ?? []).map((value, at) => (value === null ? null : value / seconds[at])) },
  { id: "gain", title: "Speed-up over plain decoding (by measured costs)", format: times, base: 0, top: 1.2,
    of: (figures) => line(figures.plain_ms, figures.decode_ms ?? [], SMOOTH) },
];

/** Levels: means of samples, by who they are of. */
const level = (name) => (figures) => line(figures[name], figures[`${name}.samples`] ?? []);
const LEVELS = [
  { id: "loss", title: "Trainer: loss", format: tiny, base: 0, of: level("loss"), trainer: true },
  { id: "learning", title: "Trainer: learning rate", format: tiny, base: 0, of: level("learning_rate"), trainer: true },
  { id: "replay", title: "Trainer: data in the replay", format: bytes, base: 0, of: level("replay_bytes"), trainer: true },
  { id: "lag", title: "Outcomes recorded and not yet read", format: (value) => compact.format(value), base: 0, of: level("stream_lag"), trainer: true },
  { id: "trained", title: "Trainer: share of time trained", format: percent, tick: whole, base: 0, top: 0.1, trainer: true,
    // A trainer that answers late tells the time of several points at once.
    of: (figures, seconds) => (figures.trained_ms ?? []).map((value, at) => (value === null ? null : Math.min(1, value / (seconds[at] * 1000)))) },
  { id: "busy", title: "Engines: share of time in steps", format: percent, tick: whole, base: 0, top: 1, of: level("utilisation") },
  { id: "paused", title: "Taken from serving for training (share of time paused)", format: percent, base: 0, top: 0.02,
    of: (figures, seconds) => (figures.paused_ms ?? []).map((value, at) => (figures["utilisation.samples"]?.[at] == null ? null : (value ?? 0) / (seconds[at] * 1000))) },
];

/** What no drafter proposed was decoded plainly; plain rounds and the lookup have no version. */
const NAMES = { drafter: (value) => value || "plain", version: (value) => (value ? `v${value}` : "no version") };
const nameOf = (series) => Object.entries(series.of).map(([key, value]) => NAMES[key]?.(value) ?? value).join(" · ") || "all";

export class Charts {
  constructor(history, events) {
    this.history = history;
    this.shown = new Set(Object.keys(MARKS));
    const make = ({ id, title, format, tick, base, top }) => new Chart(
      $("charts").appendChild(element("div", { className: "chart", id: `chart-${id}` })),
      { title, history, format, tick, base, top, events: () => this.#events(events()), shownMarks: () => this.shown });
    this.charts = Object.fromEntries([...SERVED, ...LEVELS].map((one) => [one.id, make(one)]));
    $("marks").append(...Object.entries(MARKS).map(([kind, mark]) => this.#markButton(kind, mark)));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Object.values(this.charts).forEach((one) => one.repaint()));
  }

  render() {
    const { served, levels } = this.history;
    const began = performance.now();
    for (const { id, of } of SERVED) this.#show(id, served, of);
    for (const { id, of, trainer } of LEVELS)
      this.#show(id, levels, of, (series) => (series.of.engine === "trainer") === Boolean(trainer));
    $("no-history").hidden = Object.values(this.charts).some((one) => !one.box.hidden);
    this.#tables();
    this.drawnMs = performance.now() - began;
  }

  /** of(figures, seconds): a series' values; seconds: how much of the time of each point has passed. */
  #show(id, { times_s, step_s, series }, of, isShown = () => true) {
    const seconds = times_s.map((at) => Math.min(step_s, this.history.nowS - at));
    // What was counted in the last seconds is not all here yet.
    const end = this.history.isLive && seconds.at(-1) < SETTLED_S ? -1 : undefined;
    const lines = series.filter(isShown)
      .map((one) => ({ name: nameOf(one), values: fill(of(one.figures, seconds), times_s.length).slice(0, end) }))
      .filter((one) => one.values.some((value) => value !== null));
    this.charts[id].show(times_s.slice(0, end), lines);
  }

  /** Events of the chosen range come with the history, newer ones with the live stream. */
  #events(live) {
    const stored = this.history.served?.marks ?? [], newest = stored.at(-1)?.at_s ?? 0;
    return [...stored, ...live.filter((event) => event.at_s > newest)];
  }

  #markButton(kind, mark) {
    const button = element("button", { type: "button", className: "key", "aria-pressed": "true" },
      element("span", { className: `mark ${mark.mood}`, textContent: mark.letter }), mark.name);
    button.addEventListener("click", () => {
      const shows = !this.shown.delete(kind);
      if (shows) this.shown.add(kind);
      button.setAttribute("aria-pressed", String(shows));
      this.render();
    });
    return element("li", {}, button);
  }

  #tables() {
    const { served } = this.history;
    const rows = served.series.map((series) => {
      const sums = summed(series);
      return [sums.rounds ?? 0, row(
        head(nameOf(series)), number(percent(divided(sums.accepted, sums.proposed))), number(two(divided(sums.committed, sums.rounds))),
        number(times(divided(sums.plain_ms, sums.decode_ms))), number(compact.format(sums.rounds ?? 0)), number(compact.format(sums.queries ?? 0)))];
    }).filter(([rounds]) => rounds > 0);
    replaceRows($("summary"), rows.length ? rows.map(([, one]) => one) : [emptyRow(6, "No rounds in this range.")]);
    const all = totals(served), positions = [], lengths = [];
    const arms = Object.entries(served.drafters).filter(([, rounds]) => rounds > 0).sort(([, one], [, other]) => other - one)
      .map(([drafter, rounds]) => meterRow(drafter || "none: plain decoding", rounds, all.rounds));
    for (let at = 1; all[`proposed_at_${at}`]; at++) positions.push(meterRow(`${at}`, all[`accepted_at_${at}`] ?? 0, all[`proposed_at_${at}`]));
    for (let length = 0; length <= 16; length++) if (all[`length_${length}`]) lengths.push(meterRow(length ? `${length}` : "0 (plain)", all[`length_${length}`], all.rounds));
    replaceRows($("positions"), positions.length ? positions : [emptyRow(3, "Nothing was proposed.")]);
    replaceRows($("lengths"), lengths.length ? lengths : [emptyRow(3, "No rounds.")]);
    replaceRows($("arms"), arms.length ? arms : [emptyRow(3, "No rounds.")]);
  }
}

const fill = (values, length) => (values.length === length ? values : Array(length).fill(null));

function meterRow(name, part, whole) {
  const meter = element("meter", { min: 0, max: 1, value: part / whole, "aria-label": `${name}: ${percent(part / whole)}` });
  return row(head(name), meter, number(percent(part / whole), `${part} of ${whole}`));
}
