// The drafter versions, the newest first.

import { $, badge, element, emptyRow, head, number, put, replaceRows, row } from "./dom.js";
import { count, gateText, percent, timeElement, two } from "./figures.js";
import { trialText } from "./trial.js";
import { divided } from "./ratio.js";

/** The newest version before the one that serves that was not rolled back itself; undefined where there is none. */
const predecessor = (versions, serving) => versions.findLast((one) => one.number < serving && !one.rolled_back)?.number;

export function renderVersions(versions, engine, judged) {
  const rows = versions.toReversed().map((version) => {
    const serving = version.number === engine?.drafter_version;
    const state = element("span", {}, ...statesOf(version, serving, judged));
    const live = engine?.acceptance_by_version?.[version.number];
    const button = (act, text) => element("button", { textContent: text, data: { act, version: version.number } });
    const isPinned = Boolean(judged?.pinned) && judged.confirmed === version.number;
    const buttons = engine && !version.rolled_back ? [
      ...(serving ? [] : [button("serve", `Serve v${version.number}`)]), ...(isPinned ? [] : [button("pin", `Pin v${version.number}`)])] : [];
    const published = element("span", {}, timeElement(version.created_at_s), `, step ${count(version.training_step)}`);
    const gate = "candidate" in version.gate ? gateText(version.gate) : "–";
    return row(
      head(`v${version.number}`, version.parent === null ? "the first" : `from v${version.parent}`),
      state, published, number(gate),
      number(two(live ? divided(live.committed, live.rounds) : null), live ? `${count(live.rounds)} rounds` : ""),
      number(percent(live ? divided(live.accepted, live.proposed) : null), live ? `${count(live.proposed)} proposed` : ""),
      buttons.length ? element("span", { className: "buttons" }, ...buttons) : "",
    );
  });
  replaceRows($("versions"), rows.length ? rows : [emptyRow(7, "Nothing published yet: the drafter is as it was made.")]);
  const to = engine && predecessor(versions, engine.drafter_version);
  $("roll-back").disabled = !to;
  $("roll-back").dataset.version = to ?? "";
  put("roll-back", to ? `Roll back to v${to}` : "Roll back");
  put("roll-back-note", to ? "" : engine ? "Nothing to go back to: no older version is fit to serve." : "No engine answers.");
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
