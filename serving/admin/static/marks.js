// Events drawn over the charts' time axis: a line with a letter each, and shaded stretches where nothing was counted or
// Redis was away.

/** The first ones get a letter first where there is not room for all. */
export const MARKS = {
  drift: { letter: "D", name: "drift", mood: "warn", dash: [2, 3] },
  roll_back: { letter: "R", name: "roll back", mood: "bad", dash: [8, 3] },
  restart: { letter: "↻", name: "restart", mood: "warn", dash: [6, 2, 1, 2] },
  publish: { letter: "P", name: "publish", mood: "good", dash: [] },
  merge: { letter: "M", name: "base drafter again", mood: "warn", dash: [3, 2, 3, 6] },
  swap: { letter: "S", name: "swap", mood: "length", dash: [4, 3] },
  refuse: { letter: "×", name: "refused by the gate", mood: "muted", dash: [1, 4] },
};
const KINDS = Object.keys(MARKS);
const SHADED = new Set(["gap", "restart"]);
const LETTER_PIXELS = 14, LANES = 3, LANE_PIXELS = 12, NEAR_PIXELS = 6;
/** What a chart leaves free above its lines, for letters in lanes one above the other. */
export const ROOM_PIXELS = LANES * LANE_PIXELS + 4;

/** Whether a letter was put in a cell of its lane, or beside it. */
class Lanes {
  #taken = Array.from({ length: LANES }, () => new Map());

  /** The lowest lane in which a letter at `x` overlaps none; -1: there is none. */
  take(x, scale) {
    const cell = Math.floor(x / (LETTER_PIXELS * scale));
    const lane = this.#taken.findIndex((cells) =>
      [cell - 1, cell, cell + 1].every((one) => !(Math.abs((cells.get(one) ?? Infinity) - x) < LETTER_PIXELS * scale)));
    if (lane >= 0) this.#taken[lane].set(cell, x);
    return lane;
  }
}

/** What is marked near a place on the time axis, as text; empty: nothing. */
export function markedNear(plot, left, events, shown) {
  const near = events.filter((event) => shown.has(event.kind) && MARKS[event.kind] && Math.abs(plot.valToPos(event.at_s, "x") - left) <= NEAR_PIXELS);
  return near.slice(-5).map((event) => `${MARKS[event.kind].name}: ${event.message}`).join("\n");
}

/** A uPlot plugin; `events` and `shown` (a Set of kinds) are asked at every drawing. */
export function markPlugin(events, shown, colour) {
  function draw(plot) {
    const { ctx, bbox } = plot, scale = devicePixelRatio, all = events(), lanes = new Lanes();
    ctx.save();
    ctx.font = `600 ${11 * scale}px system-ui, sans-serif`;
    ctx.textAlign = "center";
    for (const event of all) {
      if (SHADED.has(event.kind) && event.data.to_s > event.data.from_s) shade(plot, event.data.from_s, event.data.to_s);
    }
    for (const kind of KINDS.filter((one) => shown().has(one))) {
      const { mood, dash, letter } = MARKS[kind];
      const places = new Set(all.filter((event) => event.kind === kind).map((event) => Math.round(plot.valToPos(event.at_s, "x", true))));
      const seen = [...places].filter((x) => x >= bbox.left && x <= bbox.left + bbox.width);
      ctx.strokeStyle = ctx.fillStyle = colour(mood);
      ctx.lineWidth = scale;
      ctx.setLineDash(dash.map((length) => length * scale));
      ctx.beginPath();
      for (const x of seen) {
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
      }
      ctx.stroke(); // all at once, since each stroke takes long
      for (const x of seen) {
        const lane = lanes.take(x, scale);
        if (lane >= 0) ctx.fillText(letter, x, bbox.top - (3 + lane * LANE_PIXELS) * scale);
      }
    }
    ctx.restore();
  }

  function shade(plot, from, to) {
    const { ctx, bbox } = plot, left = plot.valToPos(from, "x", true), right = plot.valToPos(to, "x", true);
    if (right < bbox.left || left > bbox.left + bbox.width) return;
    ctx.fillStyle = colour("shade");
    ctx.fillRect(Math.max(left, bbox.left), bbox.top, Math.min(right, bbox.left + bbox.width) - Math.max(left, bbox.left), bbox.height);
  }

  return { hooks: { draw } };
}
