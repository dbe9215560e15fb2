// The drafter versions, the newest first.

import { $, badge, element, emptyRow, head, number, put, replaceRows, row } from "./dom.js";
import { count, gateText, percent, timeElement, two } from "./figures.js";
import { divided } from "./ratio.js";

/** The newest version before the one that serves that was not rolled back itself; undefined where there is none. */
const predecessor = (versions, serving) => versions.findLast((one) => one.number < serving && !one.rolled_back)?.number;

export function renderVersions(versions, engine, judged) {
  const rows = versions.toReversed().map((version) => {
    const serving = version.number === engine?.drafter_version;
    const state = element("span");
    badge(state, serving ? "serving" : version.rolled_back ? "rolled back" : "idle", serving ? "good" : version.rolled_back ? "bad" : "");
    state.title = version.rolled_back || version.note;
    const live = engine?.acceptance_by_version?.[version.number];
    const button = element("button", { textContent: `Serve v${version.number}`, data: { version: version.number } });
    const published = element("span", {}, timeElement(version.created_at_s), `, step ${count(version.training_step)}`);
    const gate = "candidate" in version.gate ? gateText(version.gate) : "–";
    return row(
      head(`v${version.number}`, version.parent === null ? "the first" : `from v${version.parent}`),
      state, published, number(gate),
      number(two(live ? divided(live.committed, live.rounds) : null), live ? `${count(live.rounds)} rounds` : ""),
      number(percent(live ? divided(live.accepted, live.proposed) : null), live ? `${count(live.proposed)} proposed` : ""),
      engine && !serving && !version.rolled_back ? button : "",
    );
  });
  replaceRows($("versions"), rows.length ? rows : [emptyRow(7, "Nothing published yet: the drafter is as it was made.")]);
  const to = engine && predecessor(versions, engine.drafter_version);
  $("roll-back").disabled = !to;
  $("roll-back").dataset.version = to ?? "";
  put("roll-back", to ? `Roll back to v${to}` : "Roll back");
  put("roll-back-note", to ? "" : engine ? "Nothing to go back to: no older version is fit to serve." : "No engine answers.");
  const all = judged?.roll_backs ?? 0, manual = judged?.manual_roll_backs ?? 0;
  put("roll-backs", judged ? `Rolled back since the supervisor started: ${count(all - manual)} automatically, ${count(manual)} by hand.` : "");
}
