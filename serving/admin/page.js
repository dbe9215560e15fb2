// The admin page: polls /admin/api, shows what it says, and works the levers. Holds no secret: the session is a cookie
// that scripts cannot read. All text goes through textContent.

import { drawChart, ratio, summed } from "./chart.js";
import { bytes, count, duration, gateText, percent, timeElement, two } from "./figures.js";

const POLL_MS = 2000, STALE_MS = 6000, TIMEOUT_MS = 5000, MOST_POINTS = 5000;
const API = "admin/api/"; // relative, so that a proxy may serve the page under a prefix
const $ = (id) => document.getElementById(id);

const seen = { points: [], events: [], versions: [], status: null, answeredAt: 0, waiting: false, signOuts: 0 };
let readiness = "";
const signedIn = () => $("login").hidden;

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
  const { signOuts } = seen;
  try {
    const newest = seen.points.at(-1)?.query ?? -1;
    const [status, events, versions, points] = await Promise.all([
      call("status"), call("events?limit=200"), call("versions"), call(`history?limit=${MOST_POINTS}&after=${newest}`),
    ]);
    if (signOuts !== seen.signOuts) return;
    const restarted = points.length > 0 && points.at(-1).query < newest;
    seen.points = (restarted ? points : seen.points.concat(points)).slice(-MOST_POINTS);
    Object.assign(seen, { status, events, versions, answeredAt: Date.now() });
    showLogin(false);
    tell("poll", "");
    render();
  } catch (error) {
    if (signOuts !== seen.signOuts) return;
    if (error instanceof Refused && error.status === 401) {
      showLogin(true);
      put("login-error", "The session has ended: sign in again.");
    }
    else if (error instanceof Refused) { showLogin(false); tell("poll", error.message); }
    // Anything else is the network's: showFreshness says so once it lasts.
  } finally {
    seen.waiting = false;
    showFreshness();
  }
}

function showFreshness() {
  if (document.hidden) return;
  if (!signedIn()) { $("freshness").replaceChildren(); return; }
  const stale = Date.now() - seen.answeredAt > STALE_MS;
  $("dashboard").classList.toggle("stale", stale);
  if (!seen.answeredAt) { put("freshness", "waiting for the server"); return; }
  const at = timeElement(seen.answeredAt / 1000);
  if ($("freshness").querySelector("time")?.dateTime !== at.dateTime) $("freshness").replaceChildren("updated ", at);
  if (!stale) return;
  badge($("ready"), "no answer", "bad");
  readiness = "";
  tell("poll", `No answer from the server since ${at.textContent}: what you see is from then.`);
}

function showLogin(needed) {
  if (needed && $("login").hidden) { seen.points = []; seen.answeredAt = 0; tell("poll", ""); }
  const opens = needed && $("login").hidden;
  $("login").hidden = !needed;
  $("dashboard").hidden = needed;
  $("sign-out").hidden = needed;
  if (needed) { $("ready").hidden = true; $("target").textContent = ""; }
  if (opens) { $("confirm").close("no"); $("token").focus(); }
}

const alerts = { poll: "", lever: "" };

function tell(from, message) {
  alerts[from] = message;
  const text = [alerts.lever, alerts.poll].filter(Boolean).join(" ");
  if (text === $("alert").textContent) return;
  put("alert", text);
  $("alert").hidden = !text;
}

/** For screen readers, and only on changes: what is polled every two seconds must not be read out every two seconds. */
function announceReadiness(ready) {
  const now = ready ? "osd is ready." : "osd is not ready.";
  if (now !== readiness) put("announcement", now);
  readiness = now;
}

// ---- rendering

/** Text that stays the same is left alone: a screen reader may read out what is set again. */
function put(id, text, note) {
  if ($(id).textContent !== text) $(id).textContent = text;
  if (note !== undefined) put(`${id}-note`, note);
}

function badge(element, text, mood) {
  element.textContent = text;
  element.className = `badge ${mood}`;
  element.hidden = false;
}

function row(...cells) {
  const tr = document.createElement("tr");
  for (const cell of cells) {
    const td = tr.appendChild(document.createElement(cell?.heads ? "th" : "td"));
    if (cell instanceof Node) td.append(cell);
    else if (cell !== null && typeof cell === "object") { td.textContent = cell.text; td.className = cell.style ?? ""; td.title = cell.title ?? ""; }
    else td.textContent = cell;
    if (cell?.heads) td.scope = "row";
  }
  return tr;
}

const head = (text, title) => ({ text, title, heads: true });
const number = (text, title) => ({ text, style: "number", title });

