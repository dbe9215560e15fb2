// Figures as text. What is not known is a dash.

export const three = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
export const two = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
export const percent = (value) => (value === null || value === undefined ? "–" : `${(value * 100).toFixed(1)}%`);
export const count = (value) => (value ?? 0).toLocaleString("en");
const BYTE_UNITS = ["B", "kB", "MB", "GB", "TB"];

/** Three digits, in the unit that fits the value: 48.3 MB. */
export function bytes(value) {
  let unit = 0;
  while (unit < BYTE_UNITS.length - 1 && value >= 999.5 * 1000 ** unit) unit++;
  return `${Number((value / 1000 ** unit).toPrecision(3))} ${BYTE_UNITS[unit]}`;
}

export function duration(s) {
  if (s < 60) return `${Math.round(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** Date and time here, such as 2026-11-30 06:11:37; the tooltip has the time zone, too. */
export function timeElement(s) {
  const time = document.createElement("time"), at = new Date(s * 1000);
  time.dateTime = at.toISOString();
  time.textContent = at.toLocaleString("sv-SE");
  time.title = at.toLocaleString("en-GB", { dateStyle: "full", timeStyle: "long" });
  return time;
}

/** The held-out acceptance lengths that the gate compared; of versions from before it did so, acceptance rates. */
export const gateFigures = (gate) => "serving_length" in gate ? [three(gate.length), three(gate.serving_length)] : [percent(gate.candidate), percent(gate.serving)];
export const gateText = (gate) => gateFigures(gate).join(" vs ");
