// The admin page: follows the live stream and the history, and shows what they say.

import { renderAlerts } from "./alerts.js";
import { Charts } from "./charts.js";
import { $, badge, put } from "./dom.js";
import { renderDomains } from "./domains.js";
import { Drafters } from "./drafters.js";
import { Events } from "./events.js";
import { timeElement } from "./figures.js";
import { renderFleet } from "./fleet.js";
import { History } from "./history.js";
import { focusAgain, Levers } from "./levers.js";
import { Live } from "./live.js";
import { announce, tell } from "./messages.js";
import { Playground } from "./playground.js";
import { Session } from "./session.js";
import { renderTiles } from "./tiles.js";
import { renderDrift, renderGate, renderOutcomes, renderSpare, renderTrainer } from "./trainer.js";
import { renderVersions } from "./versions.js";

const STALE_MS = 7000;
let snapshot = null, answeredAt = 0, readiness = "";

const history = new History(showHistory, (message) => tell("history", message), () => session.check());
const events = new Events(history);
const charts = new Charts(history, () => events.all);
const live = new Live(take, () => session.check());
const session = new Session((isOpen) => {
  snapshot = null;
  answeredAt = 0;
  if (isOpen) { live.start(); history.ask(); } else live.stop();
});
const drafters = new Drafters(() => snapshot && render(), (message) => tell("versions", message));
new Levers(() => session.isOpen, (domain) => drafters.show(domain), (domain) => snapshot?.wishes?.lengths?.[domain]);
new Playground();

function take(newest) {
  if (!session.isOpen) return;
  const first = snapshot === null;
  snapshot = newest;
  answeredAt = Date.now();
  history.aheadMs = 1000 * newest.at_s - answeredAt;
  tell("live", newest.status ? "" : "No actor answers: the service is starting or restarting.");
  events.live = newest.events;
  render();
  drafters.tick();
  if (first) history.ask();
  else history.tick();
  showFreshness();
}

function render() {
  const status = snapshot.status ?? { ready: false, engine: null, trainer: null, processes: {}, restarts: {} };
  const focused = document.activeElement, section = focused?.closest("section");
  const ready = Boolean(status.ready);
  badge($("ready"), ready ? "ready" : "not ready", ready ? "good" : "bad");
  const said = ready ? "osd is ready." : "osd is not ready.";
  if (said !== readiness) announce(said);
  readiness = said;
  put("target", status.engine ? `${status.engine.target}${status.engine.computes ? ` (${status.engine.computes})` : ""}` : "");
  renderTiles(status.engine, history);
  renderTrainer(status.trainer);
  renderOutcomes(status.engine, status.stream);
  renderSpare(status.spare ?? null);
  renderDrift(status.trainer);
  drafters.offer(status.domains ?? {});
  renderVersions(drafters.view(snapshot, status), status.engine);
  renderFleet(snapshot.engines, status, snapshot.wishes);
  renderDomains(history.served?.domains ?? [], snapshot.wishes, status);
  renderAlerts(snapshot.alerts, snapshot.at_s);
  renderEvents();
  if (section) focusAgain(focused, section);
}

function renderEvents() {
  events.render();
  renderGate(events.all);
}

function showHistory() {
  events.stored = history.served.marks;
  charts.render();
  renderTiles(snapshot?.status?.engine ?? null, history);
  renderEvents();
  offerDomains();
  const { from, to } = history.range();
  $("range-from").replaceChildren(timeElement(from));
  $("range-to").replaceChildren(history.isLive ? "now" : timeElement(to));
  $("follow").hidden = history.isLive;
}

function offerDomains() {
  const select = $("domain"), chosen = history.domain;
  const domains = [...new Set([...history.served.domains, ...(chosen ? [chosen] : [])])].sort();
  if (domains.join("\n") === [...select.options].slice(1).map((option) => option.value).join("\n")) return;
  select.replaceChildren(new Option("all", ""), ...domains.map((domain) => new Option(domain, domain)));
  select.value = chosen;
}

function showFreshness() {
  if (document.hidden || !session.isOpen) return;
  const stale = answeredAt > 0 && Date.now() - answeredAt > STALE_MS;
  $("dashboard").classList.toggle("stale", stale);
  if (!answeredAt) { put("freshness", "waiting for the server"); return; }
  const at = timeElement(answeredAt / 1000);
  if ($("freshness").querySelector("time")?.dateTime !== at.dateTime) $("freshness").replaceChildren("updated ", at);
  if (!stale) return;
  badge($("ready"), "no answer", "bad");
  readiness = "";
  tell("live", `No answer from the server since ${at.textContent}: what you see is from then.`);
}

$("range").addEventListener("change", (event) => history.followNow(Number(event.target.value)));
$("follow").addEventListener("click", () => history.followNow(history.span));
$("by").addEventListener("change", (event) => { history.by = event.target.value.split(" ").filter(Boolean); history.ask(); });
$("domain").addEventListener("change", (event) => { history.domain = event.target.value; history.ask(); });
for (const [id, ...move] of [["earlier", -0.5], ["later", 0.5], ["closer", 0, 0.5], ["wider", 0, 2]])
  $(id).addEventListener("click", () => history.move(...move));
document.addEventListener("visibilitychange", () => { if (!document.hidden && session.isOpen) { live.start(); history.ask(); } else live.stop(); });
setInterval(showFreshness, 1000);
globalThis.osd = { history, charts, events }; // for a look from the console, and for tests
session.start();
