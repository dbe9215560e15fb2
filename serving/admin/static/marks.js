// Events drawn over the charts' time axis: a line with a letter each, and shaded stretches where nothing was counted or
// Redis was away.

export const MARKS = {
  drift: { letter: "D", name: "drift", mood: "warn", dash: [2, 3] },
  publish: { letter: "P", name: "publish", mood: "good", dash: [] },
  refuse: { letter: "×", name: "refused by the gate", mood: "muted", dash: [1, 4] },
  swap: { letter: "S", name: "swap", mood: "length", dash: [4, 3] },
  roll_back: { letter: "R", name: "roll back", mood: "bad", dash: [8, 3] },
  merge: { letter: "M", name: "base drafter again", mood: "warn", dash: [3, 2, 3, 6] },
  restart: { letter: "↻", name: "restart", mood: "warn", dash: [6, 2, 1, 2] },
};
const SHADED = new Set(["gap", "restart"]);
const LEAST_PIXELS = 14;

/** A uPlot plugin; `events` and `shown` (a Set of kinds) are asked at every drawing. */
export function markPlugin(events, shown, colour) {
  function draw(plot) {
    const { ctx, bbox } = plot, scale = devicePixelRatio;
    ctx.save();
    ctx.font = `600 ${11 * scale}px system-ui, sans-serif`;
    ctx.textAlign = "center";
    for (const event of events()) {
      if (SHADED.has(event.kind) && event.data.to_s > event.data.from_s) shade(plot, event.data.from_s, event.data.to_s);
    }
    let lastX = -Infinity;
    for (const event of events()) {
      const mark = MARKS[event.kind];
      if (!mark || !shown().has(event.kind)) continue;
      const x = Math.round(plot.valToPos(event.at_s, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width || x === lastX) continue;
      ctx.strokeStyle = ctx.fillStyle = colour(mark.mood);
      ctx.lineWidth = scale;
      ctx.setLineDash(mark.dash.map((length) => length * scale));
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      if (x - lastX >= LEAST_PIXELS * scale) ctx.fillText(mark.letter, x, bbox.top - 3 * scale); // else they would overlap
      lastX = x;
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
