// The domains in the chosen range: which drafter serves each, and the policies that an operator set for them.

import { $, badge, element, emptyRow, head, replaceRows, row } from "./dom.js";
import { drafterText } from "./drafters.js";

export const policyText = (length) => (length === undefined ? "by goodput" : length === 0 ? "plain decoding" : `${length} tokens`);

export function renderDomains(known, wishes, status) {
  const { lengths = {}, frozen = [] } = wishes ?? {};
  const judged = status.domains ?? {}, training = status.trainer?.domains ?? {};
  const names = [...new Set([...known, ...Object.keys(lengths), ...frozen, ...Object.keys(judged), ...Object.keys(training)])].sort();
  const rows = names.map((domain) => {
    const learns = element("span"), isFrozen = frozen.includes(domain);
    badge(learns, isFrozen ? "❄ frozen" : "learnt from", isFrozen ? "warn" : "good");
    const button = (text, act) => element("button", { type: "button", textContent: text, data: { act, domain }, "aria-label": `${text} ${domain}` });
    return row(head(domain), { text: drafterText(judged[domain], training[domain]), style: "why" }, policyText(lengths[domain]), learns,
      element("span", { className: "buttons" }, ...(domain in judged ? [button("Versions", "versions")] : []), button("Policy", "policy"), button(isFrozen ? "Thaw" : "Freeze", isFrozen ? "thaw" : "freeze")));
  });
  replaceRows($("domains"), rows.length ? rows : [emptyRow(5, "No query in this range.")]);
}