function emptyRow(columns, text) {
  const tr = row({ text, style: "empty" });
  tr.cells[0].colSpan = columns;
  return tr;
}

function render() {
  const { engine, trainer, ready } = seen.status;
  const focused = document.activeElement, section = focused?.closest("section");
  announceReadiness(ready);
  badge($("ready"), ready ? "ready" : "not ready", ready ? "good" : "bad");
  $("target").textContent = engine ? engine.target : "no engine";
  renderTiles(engine);
  renderDomains();
  renderChart();
  renderTrainer(trainer);
  renderVersions(engine);
  renderEvents();
  renderProcesses();
  if (section) focusAgain(focused, section);
}

/** Focus `control`, or where that is gone or off its successor in the table, or else the heading of its section. */
function focusAgain(control, section) {
  const successor = section.querySelector(`tbody button[data-version="${control.dataset.version}"]`);
  const usable = [control, successor, section.querySelector("h2")].find((one) => one?.isConnected && !one.disabled && !one.hidden);
  if (usable !== document.activeElement) usable.focus();
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
  put("now-version", `v${engine.drafter_version}`, engine.speculation_enabled ? `kind: ${engine.drafter_kind}` : "not in use");
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

const TRAINER_MOODS = { off: "", training: "good", yielding: "good", waiting_for_data: "", paused: "warn", stopped: "bad", no_answer: "bad" };

function renderTrainer(trainer) {
  const state = trainer?.state ?? "no_answer", gate = trainer?.gate ?? {};
  badge($("trainer-state"), state.replaceAll("_", " "), TRAINER_MOODS[state]);
  $("pause").hidden = ["off", "paused", "stopped", "no_answer"].includes(state);
  $("resume").hidden = state !== "paused";
  put("trainer-message", trainer?.message ?? "");
  const figures = trainer && state !== "off" ? {
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

/** The newest version before the one that serves that was not rolled back itself; undefined where there is none. */
const predecessor = (serving) => seen.versions.findLast((one) => one.number < serving && !one.rolled_back)?.number;

function renderVersions(engine) {
  const rows = seen.versions.toReversed().map((version) => {
    const serving = version.number === engine?.drafter_version;
    const state = document.createElement("span");
    badge(state, serving ? "serving" : version.rolled_back ? "rolled back" : "idle", serving ? "good" : version.rolled_back ? "bad" : "");
    state.title = version.rolled_back || version.note;
    const live = engine?.acceptance_by_version?.[version.number];
    const button = document.createElement("button");
    button.textContent = `Serve v${version.number}`;
    button.dataset.version = version.number;
    const published = document.createElement("span");
    published.append(timeElement(version.created_at_s), `, step ${count(version.training_step)}`);
    const gate = "candidate" in version.gate ? gateText(version.gate) : "–";
    return row(
      head(`v${version.number}`, version.parent === null ? "the first" : `from v${version.parent}`),
      state, published, number(gate),
      number(two(live ? ratio(live.committed, live.rounds) : null), live ? `${count(live.rounds)} rounds` : ""),
      number(percent(live ? ratio(live.accepted, live.proposed) : null), live ? `${count(live.proposed)} proposed` : ""),
      engine && !serving && !version.rolled_back ? button : "",
    );
  });
  replaceRows($("versions"), rows.length ? rows : [emptyRow(7, "Nothing published yet: the drafter is as it was made.")]);
  const to = engine && predecessor(engine.drafter_version), counters = engine?.counters ?? {};
  $("roll-back").disabled = !to;
  $("roll-back").dataset.version = to ?? "";
  put("roll-back", to ? `Roll back to v${to}` : "Roll back");
  put("roll-back-note", to ? "" : engine ? "Nothing to go back to: no older version is fit to serve." : "No engine answers.");
  const all = counters.roll_backs_total ?? 0, manual = counters.manual_roll_backs_total ?? 0;
  put("roll-backs", engine ? `Rolled back since the engine started: ${count(all - manual)} automatically, ${count(manual)} by hand.` : "");
}

/** What is under the pointer, selected or has the focus must survive a poll: replace only what changed. */
function replaceRows(body, rows) {
  const names = [...(body.closest("table.stacking")?.tHead.rows[0].cells ?? [])].map((cell) => cell.textContent);
  for (const one of rows) names.forEach((name, at) => { if (one.cells[at]?.textContent) one.cells[at].dataset.label = name; });
  const html = rows.map((one) => one.outerHTML).join("");
  if (body.dataset.shown === html) return;
  body.dataset.shown = html;
  body.replaceChildren(...rows);
}

const EVENT_MOODS = { publish: "good", swap: "good", resume: "good", roll_back: "bad", error: "bad", restart: "warn", pause: "warn" };

function renderEvents() {
  const items = seen.events.toReversed().map((event) => {
    const li = document.createElement("li");
    const kind = document.createElement("span"), message = document.createElement("span");
    kind.textContent = event.kind.replaceAll("_", " ");
    kind.className = `kind ${EVENT_MOODS[event.kind] ?? ""}`;
    message.textContent = event.message;
    message.className = "message";
    li.append(timeElement(event.at_s), kind, message);
    return li;
  });
  $("no-events").hidden = items.length > 0;
  replaceRows($("events"), items);
}

function renderProcesses() {
  const { processes, restarts } = seen.status;
  const names = [...new Set([...Object.keys(processes), ...Object.keys(restarts)])];
  const rows = names.map((name) => row(head(name), number(name in processes ? bytes(processes[name]) : "–"), number(count(restarts[name]))));
  if (rows.length > 1) {
    const total = Object.values(processes).reduce((sum, value) => sum + value, 0);
    rows.push(row(head("all"), number(bytes(total)), ""));
  }
  replaceRows($("processes"), rows.length ? rows : [emptyRow(3, "None known.")]);
}

// ---- levers

function confirmed({ title, text, verb, askReason = false }) {
  const dialog = $("confirm"), opener = document.activeElement, section = opener?.closest("section");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = verb;
  $("reason-label").hidden = !askReason;
  $("reason").value = "";
  dialog.returnValue = "no";
  dialog.showModal();
  (askReason ? $("reason") : $("confirm-yes")).focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      if (section && signedIn()) focusAgain(opener, section);
      resolve(dialog.returnValue === "yes");
    }, { once: true });
  });
}

