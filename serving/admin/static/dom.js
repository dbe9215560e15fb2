// Small helpers over the document. All text goes through textContent.

export const $ = (id) => document.getElementById(id);

/** Text that stays the same is left alone: a screen reader may read out what is set again. */
export function put(id, text, note) {
  if ($(id).textContent !== text) $(id).textContent = text;
  if (note !== undefined) put(`${id}-note`, note);
}

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "data") Object.assign(made.dataset, value);
    else if (key.includes("-") || key === "role" || key === "for") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

export function badge(target, text, mood) {
  target.textContent = text;
  target.className = `badge ${mood}`;
  target.hidden = false;
}

export const head = (text, title) => ({ text, title, heads: true });
export const number = (text, title) => ({ text, style: "number", title });

/** A table row: a cell is text, a node, or {text, style, title, heads}. */
export function row(...cells) {
  const tr = document.createElement("tr");
  for (const cell of cells) {
    const td = tr.appendChild(document.createElement(cell?.heads ? "th" : "td"));
    if (cell instanceof Node) td.append(cell);
    else if (cell !== null && typeof cell === "object") { td.textContent = cell.text; td.className = cell.style ?? ""; td.title = cell.title ?? ""; }
    else td.textContent = cell;
    if (cell?.heads) td.scope = "row";
  }
  return tr;
}

export function emptyRow(columns, text) {
  const tr = row({ text, style: "empty" });
  tr.cells[0].colSpan = columns;
  return tr;
}

/** What is under the pointer, selected or has the focus must survive an update: replace only what changed. */
export function replaceRows(body, rows) {
  const names = [...(body.closest("table.stacking")?.tHead.rows[0].cells ?? [])].map((cell) => cell.textContent);
  for (const one of rows) names.forEach((name, at) => { if (one.cells[at]?.textContent) one.cells[at].dataset.label = name; });
  const html = rows.map((one) => one.outerHTML).join("");
  if (body.dataset.shown === html) return;
  body.dataset.shown = html;
  body.replaceChildren(...rows);
}

/** Replace the pairs of a definition list. */
export function replaceTerms(list, figures) {
  list.replaceChildren(...Object.entries(figures).flatMap(([name, text]) =>
    [element("dt", { textContent: name }), element("dd", { textContent: text })]));
}
