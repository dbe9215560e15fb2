// The alerts that hold now, to acknowledge and to silence.

import { $, badge, element, emptyRow, head, replaceRows, row } from "./dom.js";
import { duration, timeElement } from "./figures.js";

/** nowS: the server's time. */
export function renderAlerts(answer, nowS) {
  const alerts = answer?.alerts ?? [], silences = Object.entries(answer?.silences ?? {});
  const firing = alerts.filter((alert) => alert.state === "firing");
  badge($("alert-count"), firing.length ? `▲ ${firing.length} firing` : "none firing", firing.length ? "bad" : "good");
  const rows = alerts.map((alert) => {
    const state = element("span"), is = alert.state === "firing";
    badge(state, is ? `▲ ${alert.severity}` : "pending", is ? (alert.severity === "info" ? "" : "bad") : "");
    const buttons = element("span", { className: "buttons" });
    if (!alert.acknowledged_by) buttons.append(lever("Acknowledge", "acknowledge", alert));
    if (!alert.silenced_until_s) buttons.append(lever("Silence", "silence", alert));
    const notes = [alert.acknowledged_by && `acknowledged by ${alert.acknowledged_by}`].filter(Boolean).join(", ");
    return row(head(alert.subject ? `${alert.name}: ${alert.subject}` : alert.name), state, timeElement(alert.since_s), { text: notes ? `${alert.why} (${notes})` : alert.why, style: "why" }, buttons);
  });
  replaceRows($("alerts"), rows.length ? rows : [emptyRow(5, "No rule's condition holds.")]);
  replaceRows($("silences"), silences.map(([name, until]) => element("li", {},
    `${name} is silent for ${duration(Math.max(0, until - nowS))} `, lever("End silence", "tell", { name, subject: "" }))));
}

const lever = (text, act, alert) =>
  element("button", { type: "button", textContent: text, data: { act, name: alert.name, subject: alert.subject }, "aria-label": `${text} ${alert.name} ${alert.subject}`.trim() });
