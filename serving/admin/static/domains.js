// The domains in the chosen range, with the policies that an operator set for them.

import { $, badge, element, emptyRow, head, replaceRows, row } from "./dom.js";

export const policyText = (length) => (length === undefined ? "by goodput" : length === 0 ? "plain decoding" : `${length} tokens`);

export function renderDomains(known, wishes) {
  const { lengths = {}, frozen = [] } = wishes ?? {};
  const names = [...new Set([...known, ...Object.keys(lengths), ...frozen])].sort();
  const rows = names.map((domain) => {
    const learns = element("span"), isFrozen = frozen.includes(domain);
    badge(learns, isFrozen ? "❄ frozen" : "learnt from", isFrozen ? "warn" : "good");
    const button = (text, act) => element("button", { type: "button", textContent: text, data: { act, domain }, "aria-label": `${text} ${domain}` });
    return row(head(domain), policyText(lengths[domain]), learns,
      element("span", { className: "buttons" }, button("Policy", "policy"), button(isFrozen ? "Thaw" : "Freeze", isFrozen ? "thaw" : "freeze")));
  });
  replaceRows($("domains"), rows.length ? rows : [emptyRow(4, "No query in this range.")]);
}
