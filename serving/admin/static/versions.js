// The drafter versions, the newest first.

import { $, badge, element, emptyRow, head, number, put, replaceRows, row } from "./dom.js";
import { count, gateText, percent, timeElement, two } from "./figures.js";
import { trialText } from "./trial.js";
import { divided } from "./ratio.js";

/** The newest version before the one that serves that was not rolled back itself; undefined where there is none. */
const predecessor = (versions, serving) => versions.findLast((one) => one.number < serving && !one.rolled_back)?.number;

const nameOf = (version) => (version ? `v${version}` : "the base drafter");

/** view: see Drafters. */
export function renderVersions({ domain, versions, judged, serving: served, live: liveOf }, engine) {
  const rows = versions.toReversed().map((version) => {
    const serving = version.number === served, name = nameOf(version.number);
    const state = element("span", {}, ...statesOf(version, serving, judged));
    const live = liveOf(version.number);
    const button = (act, text) => element("button", { textContent: text, data: { act, version: version.number, domain } });
    const isPinned = Boolean(judged?.pinned) && judged.confirmed === version.number;
    const buttons = engine && !version.rolled_back ? [
      ...(serving ? [] : [button("serve", `Serve ${name}`)]), ...(isPinned ? [] : [button("pin", `Pin ${name}`)])] : [];
    const published = version.created_at_s === null ? "–" : element("span", {}, timeElement(version.created_at_s), ` (step ${count(version.training_step)})`);
    const gate = "candidate" in version.gate ? gateText(version.gate) : "–";
    return row(
      head(name, version.parent === null ? "the first" : `from v${version.parent}`),
      state, published, number(gate),
      number(two(live ? divided(live.committed, live.rounds) : null), live ? `${count(live.rounds)} rounds` : ""),
      number(percent(live ? divided(live.accepted, live.proposed) : null), live ? `${count(live.proposed)} proposed` : ""),
      buttons.length ? element("span", { className: "buttons" }, ...buttons) : "",
    );
  });
  replaceRows($("versions"), rows.length ? rows : [emptyRow(7, "Nothing published yet: the drafter is as it was made.")]);
  const to = engine && served ? predecessor(versions, served) : undefined, isPossible = to !== undefined;
  $("roll-back").disabled = !isPossible;
  Object.assign($("roll-back").dataset, { version: to ?? "", domain });
  $("unpin").dataset.domain = domain;
  put("roll-back", isPossible ? `Roll back to ${nameOf(to)}` : "Roll back");
  put("roll-back-note", isPossible ? "" : engine ? "Nothing to go back to: no older version is fit to serve." : "No engine answers.");
  $("unpin").hidden = !judged?.pinned;
  put("trial", trialText(judged));
  const all = judged?.roll_backs ?? 0, manual = judged?.manual_roll_backs ?? 0;
  put("roll-backs", judged ? `Rolled back since the supervisor started: ${count(all - manual)} automatically, ${count(manual)} by hand.` : "");
}

/** Badges of what holds for a version: several may at once. */
function statesOf(version, serving, judged) {
  const isConfirmed = judged?.confirmed === version.number;
  const states = [
    [serving, "serving", "good", version.note],
    [version.rolled_back, "rolled back", "bad", version.rolled_back],
    [judged?.trial === version.number, "on trial", "warn", `served by ${judged?.canaries.join(", ")}`],
    [isConfirmed && judged.pinned, "pinned", "warn", judged?.pinned],
    [isConfirmed && !judged.pinned && !serving, "confirmed", "", "every engine may serve it"],
  ].filter(([holds]) => holds);
  const shown = states.length ? states : [[true, "idle", "", version.note]];
  return shown.flatMap(([, text, mood, title], at) => {
    const made = element("span", { title: title ?? "" });
    badge(made, text, mood);
    return at ? [" ", made] : [made];
  });
}
