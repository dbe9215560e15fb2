// The playground: one prompt, answered with speculation and then plainly, each token marked by where it came from.

import { Refused, request } from "./api.js";
import { $, element, head, put, row } from "./dom.js";
import { percent, two } from "./figures.js";

const NAMES = { first: "the first token, from reading the prompt", accepted: "accepted", recovered: "recovered after a rejection", bonus: "bonus after all were accepted", plain: "from a plain round" };

export class Playground {
  #stop = null;

  constructor() {
    $("playground").addEventListener("submit", (event) => { event.preventDefault(); this.#run(); });
    $("stop").addEventListener("click", () => this.#stop?.abort());
  }

  async #run() {
    if (this.#stop !== null) return;
    this.#stop = new AbortController();
    $("ask").disabled = true;
    $("stop").hidden = false;
    for (const id of ["speculated", "plain", "rounds"]) $(id).replaceChildren();
    for (const id of ["speculated-figures", "plain-figures"]) put(id, "");
    const body = { prompt: $("prompt").value, max_tokens: $("prompt-tokens").valueAsNumber, temperature: $("prompt-temperature").valueAsNumber, seed: 1 };
    try { // one after the other, since both at once would slow each other down
      put("playground-note", "answering with speculation");
      const speculated = await this.#answer("speculated", body, true);
      put("playground-note", "answering plainly");
      const plain = await this.#answer("plain", { ...body, plain: true }, false);
      const faster = speculated.decode_s > 0 ? plain.decode_s / speculated.decode_s : null;
      put("playground-note", speculated.output_tokens === plain.output_tokens && faster ? `Plain decoding took ${faster.toFixed(2)} times as long.` : "Done.");
    } catch (error) {
      put("playground-note", error.name === "AbortError" ? "Stopped." : error instanceof Refused ? error.message : `The answer broke off: ${error.message}`);
    } finally {
      this.#stop = null;
      $("ask").disabled = false;
      $("stop").hidden = true;
    }
  }

  async #answer(id, body, showsRounds) {
    const answer = await request("playground", body, this.#stop.signal);
    let end = null, number = 0;
    for await (const event of events(answer.body)) {
      if (event.type === "error") throw new Error(event.error.message);
      if (event.type === "end") { end = event; continue; }
      const name = event.arm ? `${event.arm}${event.version ? ` v${event.version}` : ""}` : "no drafter";
      $(id).append(...event.tokens.map((token) => element("span", {
        className: `token ${token.kind}`, textContent: token.text, title: `${NAMES[token.kind]}${event.arm ? `, proposed by ${name}` : ""}` })));
      if (showsRounds && event.tokens.length && event.tokens[0].kind !== "first") {
        const squares = "■".repeat(event.accepted) + "□".repeat(event.proposed - event.accepted);
        $("rounds").append(row(head(String(++number)), name, event.proposed ? `${squares} ${event.accepted} of ${event.proposed}` : "plain", event.tokens.map((token) => token.text).join("")));
      }
    }
    if (end === null) throw new Error("the connection ended");
    if (end.error) throw new Error(end.error);
    const { osd } = end, speed = end.decode_s > 0 ? ((end.output_tokens - 1) / end.decode_s).toFixed(1) : "–";
    put(`${id}-figures`, `${end.output_tokens} tokens, ${speed} tokens/s, acceptance rate ${percent(osd.acceptance_rate)}, length ${two(osd.acceptance_length)}`);
    return end;
  }
}

/** The events of a stream of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const frames = (rest + part.value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const data = frame.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}
