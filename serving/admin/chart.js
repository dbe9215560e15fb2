// Acceptance length and rate over queries, as two SVG panels over one axis, with swaps and roll backs marked.
// Pure functions of the points, but for drawChart, which fills an element.

const SVG = "http://www.w3.org/2000/svg";
const MOST_DRAWN = 500;
const LEFT = 44, RIGHT = 14, TOP = 40, GAP = 38, BOTTOM = 40;

export const ratio = (part, whole) => (whole > 0 ? part / whole : null);

/** Sums over points; ratios are taken of sums, never averaged. */
export function summed(points) {
  const sum = { queries: points.length, rounds: 0, proposed: 0, accepted: 0, committed: 0, output_tokens: 0, decode_ms: 0 };
  for (const point of points) for (const key of Object.keys(sum)) if (key !== "queries") sum[key] += point[key];
  return { ...sum, length: ratio(sum.committed, sum.rounds), rate: ratio(sum.accepted, sum.proposed) };
}

/** For each point: the ratios over the `size` newest points up to it. */
export function windowed(points, size) {
  const run = { rounds: 0, proposed: 0, accepted: 0, committed: 0 };
  return points.map((point, at) => {
    for (const key of Object.keys(run)) run[key] += point[key] - (at >= size ? points[at - size][key] : 0);
    return { point, length: ratio(run.committed, run.rounds), rate: ratio(run.accepted, run.proposed) };
  });
}

/**
 * Where another drafter version took over. Queries that began before a swap still finish with the older version, so
 * only a version never seen before is a swap, and an older one is a roll back only after an event that says so.
 */
export function takeovers(points, events) {
  const rollBacks = events.filter((event) => event.kind === "roll_back").map((event) => event.at_s);
  const marks = [];
  let newest = null, current = null, since = 0;
  for (const point of points) {
    const version = point.drafter_version;
    if (point.proposed === 0 || version === current) continue;
    const rolledBack = current !== null && version < current && rollBacks.some((at) => at > since && at <= point.at_s);
    if (newest !== null && version <= newest && !rolledBack) continue;
    if (current !== null) marks.push({ query: point.query, version, kind: rolledBack ? "roll-back" : "swap" });
    current = version;
    newest = Math.max(newest ?? version, version);
    since = point.at_s;
  }
  return marks;
}

