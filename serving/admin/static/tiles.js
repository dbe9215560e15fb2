// The tiles: what is so now.

import { put } from "./dom.js";
import { duration, percent, two } from "./figures.js";
import { divided, totals } from "./ratio.js";

const MINUTES = 5;

export function renderTiles(engine, history) {
  if (history.served) {
    const points = Math.ceil((MINUTES * 60) / history.served.step_s);
    const recent = history.isLive ? totals(history.served, -points + history.served.times_s.length) : totals(history.served);
    const over = recent.rounds ? (history.isLive ? `last ${MINUTES} min` : "in this range") : "no rounds";
    put("now-length", two(divided(recent.committed, recent.rounds)), over);
    put("now-rate", percent(divided(recent.accepted, recent.proposed)), over);
  }
  if (!engine) {
    for (const id of ["now-version", "now-k", "now-queries", "now-busy"]) put(id, "–", "no engine");
    return;
  }
  put("now-version", `v${engine.drafter_version}`, engine.speculation_enabled ? `kind: ${engine.drafter_kind}` : "not in use");
  put("now-k", engine.speculation_enabled ? String(engine.speculation_length) : "off", engine.speculation_enabled ? "latest round" : "plain decoding");
  put("now-queries", `${engine.running} / ${engine.max_slots}`, `running / slots, ${engine.waiting} waiting`);
  put("now-busy", percent(engine.utilisation), `busy, up ${duration(engine.uptime_s)}`);
}
