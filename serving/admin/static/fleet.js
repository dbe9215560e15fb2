// Engines with their nodes and devices, and the processes here.

import { $, badge, element, emptyRow, head, number, replaceRows, row } from "./dom.js";
import { bytes, count, percent } from "./figures.js";

const SILENT_S = 10, MOST_LETTERS = 20;

/** Ray's ids of nodes are of 56 letters, and those of GPUs of 36; the first ones tell them apart. */
const shortened = (id) => (id.length > MOST_LETTERS ? `${id.slice(0, 10)}…` : id);

export function renderFleet(engines, status, wishes) {
  const rows = engines.map((engine) => {
    const health = element("span"), silent = engine.silent_s > SILENT_S;
    const drains = wishes?.draining.includes(engine.engine_id) ?? false;
    badge(health, silent ? "! silent" : drains ? "▽ draining" : "● up", silent ? "bad" : drains ? "warn" : "good");
    health.title = silent ? `no report for ${Math.round(engine.silent_s)} s` : `process ${engine.pid}`;
    const isCanary = status.versions?.canaries.includes(engine.engine_id) ?? false;
    const refused = Object.entries(engine.refused).map(([version, why]) => `v${version}: ${why}`).join("; ");
    return row(
      head(engine.engine_id), health, { text: shortened(engine.node), title: engine.node }, { text: shortened(engine.device), title: engine.device }, { text: `${engine.drafter} v${engine.drafter_version}${isCanary ? " (canary)" : ""}`, title: refused },
      number(percent(engine.utilisation)), number(`${engine.running} + ${engine.waiting}`, "running + waiting"), number(count(engine.free_rows)),
      element("button", { type: "button", textContent: drains ? "Use again" : "Drain", data: { engine: engine.engine_id, draining: String(!drains) }, "aria-label": `${drains ? "Use again" : "Drain"} ${engine.engine_id}` }));
  });
  replaceRows($("engines"), rows.length ? rows : [emptyRow(9, "No engine reports.")]);
  renderDevices(engines, status.spare);
  renderProcesses(engines, status);
}

/** What engines compute on: a node's processors, or one of its GPUs. spare: who shares the trainer's. */
function renderDevices(engines, spare) {
  const devices = new Map();
  for (const engine of engines) {
    const key = `${engine.node} ${engine.device}`;
    devices.set(key, [...(devices.get(key) ?? []), engine]);
  }
  const rows = [...devices.values()].map((own) => {
    const [{ node, device }] = own, health = element("span"), silent = own.filter((engine) => engine.silent_s > SILENT_S).length;
    badge(health, silent ? `! ${silent} of ${own.length} silent` : "● up", silent ? "bad" : "good");
    const newest = own.reduce((one, other) => (other.silent_s < one.silent_s ? other : one));
    const memory = newest.device_bytes ? `${bytes(newest.device_used_bytes)} of ${bytes(newest.device_bytes)}` : "–";
    const trains = own.some((engine) => spare?.neighbours.includes(engine.engine_id));
    return row(
      head(shortened(node), node), { text: shortened(device), title: device }, health, { text: own.map((engine) => engine.engine_id).join(", "), style: "why" },
      trains ? "trains here" : "–", number(percent(Math.max(...own.map((engine) => engine.utilisation)))), number(memory));
  });
  replaceRows($("devices"), rows.length ? rows : [emptyRow(7, "No engine reports.")]);
}

function renderProcesses(engines, status) {
  const { processes, restarts } = status, names = [...new Set([...Object.keys(processes), ...Object.keys(restarts)])];
  const rows = names.map((name) => {
    const health = element("span"), up = isUp(name, engines, status);
    badge(health, up ? "● up" : "! away", up ? "good" : "bad");
    return row(head(name), health, number(name in processes ? bytes(processes[name]) : "–"), number(count(restarts[name])));
  });
  if (rows.length > 1) {
    const total = Object.values(processes).reduce((sum, value) => sum + value, 0);
    rows.push(row(head("all"), "", number(bytes(total)), ""));
  }
  replaceRows($("processes"), rows.length ? rows : [emptyRow(4, "None known.")]);
}

/** Whether an actor answers; of what is no actor, whether it is there. In a cluster, actors are on other machines. */
function isUp(name, engines, status) {
  if (name === "engine") return engines.some((one) => one.silent_s <= SILENT_S);
  if (name === "distiller") return Boolean(status.trainer);
  if (name === "supervisor") return Boolean(status.versions);
  return name in status.processes;
}
