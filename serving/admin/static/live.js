// The stream of snapshots. The browser reconnects by itself after a network error, but gives up after a refusal: then we
// try again here. A stream that is open and silent (a laptop that slept, a proxy that lost it) is replaced.

import { API } from "./api.js";

const SILENT_MS = 10000, RETRY_MS = 3000;

export class Live {
  #source = null;
  #heardAt = 0;
  #timer = null;

  /** onSnapshot(snapshot), onLost(): the stream has ended; it is being opened again. */
  constructor(onSnapshot, onLost) {
    this.onSnapshot = onSnapshot;
    this.onLost = onLost;
  }

  start() {
    if (this.#timer === null) this.#timer = setInterval(() => this.#check(), 1000);
    this.#open();
  }

  stop() {
    clearInterval(this.#timer);
    this.#timer = null;
    this.#source?.close();
    this.#source = null;
  }

  #open() {
    this.#source?.close();
    this.#heardAt = Date.now();
    const source = this.#source = new EventSource(`${API}live`);
    source.addEventListener("snapshot", (event) => {
      this.#heardAt = Date.now();
      this.onSnapshot(JSON.parse(event.data));
    });
    source.addEventListener("error", () => {
      if (source !== this.#source) return;
      this.onLost();
      if (source.readyState === EventSource.CLOSED) this.#heardAt = Date.now() - SILENT_MS + RETRY_MS;
    });
  }

  #check() {
    if (!document.hidden && Date.now() - this.#heardAt > SILENT_MS) this.#open();
  }
}