$("confirm-no").addEventListener("click", () => $("confirm").close("no"));
// The Enter that opened the dialog, held down a little long, must not confirm it as well.
$("confirm").addEventListener("keydown", (event) => event.key === "Enter" && event.repeat && event.preventDefault());

async function act(path, body, done) {
  try {
    await call(path, body);
    tell("lever", "");
    put("announcement", done);
    await poll();
  } catch (error) {
    tell("lever", `That did not work: ${error.message}`);
  }
}

/** `to` is what the dialog names and what is posted, whatever is published while it is open. */
async function rollBack(to) {
  const text = `The engine changes to version ${to} between two steps; answers under way go on unchanged. The version it replaces is marked as rolled back, and not served again.`;
  if (!(await confirmed({ title: `Serve version ${to}?`, text, verb: `Serve version ${to}`, askReason: true }))) return;
  await act("roll_back", { to, reason: $("reason").value.trim() || "no reason given" }, `Version ${to} is going to serve.`);
}

$("pause").addEventListener("click", async () => {
  const text = "The drafter learns nothing until training is resumed. Serving goes on.";
  if (await confirmed({ title: "Pause training?", text, verb: "Pause" })) await act("pause", {}, "Training is paused.");
});
$("resume").addEventListener("click", async () => {
  const text = "The trainer goes on from its last step.";
  if (await confirmed({ title: "Resume training?", text, verb: "Resume" })) await act("resume", {}, "Training is resumed.");
});
$("roll-back").addEventListener("click", (event) => rollBack(Number(event.currentTarget.dataset.version)));
$("versions").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) rollBack(Number(button.dataset.version));
});

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  put("login-error", "");
  try {
    await call("login", { token: $("token").value });
    $("token").value = "";
    await poll();
  } catch (error) {
    put("login-error", error instanceof Refused ? error.message : "No answer from the server.");
    $("token").select();
  }
});
$("sign-out").addEventListener("click", async () => {
  try {
    await call("logout", {});
    seen.signOuts += 1;
    showLogin(true);
  } catch (error) {
    tell("lever", `That did not work: ${error.message}`);
  }
});

for (const id of ["domain", "window"]) $(id).addEventListener("change", () => seen.status && render());
window.addEventListener("resize", () => seen.status && renderChart());
const watched = () => !document.hidden && signedIn();
document.addEventListener("visibilitychange", () => watched() && poll());
setInterval(() => watched() && poll(), POLL_MS);
setInterval(showFreshness, 1000);
// Without a session nothing is asked: it could only be refused. The server says in the page whether there is one.
if (document.documentElement.dataset.signedIn === "yes") poll();
else showLogin(true);
