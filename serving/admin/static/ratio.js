// Ratios of the history's sums. A ratio is taken of sums, never averaged, and null where nothing was counted.

export const divided = (part, whole) => (whole > 0 && part !== null && part !== undefined ? part / whole : null);

/** The sums of one series over `from`..`to` (indices), as {name: sum}. */
export function summed(series, from = 0, to = Infinity) {
  return Object.fromEntries(Object.entries(series.figures).map(([name, values]) =>
    [name, values.slice(Math.max(0, from), to).reduce((sum, value) => sum + (value ?? 0), 0)]));
}

/** All series of an answer added up, as {name: sum}. */
export function totals(answer, from, to) {
  const all = {};
  for (const series of answer.series)
    for (const [name, value] of Object.entries(summed(series, from, to))) all[name] = (all[name] ?? 0) + value;
  return all;
}

/** Each point divided, both taken over the `width` newest points up to it, so that few rounds do not make a jagged line. */
export function line(part, whole, width = 1) {
  return whole.map((_, at) => {
    if (whole[at] === null || whole[at] === undefined) return null;
    let above = 0, below = 0;
    for (let back = Math.max(0, at - width + 1); back <= at; back++) { above += part?.[back] ?? 0; below += whole[back] ?? 0; }
    return divided(above, below);
  });
}
