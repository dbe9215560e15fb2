// Signing in and out. The session is a cookie that scripts cannot read; the server says in the page whether there is one.

import { call, Refused } from "./api.js";
import { $, put } from "./dom.js";
import { tell } from "./messages.js";

export class Session {
  /** onChange(isOpen): after signing in, signing out, or the session's end. */
  constructor(onChange) {
    this.onChange = onChange;
    $("login").addEventListener("submit", (event) => { event.preventDefault(); this.#signIn(); });
    $("sign-out").addEventListener("click", () => this.#signOut());
  }

  get isOpen() { return $("login").hidden; }

  start() {
    this.show(document.documentElement.dataset.signedIn === "yes");
  }

  /** Show the dashboard, or the sign-in. */
  show(isOpen, message = "") {
    const opensLogin = !isOpen && $("login").hidden;
    $("login").hidden = isOpen;
    $("dashboard").hidden = !isOpen;
    $("sign-out").hidden = !isOpen;
    put("login-error", message);
    if (!isOpen) {
      $("ready").hidden = true;
      for (const id of ["target", "freshness"]) $(id).textContent = "";
      for (const source of ["live", "history"]) tell(source, "");
    }
    if (opensLogin) { $("confirm").close("no"); $("token").focus(); }
    this.onChange(isOpen);
  }

  /** Whether the session still holds; if not, show the sign-in. A lost connection says nothing. */
  async check() {
    try {
      await call("status");
    } catch (error) {
      if (error instanceof Refused && error.status === 401 && this.isOpen) this.show(false, "The session has ended: sign in again.");
      else if (error instanceof Refused) tell("live", error.message);
    }
  }

  async #signIn() {
    put("login-error", "");
    try {
      await call("login", { token: $("token").value });
      $("token").value = "";
      this.show(true);
    } catch (error) {
      put("login-error", error instanceof Refused ? error.message : "No answer from the server.");
      $("token").select();
    }
  }

  async #signOut() {
    try {
      await call("logout", {});
      this.show(false);
    } catch (error) {
      tell("lever", `That did not work: ${error.message}`);
    }
  }
}
