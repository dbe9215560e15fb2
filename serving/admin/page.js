// The admin page: polls /admin/api, shows what it says, and works the levers. Holds no secret: the session is a cookie
// that scripts cannot read. All text goes through textContent.

import { drawChart, ratio, summed } from "./chart.js";

const POLL_MS = 2000, STALE_MS = 6000, TIMEOUT_MS = 5000, MOST_POINTS = 5000;
const API = "admin/api/"; // relative, so that a proxy may serve the page under a prefix
const $ = (id) => document.getElementById(id);

const seen = { points: [], events: [], versions: [], status: null, answeredAt: 0, waiting: false };

class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function call(path, body) {
  const options = { headers: { "X-OSD-Admin": "1" }, signal: AbortSignal.timeout(TIMEOUT_MS), credentials: "same-origin" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(API + path, options);
  if (!answer.ok) {
    const error = await answer.json().catch(() => null);
    throw new Refused(answer.status, error?.error?.message ?? `HTTP ${answer.status}`);
  }
  return answer.status === 204 ? null : answer.json();
}

// ---- polling

async function poll() {
  if (seen.waiting) return;
  seen.waiting = true;
  try {
    const newest = seen.points.at(-1)?.query ?? -1;
    const [status, events, versions, points] = await Promise.all([
      call("status"), call("events?limit=200"), call("versions"), call(`history?limit=${MOST_POINTS}&after=${newest}`),
    ]);
    const restarted = points.length > 0 && points.at(-1).query < newest;
    seen.points = (restarted ? points : seen.points.concat(points)).slice(-MOST_POINTS);
    Object.assign(seen, { status, events, versions, answeredAt: Date.now() });
    showLogin(false);
    tell("poll", "");
    render();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) showLogin(true);
    else if (error instanceof Refused) { showLogin(false); tell("poll", error.message); }
    // Anything else is the network's: showFreshness says so once it lasts.
  } finally {
    seen.waiting = false;
    showFreshness();
  }
}

function showFreshness() {
  if (document.hidden) return;
  if (!$("login").hidden) { $("freshness").textContent = ""; return; }
  const ageMs = Date.now() - seen.answeredAt, stale = ageMs > STALE_MS;
  $("dashboard").classList.toggle("stale", stale);
  if (!seen.answeredAt) { $("freshness").textContent = "waiting for the server"; return; }
  $("freshness").textContent = `updated ${clock(seen.answeredAt / 1000)}`;
  if (!stale) return;
  badge($("ready"), "no answer", "bad");
  tell("poll", `No answer from the server for ${duration(ageMs / 1000)}: what you see is from ${clock(seen.answeredAt / 1000)}.`);
}

function showLogin(needed) {
  if (needed && $("login").hidden) { seen.points = []; seen.answeredAt = 0; tell("poll", ""); }
  const opens = needed && $("login").hidden;
  $("login").hidden = !needed;
  $("dashboard").hidden = needed;
  $("sign-out").hidden = needed;
  if (needed) { $("ready").hidden = true; $("target").textContent = ""; }
  if (opens) $("token").focus();
}

const alerts = { poll: "", lever: "" };

function tell(from, message) {
  alerts[from] = message;
  $("alert").textContent = [alerts.lever, alerts.poll].filter(Boolean).join(" ");
  $("alert").hidden = !$("alert").textContent;
}

// ---- figures as text

