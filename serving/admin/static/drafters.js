// Which drafter's versions the table shows: the base drafter's, which come with every snapshot, or those of a domain's own.

import { call } from "./api.js";
import { $ } from "./dom.js";

const EVERY_MS = 5000;
/** Version 0 of a domain. */
const BASE = { number: 0, parent: null, created_at_s: null, training_step: 0, gate: {}, rolled_back: "", note: "the base drafter" };

export class Drafters {
  #versions = [];
  #shown = "";
  #askedAt = 0;

  /** onChange(): something else is to be shown; onProblem(message): empty when there is none. */
  constructor(onChange, onProblem) {
    Object.assign(this, { onChange, onProblem });
    $("versions-of").addEventListener("change", () => this.#change());
  }

  show(domain) {
    $("versions-of").value = domain;
    this.#change();
  }

  /** Offer the domains that have, or had, a drafter of their own. */
  offer(domains) {
    const select = $("versions-of"), chosen = select.value, names = Object.keys(domains).sort();
    $("versions-of-label").hidden = names.length === 0;
    if (names.join("\n") === [...select.options].slice(1).map((option) => option.value).join("\n")) return;
    select.replaceChildren(new Option("all traffic", ""), ...names.map((name) => new Option(name, name)));
    select.value = names.includes(chosen) ? chosen : "";
  }

  /** What the table shows: the domain (empty: all traffic), its versions, what the referee says, and live figures by version. */
  view(snapshot, status) {
    const domain = $("versions-of").value, engine = status.engine;
    if (!domain) return { domain, versions: snapshot.versions, judged: status.versions, serving: engine?.drafter_version, live: (version) => engine?.acceptance_by_version?.[version] };
    const judged = status.domains?.[domain] ?? null;
    return {
      domain, judged, versions: [BASE, ...(this.#shown === domain ? this.#versions : [])],
      serving: judged ? judged.trial ?? judged.confirmed : undefined, live: (version) => liveFigures(engine, domain, version),
    };
  }

  /** Ask for the chosen domain's versions, now and then. */
  async tick() {
    const domain = $("versions-of").value;
    if (!domain || (domain === this.#shown && Date.now() - this.#askedAt < EVERY_MS)) return;
    this.#askedAt = Date.now();
    this.#shown = domain;
    try {
      const versions = await call(`versions?${new URLSearchParams({ domain })}`);
      if (domain !== $("versions-of").value) return;
      this.#versions = versions;
      this.onProblem("");
      this.onChange();
    } catch (error) {
      this.onProblem(`The versions of ${domain} cannot be read: ${error.message}`);
    }
  }

  #change() {
    this.#versions = [];
    this.#shown = "";
    this.onChange();
    this.tick();
  }
}

/** Sums over the rounds of a domain that a version of its own drafter (0: the base drafter, any version) proposed in. */
function liveFigures(engine, domain, version) {
  const name = version ? `${engine?.drafter_kind}.${domain}` : engine?.drafter_kind;
  const rows = (engine?.served ?? []).filter((one) => one.domain === domain && one.drafter === name && (!version || one.version === version));
  if (!rows.length) return undefined;
  const sum = (figure) => rows.reduce((all, { figures }) => all + (figures[figure] ?? 0), 0);
  return { rounds: sum("rounds"), proposed: sum("proposed"), accepted: sum("accepted"), committed: sum("committed") };
}

const named = (version) => (version ? `v${version}` : "the base drafter");
const between = ({ gain_low: low, gain_high: high }) => `gain between ${low.toFixed(3)} and ${high.toFixed(3)}`;

/** Which drafter serves a domain, and on which figures; judged and training are of the domain, if it has them. */
export function drafterText(judged, training) {
  const against = training?.against_base ?? {};
  if (judged?.pinned) return `${named(judged.confirmed)} is pinned: ${judged.pinned}`;
  if (judged?.trial) return `v${judged.trial} is on trial against ${named(judged.confirmed)}`;
  if (judged?.confirmed) return `its own, ${named(judged.confirmed)}` + ("length" in against ? `: length ${against.length.toFixed(2)}, the base drafter ${against.base_length.toFixed(2)}, ${between(against)}` : "");
  if (judged?.merged) return `the base drafter again: ${judged.merged}`;
  if (!training) return "the base drafter";
  const gate = training.gate ?? {};
  return `the base drafter; its own has learnt from ${training.records} records in ${training.steps} steps` + ("gain_low" in gate ? `, ${between(gate)}` : "");
}
