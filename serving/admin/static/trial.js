// The trial of a new version in a sentence: who serves it, and what the referee has to compare.

import { count, percent } from "./figures.js";

const rounds = (number) => `${count(number)} round${number === 1 ? "" : "s"}`;

/** judged: what the supervisor says of versions; null while it does not answer. */
export function trialText(judged) {
  if (!judged) return "The supervisor does not answer.";
  const { confirmed, trial, canaries, pinned, before, after, rounds_before, rounds_after } = judged;
  if (pinned) return `Version ${confirmed} is pinned: ${pinned}. Newer versions wait until it is unpinned.`;
  if (trial === null) return confirmed === null ? "No version is judged yet." : `No trial: every engine may serve version ${confirmed}.`;
  const who = canaries.length ? `on ${canaries.join(", ")}` : "as soon as an engine serves it";
  const first = (rate, number) => `${number ? percent(rate) : "–"} of ${rounds(number)}`;
  return `Version ${trial} is on trial ${who}. First proposed token accepted: ${first(after, rounds_after)}; `
    + `before, ${first(before, rounds_before)}. Version ${confirmed} is confirmed.`;
}
