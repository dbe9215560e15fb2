// What the page tells as a whole: one alert line with a part from each source, and announcements for screen readers.

import { $, put } from "./dom.js";

const parts = { lever: "", live: "", history: "", versions: "" };

export function tell(source, message) {
  parts[source] = message;
  const text = Object.values(parts).filter(Boolean).join(" ");
  if (text === $("alert").textContent) return;
  put("alert", text);
  $("alert").hidden = !text;
}

/** Read out, and only on changes: what comes every two seconds must not be read out every two seconds. */
export const announce = (text) => put("announcement", text);