const two = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
const percent = (value) => (value === null || value === undefined ? "–" : `${(value * 100).toFixed(1)}%`);
const count = (value) => (value ?? 0).toLocaleString("en");
const clock = (s) => new Date(s * 1000).toLocaleTimeString("en-GB");
const bytes = (value) => (value >= 1e9 ? `${(value / 1e9).toFixed(2)} GB` : `${(value / 1e6).toFixed(0)} MB`);
function duration(s) {
  if (s < 60) return `${Math.round(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

// ---- rendering

function put(id, text, note) {
  $(id).textContent = text;
  if (note !== undefined) { $(`${id}-note`).textContent = note; $(`${id}-note`).title = note; }
}

function badge(element, text, mood) {
  element.textContent = text;
  element.className = `badge ${mood}`;
  element.hidden = false;
}

function row(...cells) {
  const tr = document.createElement("tr");
  for (const cell of cells) {
    const td = tr.insertCell();
    if (cell instanceof Node) td.append(cell);
    else if (cell !== null && typeof cell === "object") { td.textContent = cell.text; td.className = cell.style; td.title = cell.title ?? ""; }
    else td.textContent = cell;
  }
  return tr;
}

const number = (text, title) => ({ text, style: "number", title });

function emptyRow(columns, text) {
  const tr = row({ text, style: "empty" });
  tr.cells[0].colSpan = columns;
  return tr;
}

function render() {
  const { engine, trainer, ready } = seen.status;
  badge($("ready"), ready ? "ready" : "not ready", ready ? "good" : "bad");
  $("target").textContent = engine ? engine.target : "no engine";
  renderTiles(engine);
  renderDomains();
  renderChart();
  renderTrainer(trainer);
  renderVersions(engine);
  renderEvents();
  renderProcesses();
}

function chosenPoints() {
  const domain = $("domain").value;
  return domain ? seen.points.filter((point) => point.domain === domain) : seen.points;
}

function renderTiles(engine) {
  const size = Number($("window").value), sum = summed(chosenPoints().slice(-size));
  const over = sum.queries ? `last ${sum.queries} quer${sum.queries === 1 ? "y" : "ies"}` : "no query yet";
  put("now-length", two(sum.length), over);
  put("now-rate", percent(sum.rate), over);
  if (!engine) {
    for (const id of ["now-version", "now-k", "now-queries", "now-busy"]) put(id, "–", "no engine");
    return;
  }
  put("now-version", `v${engine.drafter_version}`, `kind: ${engine.drafter_kind}`);
  put("now-k", engine.speculation_enabled ? String(engine.speculation_length) : "off", engine.speculation_enabled ? "latest round" : "plain decoding");
  put("now-queries", `${engine.running} / ${engine.max_slots}`, `running / slots, ${engine.waiting} waiting`);
  put("now-busy", percent(engine.utilisation), `busy, up ${duration(engine.uptime_s)}`);
}

function renderDomains() {
  const select = $("domain"), chosen = select.value;
  const domains = [...new Set(seen.points.map((point) => point.domain))].sort();
  if (domains.join("\n") === [...select.options].slice(1).map((option) => option.value).join("\n")) return;
  select.replaceChildren(new Option("all", ""), ...domains.map((domain) => new Option(domain, domain)));
  select.value = domains.includes(chosen) ? chosen : "";
}

function renderChart() {
  if ($("chart").matches(":hover") && $("chart").querySelector(".hint:not([hidden])")) return; // being read
  drawChart($("chart"), chosenPoints(), seen.events, Number($("window").value));
}

const TRAINER_MOODS = { training: "good", yielding: "good", waiting_for_data: "", paused: "warn", stopped: "bad" };

function renderTrainer(trainer) {
  badge($("trainer-state"), (trainer?.state ?? "not running").replaceAll("_", " "), TRAINER_MOODS[trainer?.state ?? "stopped"]);
  $("pause").hidden = !trainer || ["paused", "stopped"].includes(trainer.state);
  $("resume").hidden = trainer?.state !== "paused";
  $("trainer-message").textContent = trainer?.message ?? "";
  const gate = trainer?.gate ?? {};
  const figures = trainer ? {
    "Steps": count(trainer.steps),
    "Trained tokens": count(trainer.trained_tokens),
    "Loss": trainer.loss === null ? "–" : trainer.loss.toFixed(3),
    "Learning rate": trainer.learning_rate.toExponential(1),
    "Replay": `${count(trainer.replay_records)} records, ${bytes(trainer.replay_bytes)}`,
    "Held out": `${count(trainer.held_out_records)} records`,
    "Outcomes not yet read": trainer.stream_lag === null ? "Redis is away" : count(trainer.stream_lag),
    "Published": trainer.published_version ? `v${trainer.published_version}` : "–",
    "Last gate": "candidate" in gate ? `${gateText(gate)}, ${gate.published ? "published" : "refused"}` : "–",
  } : {};
  $("trainer-figures").replaceChildren(...Object.entries(figures).flatMap(([name, text]) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = text;
    return [dt, dd];
  }));
}

const gateText = (gate) => `${gate.candidate.toFixed(3)} vs ${gate.serving?.toFixed(3) ?? "–"}`;

function renderVersions(engine) {
  const rows = seen.versions.toReversed().map((version) => {
    const serving = version.number === engine?.drafter_version;
    const state = document.createElement("span");
    badge(state, serving ? "serving" : version.rolled_back ? "rolled back" : "idle", serving ? "good" : version.rolled_back ? "bad" : "");
    state.title = version.rolled_back || version.note;
    const live = engine?.acceptance_by_version?.[version.number];
    const button = document.createElement("button");
    button.textContent = "Serve this";
    button.hidden = serving || Boolean(version.rolled_back);
    button.addEventListener("click", () => rollBack(version.number));
    const gate = "candidate" in version.gate ? gateText(version.gate) : "–";
    return row(
      { text: `v${version.number}`, style: "", title: version.parent === null ? "the first" : `from v${version.parent}` },
      state, `${clock(version.created_at_s)}, step ${count(version.training_step)}`, number(gate),
      number(two(live ? ratio(live.committed, live.rounds) : null), live ? `${count(live.rounds)} rounds` : ""),
      number(percent(live ? ratio(live.accepted, live.proposed) : null), live ? `${count(live.proposed)} proposed` : ""),
      button,
    );
  });
  replaceRows($("versions"), rows.length ? rows : [emptyRow(7, "Nothing published yet: the drafter is as it was made.")]);
  $("roll-back").disabled = seen.versions.length === 0;
}

/** A button under the pointer or with the focus must survive until it is clicked: replace only what changed. */
function replaceRows(body, rows) {
  const html = rows.map((one) => one.outerHTML).join("");
  if (body.dataset.shown === html) return;
  body.dataset.shown = html;
  body.replaceChildren(...rows);
}

const EVENT_MOODS = { publish: "good", swap: "good", resume: "good", drift: "warn", roll_back: "bad", error: "bad", restart: "warn", pause: "warn" };

function renderEvents() {
  const items = seen.events.toReversed().map((event) => {
    const li = document.createElement("li"), time = document.createElement("time");
    const kind = document.createElement("span"), message = document.createElement("span");
    const at = new Date(event.at_s * 1000);
    time.textContent = clock(event.at_s);
    time.dateTime = at.toISOString();
    time.title = at.toLocaleString();
    kind.textContent = event.kind.replaceAll("_", " ");
    kind.className = `kind ${EVENT_MOODS[event.kind] ?? ""}`;
    message.textContent = event.message;
    li.append(time, kind, message);
    return li;
  });
  if (!items.length) items.push(Object.assign(document.createElement("p"), { className: "empty", textContent: "Nothing has happened yet." }));
  $("events").replaceChildren(...items);
}

function renderProcesses() {
  const { processes, restarts } = seen.status;
  const names = [...new Set([...Object.keys(processes), ...Object.keys(restarts)])];
  const rows = names.map((name) => row(name, number(name in processes ? bytes(processes[name]) : "–"), number(count(restarts[name]))));
  if (rows.length > 1) {
    const total = Object.values(processes).reduce((sum, value) => sum + value, 0);
    rows.push(row({ text: "all", style: "muted" }, number(bytes(total)), ""));
  }
  $("processes").replaceChildren(...(rows.length ? rows : [emptyRow(3, "None known.")]));
}

// ---- levers

function confirmed({ title, text, verb, askReason = false }) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = verb;
  $("reason-label").hidden = !askReason;
  $("reason").required = askReason;
  $("reason").value = "";
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

async function act(path, body = {}) {
  try {
    await call(path, body);
    tell("lever", "");
    await poll();
  } catch (error) {
    tell("lever", `That did not work: ${error.message}`);
  }
}

async function rollBack(to) {
  const where = to === null ? "the version before this one" : `version ${to}`;
  const text = `The engine goes back to ${where} between two steps. Answers under way go on unchanged.`;
  if (!(await confirmed({ title: `Serve ${where}?`, text, verb: "Roll back", askReason: true }))) return;
  await act("roll_back", { to, reason: $("reason").value.trim() || "by hand" });
}

$("pause").addEventListener("click", async () => {
  const text = "The drafter learns nothing until training is resumed. Serving goes on.";
  if (await confirmed({ title: "Pause training?", text, verb: "Pause" })) await act("pause");
});
$("resume").addEventListener("click", async () => {
  const text = "The trainer goes on from its last step.";
  if (await confirmed({ title: "Resume training?", text, verb: "Resume" })) await act("resume");
});
$("roll-back").addEventListener("click", () => rollBack(null));

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("login-error").textContent = "";
  try {
    await call("login", { token: $("token").value });
    $("token").value = "";
    await poll();
  } catch (error) {
    $("login-error").textContent = error.message;
  }
});
$("sign-out").addEventListener("click", async () => {
  await act("logout");
});

for (const id of ["domain", "window"]) $(id).addEventListener("change", () => seen.status && render());
window.addEventListener("resize", () => seen.status && renderChart());
const watched = () => !document.hidden && $("login").hidden;
document.addEventListener("visibilitychange", () => watched() && poll());
setInterval(() => watched() && poll(), POLL_MS);
setInterval(showFreshness, 1000);
poll();
