// The event log of the chosen range, filtered, and its export.

import { API } from "./api.js";
import { $, element, put, replaceRows } from "./dom.js";
import { timeElement } from "./figures.js";

export const EVENT_MOODS = { publish: "good", swap: "good", confirm: "good", resume: "good", roll_back: "bad", error: "bad", dead_letter: "bad", restart: "warn", merge: "warn", drift: "warn", pause: "warn", alert: "warn", gap: "warn" };
const MOST_SHOWN = 200;

export class Events {
  #stored = [];
  #live = [];

  constructor(history) {
    this.history = history;
    for (const id of ["event-kind", "event-text"]) $(id).addEventListener("input", () => this.render());
  }

  set live(events) { this.#live = events; }
  set stored(events) { this.#stored = events; }

  /** All that are known: those of the chosen range, and while it ends now, the newest. */
  get all() {
    if (!this.history.isLive) return this.#stored;
    const seen = new Set(this.#live.map(keyOf));
    return [...this.#stored.filter((event) => !seen.has(keyOf(event))), ...this.#live].sort((one, other) => one.at_s - other.at_s);
  }

  render() {
    const kind = $("event-kind").value, text = $("event-text").value.trim().toLowerCase(), all = this.all;
    this.#offerKinds(all);
    const found = all.filter((event) => (!kind || event.kind === kind) && event.message.toLowerCase().includes(text));
    const items = found.slice(-MOST_SHOWN).toReversed().map((event) => element("li", {},
      timeElement(event.at_s),
      element("span", { textContent: event.kind.replaceAll("_", " "), className: `kind ${EVENT_MOODS[event.kind] ?? ""}` }),
      element("span", { textContent: event.message, className: "message" })));
    $("no-events").hidden = items.length > 0;
    put("no-events", all.length ? "No event matches." : "Nothing has happened yet.");
    replaceRows($("events"), items);
    const { from, to } = this.history.range(), query = new URLSearchParams({ from, to, limit: 5000, text });
    if (kind) query.set("kind", kind);
    for (const format of ["csv", "json"]) $(`export-${format}`).href = `${API}events?${query}&format=${format}`;
  }

  #offerKinds(all) {
    const select = $("event-kind"), chosen = select.value;
    const kinds = [...new Set([...all.map((event) => event.kind), ...(chosen ? [chosen] : [])])].sort();
    if (kinds.join("\n") === [...select.options].slice(1).map((option) => option.value).join("\n")) return;
    select.replaceChildren(new Option("all", ""), ...kinds.map((one) => new Option(one.replaceAll("_", " "), one)));
    select.value = chosen;
  }
}

const keyOf = (event) => `${event.at_s} ${event.kind} ${event.message}`;
