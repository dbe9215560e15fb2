// The domains that had queries in the chosen range, and those that an operator set something for: which drafter serves
// each, and what was set.

import { $, badge, element, emptyRow, head, replaceRows, row } from "./dom.js";
import { drafterText } from "./drafters.js";

export const policyText = (length) => (length === undefined ? "by goodput" : length === 0 ? "plain decoding" : `${length} tokens`);

/** What the history calls all domains together that are beyond `monitor.max_domains`. */
const OTHER = "other";

/** known: the domains that have figures in the chosen range. */
export function renderDomains(known, wishes, status) {
  const { lengths = {}, frozen = [] } = wishes ?? {};
  const judged = status.domains ?? {}, training = status.trainer?.domains ?? {};
  const pinned = Object.keys(judged).filter((domain) => judged[domain].pinned);
  // One that the history does not tell apart may be among them.
  const perhaps = known.includes(OTHER) ? [...Object.keys(judged), ...Object.keys(training)] : [];
  const wished = [...Object.keys(lengths), ...frozen, ...pinned];
  const names = [...new Set([...known, ...wished, ...perhaps])].sort();
  const rows = names.map((domain) => {
    if (domain === OTHER && !wished.includes(OTHER)) return row(head(domain), { text: "further domains, counted together", style: "why" }, "", "", "");
    const learns = element("span"), isFrozen = frozen.includes(domain);
    badge(learns, isFrozen ? "❄ frozen" : "learnt from", isFrozen ? "warn" : "good");
    const button = (text, act) => element("button", { type: "button", textContent: text, data: { act, domain }, "aria-label": `${text} ${domain}` });
    return row(head(domain), { text: drafterText(judged[domain], training[domain]), style: "why" }, policyText(lengths[domain]), learns,
      element("span", { className: "buttons" }, ...(domain in judged ? [button("Versions", "versions")] : []), button("Policy", "policy"), button(isFrozen ? "Thaw" : "Freeze", isFrozen ? "thaw" : "freeze")));
  });
  replaceRows($("domains"), rows.length ? rows : [emptyRow(5, "No query in this range.")]);
}
