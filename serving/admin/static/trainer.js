// The trainer: its state, its figures, the gate's decisions, and the detectors of drift.

import { $, badge, element, emptyRow, head, number, put, replaceRows, replaceTerms, row } from "./dom.js";
import { bytes, count, gateFigures, gateText, percent, three, timeElement } from "./figures.js";

const MOODS = { off: "", training: "good", yielding: "good", waiting_for_data: "", paused: "warn", stopped: "bad", no_answer: "bad" };
const DRIFT = { stable: ["● stable", "good"], warning: ["▲ warning", "warn"], drift: ["◆ drift", "bad"] };
const MOST_DECISIONS = 30;

export function renderTrainer(trainer) {
  const state = trainer?.state ?? "no_answer", gate = trainer?.gate ?? {};
  badge($("trainer-state"), state.replaceAll("_", " "), MOODS[state]);
  $("pause").hidden = ["off", "paused", "stopped", "no_answer"].includes(state);
  $("resume").hidden = state !== "paused";
  for (const id of ["train-now", "publish"]) $(id).hidden = $("pause").hidden;
  put("trainer-message", trainer?.message ?? "");
  replaceTerms($("trainer-figures"), trainer && state !== "off" ? {
    "Steps": count(trainer.steps),
    "Trained tokens": count(trainer.trained_tokens),
    "Loss": three(trainer.loss),
    "Learning rate": trainer.learning_rate?.toExponential(1) ?? "–",
    "Replay": `${count(trainer.replay_records)} records, ${bytes(trainer.replay_bytes)}`,
    "Held out": `${count(trainer.held_out_records)} records`,
    "Outcomes not yet read": trainer.stream_lag === null ? "Redis is away" : count(trainer.stream_lag),
    "Worth of training": `${Math.round(trainer.worth * 100)}%`,
    "Published": trainer.published_version ? `v${trainer.published_version}` : "–",
    "Last gate": "candidate" in gate ? `${gateText(gate)}, ${gate.published ? "published" : "refused"}` : "–",
  } : {});
}

/** What became of the engines' outcomes on their way to the trainer; an outcome in the spill file waits for Redis. */
export function renderOutcomes(engine, stream) {
  const { outcomes_recorded: recorded, outcomes_spilled: spilled, outcomes_replayed: replayed, outcomes_dropped: dropped, outcomes_left_out: leftOut } = engine?.counters ?? {};
  replaceTerms($("outcomes"), recorded === undefined ? { "Recorded": "–" } : {
    "Recorded": count(recorded),
    "In the spill file": count(Math.max(0, spilled - replayed)),
    "Lost": count(dropped),
    "Left out, near the stream's limit": count(leftOut),
    "Share recorded now": stream ? percent(stream.record_share) : "–",
    "Written to the stream": stream ? `${bytes(stream.bytes_per_s)}/s` : "–",
  });
}

/** What training takes of the time, and what that costs serving. */
export function renderSpare(spare) {
  put("spare-note", spare ? "" : "The distiller does not report.");
  const names = spare?.neighbours ?? [];
  replaceTerms($("spare"), spare ? {
    "Time trained": percent(spare.training),
    "Taken from serving, at most": percent(spare.serving_cost),
    "Asked of busy engines now": percent(spare.share),
    "Engines on its device": names.length ? names.join(", ") : "none",
    "Busiest of them": names.length ? percent(spare.utilisation) : "–",
  } : {});
}

/** Every decision of the gate in the events, the newest first. */
export function renderGate(events) {
  const rows = events.filter((event) => event.kind === "publish" || event.kind === "refuse").slice(-MOST_DECISIONS).toReversed().map((event) => {
    const { data } = event, published = event.kind === "publish";
    const badgeOf = element("span");
    badge(badgeOf, published ? "✓ published" : "× refused", published ? "good" : "");
    return row(timeElement(event.at_s), badgeOf, ...gateFigures(data).map((figure) => number(figure)),
      { text: why(data, published), style: "why", title: event.message });
  });
  replaceRows($("gate"), rows.length ? rows : [emptyRow(5, "The gate has not decided yet.")]);
}

function why(data, published) {
  if (data.gain_low == null || data.gain_high == null) return published ? "better than the serving version" : "not better";
  const interval = `gain between ${data.gain_low.toFixed(3)} and ${data.gain_high.toFixed(3)}`;
  if (data.demanded) return `an operator asked for it; ${interval}`;
  const margin = (data.margin ?? 0).toFixed(3), isAbove = published || data.gain_low > data.margin;
  if (!isAbove) return `${interval}: not surely above ${margin}`;
  return `${interval}: surely above ${margin}${published ? "" : ", but a domain would lose"}`;
}

/** Detector state by domain, where the trainer has detectors. */
export function renderDrift(trainer) {
  const domains = Object.entries(trainer?.drift ?? {});
  $("drift-card").hidden = domains.length === 0;
  replaceRows($("drift"), domains.map(([domain, one]) => {
    const [text, mood] = DRIFT[one.state] ?? [one.state, ""], state = element("span");
    badge(state, text, mood);
    const name = domain === "*" ? "all traffic" : domain;
    return row(head(name), state, number(one.before ? three(one.before) : "–"), number(one.queries ? three(one.recent) : "–"), number(`${count(one.queries)} queries`));
  }));
}
