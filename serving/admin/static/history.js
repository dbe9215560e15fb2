// The history in the chosen range: asks for it, and again as time goes on while the range ends now.

import { call, Refused } from "./api.js";

const LEAST_MS = 5000;

export class History {
  /** What is shown: `span` seconds up to now, or a fixed range {from, to} after zooming. */
  span = 3600;
  fixed = null;
  by = ["domain"];
  domain = "";
  served = null; // by domain, version, ... as chosen
  levels = null; // by engine: the trainer's and the engines' levels
  /** The server's clock minus this browser's, in ms: figures have the server's times. */
  aheadMs = 0;
  #askedAt = 0;
  #number = 0;

  /** onAnswer(): there are new figures; onProblem(message): empty when there is none; onRefused(): the session has ended. */
  constructor(onAnswer, onProblem, onRefused) {
    Object.assign(this, { onAnswer, onProblem, onRefused });
  }

  get isLive() { return this.fixed === null; }

  /** The server's time, in seconds. */
  get nowS() { return (Date.now() + this.aheadMs) / 1000; }

  range() {
    const now = this.nowS;
    return this.fixed ?? { from: now - this.span, to: now };
  }

  zoomTo(from, to) {
    if (!(to - from >= 10)) return;
    const now = this.nowS;
    this.fixed = { from: Math.max(from, now - 366 * 86400), to: Math.min(to, now + 60) };
    if (this.fixed.from >= this.fixed.to) this.fixed = { from: now - 3600, to: now };
    this.ask();
  }

  /** Move by a share of the range; zoom by a factor around its middle. */
  move(share, factor = 1) {
    const { from, to } = this.range(), middle = (from + to) / 2 + share * (to - from), half = (factor * (to - from)) / 2;
    this.zoomTo(middle - half, middle + half);
  }

  followNow(span) {
    this.span = span;
    this.fixed = null;
    this.ask();
  }

  /** Ask again if the newest points may have changed. */
  tick() {
    const step = (this.served?.step_s ?? 5) * 1000;
    if (this.isLive && Date.now() - this.#askedAt > Math.max(LEAST_MS, step / 2)) this.ask();
  }

  async ask() {
    const { from, to } = this.range(), number = ++this.#number;
    this.#askedAt = Date.now();
    const range = `from=${from}&to=${to}`, by = this.by.map((name) => `&by=${name}`).join("");
    try {
      const [served, levels] = await Promise.all([
        call(`history?${range}${by}&domain=${encodeURIComponent(this.domain)}`), call(`history?${range}&by=engine`),
      ]);
      if (number !== this.#number) return; // another range was chosen meanwhile
      Object.assign(this, { served, levels });
      this.onProblem(served.message);
      this.onAnswer();
    } catch (error) {
      if (error instanceof Refused && error.status === 401) this.onRefused();
      else if (error instanceof Refused) this.onProblem(error.message);
      // A lost connection shows in the live stream.
    }
  }
}