function node(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function niceStep(span, most) {
  const rough = span / most, power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
}

function drawPanel(svg, { series, key, title, floor, leastTop, format, titleY, top, height, x, width }) {
  const known = series.filter((one) => one[key] !== null);
  const peak = Math.max(leastTop, ...known.map((one) => one[key]));
  const step = niceStep((peak - floor) * 1.02, 4);
  const ceiling = floor + Math.ceil(((peak - floor) * 1.02) / step - 1e-9) * step;
  const y = (value) => top + height - ((value - floor) / (ceiling - floor)) * height;
  for (let value = floor; value <= ceiling + step / 2; value += step) {
    node(svg, "line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) });
    node(svg, "text", { x: LEFT - 7, y: y(value) + 4, "text-anchor": "end" }, format(value));
  }
  node(svg, "text", { class: "panel", x: 2, y: titleY }, title);
  const path = known.map((one, at) => `${at ? "L" : "M"}${x(one.point.query).toFixed(1)} ${y(one[key]).toFixed(1)}`);
  node(svg, "path", { class: `line ${key}`, d: path.join("") });
}

/** Draw `points` (oldest first) into `box`. */
export function drawChart(box, points, events, size) {
  box.replaceChildren();
  if (points.length < 2) {
    const empty = document.createElement("p");
    empty.className = "empty";
    empty.textContent = "The chart begins with the second finished query.";
    box.append(empty);
    return;
  }
  const width = box.clientWidth, height = box.clientHeight;
  const svg = node(box, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  const first = points[0].query, last = points[points.length - 1].query;
  const x = (query) => LEFT + ((query - first) / Math.max(1, last - first)) * (width - LEFT - RIGHT);
  const panelHeight = (height - TOP - GAP - BOTTOM) / 2, rateTop = TOP + panelHeight + GAP;

  const all = windowed(points, size);
  const every = Math.ceil(all.length / MOST_DRAWN);
  const series = all.filter((_, at) => (all.length - 1 - at) % every === 0);
  const marks = takeovers(points, events);
  let labelEnd = 0;
  for (const mark of marks) {
    const at = x(mark.query), label = `v${mark.version}`;
    node(svg, "line", { class: mark.kind, x1: at, x2: at, y1: TOP - 4, y2: height - BOTTOM });
    if (at - 10 < labelEnd) continue; // close together, labels would hide one another
    node(svg, "text", { class: mark.kind, x: at, y: TOP - 8, "text-anchor": "middle" }, label);
    labelEnd = at + 14;
  }
  drawPanel(svg, {
    series, key: "length", title: "Acceptance length (tokens a round)", floor: 1, leastTop: 1.5,
    format: (value) => value.toFixed(1), titleY: 14, top: TOP, height: panelHeight, x, width,
  });
  drawPanel(svg, {
    series, key: "rate", title: "Acceptance rate (% of proposed tokens)", floor: 0, leastTop: 0.2,
    format: (value) => `${Math.round(value * 100)}%`, titleY: rateTop - 13, top: rateTop, height: panelHeight, x, width,
  });
  node(svg, "line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: height - BOTTOM, y2: height - BOTTOM });
  const step = Math.max(1, niceStep(Math.max(1, last - first), Math.min(8, width / 60)));
  for (let query = Math.ceil(first / step) * step; query <= last; query += step) {
    const end = x(query) > width - RIGHT - 20;
    node(svg, "text", { x: end ? width - RIGHT : x(query), y: height - BOTTOM + 16, "text-anchor": end ? "end" : "middle" }, query);
  }
  node(svg, "text", { class: "panel", x: (LEFT + width - RIGHT) / 2, y: height - 5, "text-anchor": "middle" }, "Queries finished (number)");
  svg.setAttribute("aria-label", inWords(all, size, marks));
  addCursor(box, svg, all, x, height);
}

/** What the chart shows, for who cannot see it. */
function inWords(all, size, marks) {
  const { point, length, rate } = all[all.length - 1];
  const figures = [
    length === null ? null : `acceptance length ${length.toFixed(2)} tokens a round`,
    rate === null ? null : `acceptance rate ${(rate * 100).toFixed(1)}%`,
  ].filter(Boolean).join(", ");
  const changes = marks.map((mark) => `${mark.kind.replace("-", " ")} to v${mark.version} at query ${mark.query}`).join(", ");
  return `Acceptance over queries ${all[0].point.query} to ${point.query}. Last ${Math.min(size, all.length)}: ${figures || "no rounds"}. ${changes || "No swaps"}.`;
}

function addCursor(box, svg, series, x, height) {
  const cursor = node(svg, "line", { class: "cursor", y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
  const hint = document.createElement("div");
  hint.className = "hint";
  hint.hidden = true;
  box.append(hint);
  svg.addEventListener("pointerleave", () => { hint.hidden = true; cursor.setAttribute("visibility", "hidden"); });
  svg.addEventListener("pointermove", (event) => {
    const pointer = event.clientX - svg.getBoundingClientRect().left;
    const near = series.reduce((best, one) =>
      Math.abs(x(one.point.query) - pointer) < Math.abs(x(best.point.query) - pointer) ? one : best);
    const at = x(near.point.query);
    for (const key of ["x1", "x2"]) cursor.setAttribute(key, at);
    cursor.setAttribute("visibility", "visible");
    hint.hidden = false;
    hint.textContent = `query ${near.point.query} · length ${near.length?.toFixed(2) ?? "–"} · rate ${
      near.rate === null ? "–" : (near.rate * 100).toFixed(1) + "%"} · v${near.point.drafter_version} · ${near.point.domain}`;
    const left = at + 12 + hint.offsetWidth > box.clientWidth ? at - 12 - hint.offsetWidth : at + 12;
    hint.style.left = `${Math.max(0, left)}px`;
  });
}
