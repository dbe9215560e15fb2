// Figures as text. What is not known is a dash.

export const two = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
export const percent = (value) => (value === null || value === undefined ? "–" : `${(value * 100).toFixed(1)}%`);
export const count = (value) => (value ?? 0).toLocaleString("en");
export const bytes = (value) => (value >= 1e9 ? `${(value / 1e9).toFixed(2)} GB` : `${(value / 1e6).toFixed(0)} MB`);
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

export const gateText = (gate) => `${gate.candidate.toFixed(3)} vs ${gate.serving?.toFixed(3) ?? "–"}`;
