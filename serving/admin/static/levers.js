// What an operator can do. Each action is confirmed in a dialog that says what will happen.

import { call } from "./api.js";
import { $ } from "./dom.js";
import { announce, tell } from "./messages.js";

const SILENCE_S = 3600;
const within = (domain) => (domain ? { domain } : {});
const named = (version, domain) => (version ? `version ${version}` : "the base drafter") + (domain ? ` in ${domain}` : "");
const capital = (text) => text[0].toUpperCase() + text.slice(1);

export class Levers {
  /**
   * isSignedIn(): the focus is not given back to a page that shows the sign-in; onVersions(domain): its versions are wanted;
   * lengthOf(domain): the speculation length that holds for it now, undefined if none was set.
   */
  constructor(isSignedIn, onVersions, lengthOf) {
    Object.assign(this, { isSignedIn, lengthOf });
    $("confirm-no").addEventListener("click", () => $("confirm").close("no"));
    // The Enter that opened the dialog, held down a little long, must not confirm it as well.
    $("confirm").addEventListener("keydown", (event) => event.key === "Enter" && event.repeat && event.preventDefault());
    $("pause").addEventListener("click", () => this.ask({
      title: "Pause training?", verb: "Pause", path: "pause", done: "Training is paused.",
      text: "The drafter learns nothing until training is resumed. Serving goes on." }));
    $("resume").addEventListener("click", () => this.ask({
      title: "Resume training?", verb: "Resume", path: "resume", done: "Training is resumed.",
      text: "The trainer goes on from its last step." }));
    $("roll-back").addEventListener("click", (event) => this.#rollBack(event.currentTarget.dataset));
    $("versions").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button?.dataset.act === "pin") this.#pin(button.dataset);
      else if (button) this.#rollBack(button.dataset);
    });
    $("unpin").addEventListener("click", (event) => this.ask({
      title: "Unpin?", verb: "Unpin", path: "unpin", body: within(event.currentTarget.dataset.domain), done: "The version is no longer pinned.",
      text: "If a newer version was published meanwhile, it goes on trial: some engines serve it first, then all. Otherwise nothing changes." }));
    $("train-now").addEventListener("click", () => this.ask({
      title: "Train now?", verb: "Train now", path: "train_now", done: "The trainer trains until the gate decides.",
      text: "The trainer works until the gate's next decision, however busy the engines are. Answers may come more slowly meanwhile." }));
    $("publish").addEventListener("click", () => this.ask({
      title: "Publish the candidate?", verb: "Publish", path: "publish", done: "The candidate is going to be published.",
      text: "The trainer's weights become a new version as they are, whatever the gate says, and the engines change to it. If acceptance falls, it is rolled back by itself." }));
    $("domains").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button?.dataset.act === "versions") { onVersions(button.dataset.domain); $("versions-title").focus(); }
      else if (button) this.#domain(button.dataset);
    });
    $("engines").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) this.#engine(button.dataset.engine, button.dataset.draining === "true");
    });
    for (const id of ["alerts", "silences"]) $(id).addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) this.#alert(button.dataset);
    });
  }

  /** Confirm, then post; `body` may be a function of the reason given. */
  async ask({ title, text, verb, path, body = {}, done, askReason = false, asks = "" }) {
    if (!(await this.#confirmed({ title, text, verb, askReason, asks }))) return;
    const reason = $("reason").value.trim();
    try {
      await call(path, typeof body === "function" ? body(reason || "no reason given") : body);
      tell("lever", "");
      announce(done);
    } catch (error) {
      tell("lever", `That did not work: ${error.message}`);
    }
  }

  /** `to` is what the dialog names and what is posted, whatever is published while it is open. */
  #rollBack({ version, domain }) {
    const to = Number(version), name = named(to, domain);
    this.ask({
      title: `Serve ${name}?`, verb: `Serve ${name}`, path: "roll_back", askReason: true,
      body: (reason) => ({ to, reason, ...within(domain) }), done: `${capital(name)} is going to serve.`,
      text: `The engine changes to ${name} between two steps; answers under way go on unchanged. Newer versions than it are marked as rolled back, and not served again.${$("unpin").hidden ? "" : " The pin ends."}` });
  }

  #pin({ version, domain }) {
    const to = Number(version), name = named(to, domain);
    this.ask({
      title: `Pin ${name}?`, verb: `Pin ${name}`, path: "pin", askReason: true,
      body: (reason) => ({ to, reason, ...within(domain) }), done: `${capital(name)} is pinned.`,
      text: `Every engine serves ${name}, whatever is published, also over restarts, until it is unpinned. Engines with another version change between two steps; answers under way go on unchanged. A trial that runs now ends. Training goes on.` });
  }

  #domain({ act, domain }) {
    if (act === "policy") choose($("length"), this.lengthOf(domain));
    if (act === "policy") this.ask({
      title: `Speculation in ${domain}`, verb: "Set", path: "policy", asks: "length", done: "The policy is set.",
      body: () => ({ domain, length: $("length").value === "" ? null : Number($("length").value) }),
      text: `Holds for new queries of the domain ${domain} that do not ask for a length themselves, on every engine, until it is changed.` });
    else this.ask({
      title: act === "freeze" ? `Freeze ${domain}?` : `Thaw ${domain}?`, verb: act === "freeze" ? "Freeze" : "Thaw", path: "freeze",
      body: { domain, frozen: act === "freeze" }, done: act === "freeze" ? "The domain is frozen." : "The domain is learnt from again.",
      text: act === "freeze" ? `The trainer learns nothing from queries of the domain ${domain} until it is thawed. They are served as before.` : `The trainer learns from queries of the domain ${domain} again.` });
  }

  #engine(engine, draining) {
    this.ask({
      title: draining ? `Drain ${engine}?` : `Use ${engine} again?`, verb: draining ? "Drain" : "Use again", path: "drain",
      body: { engine, draining }, done: draining ? "The engine drains." : "The engine takes queries again.",
      text: draining ? `${engine} answers the queries that it has and takes no new ones. If it is the only engine, new queries are refused.` : `${engine} takes new queries again.` });
  }

  #alert({ act, name, subject }) {
    const of = subject ? `${name} (${subject})` : name;
    if (act === "acknowledge") this.ask({
      title: `Acknowledge ${of}?`, verb: "Acknowledge", path: "alerts/acknowledge", body: { name, subject }, done: "The alert is acknowledged.",
      text: "Everybody sees that you take care of it. It stays here until its condition ends." });
    else if (act === "tell") this.ask({
      title: `End the silence of ${name}?`, verb: "End silence", path: "alerts/silence", body: { name, for_s: 0 }, done: "The silence has ended.",
      text: `Webhooks are told again when an alert of the rule ${name} begins to fire or ends.` });
    else this.ask({
      title: `Silence ${name}?`, verb: "Silence for an hour", path: "alerts/silence", body: { name, for_s: SILENCE_S }, done: "The rule is silent.",
      text: `For an hour no webhook is told about any alert of the rule ${name}. It is still shown here.` });
  }

  async #confirmed({ title, text, verb, askReason, asks }) {
    const dialog = $("confirm"), opener = document.activeElement, section = opener?.closest("section");
    if (dialog.open) return false;
    await this.answered; // a dialog is closed before its event says so, and that event must not answer this one
    if (dialog.open) return false;
    $("confirm-title").textContent = title;
    $("confirm-text").textContent = text;
    $("confirm-yes").textContent = verb;
    $("reason-label").hidden = !askReason;
    $("length-label").hidden = asks !== "length";
    $("reason").value = "";
    dialog.returnValue = "no";
    dialog.showModal();
    (askReason ? $("reason") : $("confirm-yes")).focus();
    this.answered = new Promise((resolve) => {
      dialog.addEventListener("close", () => {
        if (section && this.isSignedIn()) focusAgain(opener, section);
        resolve(dialog.returnValue === "yes");
      }, { once: true });
    });
    return this.answered;
  }
}

/** Choose a length; one that the list lacks is added to it. */
function choose(select, length) {
  const value = length === undefined ? "" : String(length);
  if (![...select.options].some((option) => option.value === value)) select.append(new Option(value));
  select.value = value;
}

/** Focus `control`, or where that is gone or off its successor in the table, or else the heading of its section. */
export function focusAgain(control, section) {
  const does = JSON.stringify(control.dataset);
  const successor = [...section.querySelectorAll("tbody button")].find((one) => JSON.stringify(one.dataset) === does);
  const usable = [control, successor, section.querySelector("h2")].find((one) => one?.isConnected && !one.disabled && !one.hidden);
  if (usable !== document.activeElement) usable?.focus();
}
