// Engines with their nodes and devices, and the processes here.

import { $, badge, element, emptyRow, head, number, replaceRows, row } from "./dom.js";
import { bytes, count, percent } from "./figures.js";

const SILENT_S = 10, MOST_LETTERS = 20;

/** Ray's ids of nodes are of 56 letters; the first ones tell nodes apart. */
const shortened = (node) => (node.length > MOST_LETTERS ? `${node.slice(0, 10)}…` : node);

export function renderFleet(engines, status, wishes) {
  const rows = engines.map((engine) => {
    const health = element("span"), silent = engine.silent_s > SILENT_S;
    const drains = wishes?.draining.includes(engine.engine_id) ?? false;
    badge(health, silent ? "! silent" : drains ? "▽ draining" : "● up", silent ? "bad" : drains ? "warn" : "good");
    health.title = silent ? `no report for ${Math.round(engine.silent_s)} s` : `process ${engine.pid}`;
    const isCanary = status.versions?.canaries.includes(engine.engine_id) ?? false;
    const refused = Object.entries(engine.refused).map(([version, why]) => `v${version}: ${why}`).join("; ");
    return row(
      head(engine.engine_id), health, { text: shortened(engine.node), title: engine.node }, engine.device, { text: `${engine.drafter} v${engine.drafter_version}${isCanary ? " (canary)" : ""}`, title: refused },
      number(percent(engine.utilisation)), number(`${engine.running} + ${engine.waiting}`, "running + waiting"), number(count(engine.free_rows)),
      element("button", { type: "button", textContent: drains ? "Use again" : "Drain", data: { engine: engine.engine_id, draining: String(!drains) }, "aria-label": `${drains ? "Use again" : "Drain"} ${engine.engine_id}` }));
  });
  replaceRows($("engines"), rows.length ? rows : [emptyRow(9, "No engine reports.")]);
  const { processes, restarts } = status;
  const names = [...new Set([...Object.keys(processes), ...Object.keys(restarts)])];
  const own = names.map((name) => row(head(name), number(name in processes ? bytes(processes[name]) : "–"), number(count(restarts[name]))));
  if (own.length > 1) {
    const total = Object.values(processes).reduce((sum, value) => sum + value, 0);
    own.push(row(head("all"), number(bytes(total)), ""));
  }
  replaceRows($("processes"), own.length ? own : [emptyRow(3, "None known.")]);
}
