import { plain, number, clamp } from "../_js/paint.js";
import { el, mount, fit, tooltip, pointerIn, onWidth, mirror, keyboard } from "../_js/dom.js";
import { CSS } from "../_js/style.js";

// B minus A: blue where A is larger, orange where B is larger, blank where they are equal.
const OWN = `
.map { position: relative; margin: 6px 0 8px; outline-offset: 2px } .legend { display: flex; gap: 6px; align-items: center; justify-content: center; font-size: 11px; color: var(--ink-2) } .legend canvas { border: 1px solid var(--line-2) }
.two { display: grid; grid-template-columns: 82px minmax(0,1fr) 42px; gap: 8px; align-items: center; min-height: 26px; font-size: 12px } .two i { display: block; height: 7px; border-radius: 2px; margin: 1px 0; min-width: 1px } .two .n { text-align: right; font-variant-numeric: tabular-nums }
bdi { unicode-bidi: isolate }
`;
const LISTED = 60, signed = x => `${x > 0 ? "+" : ""}${number(x)}`;

export function render({model, el: host}) {
  const {root, paint} = mount(model, host, CSS + OWN, () => draw());
  const tip = tooltip(root), note = el("span.r"), canvas = el("canvas", {role: "img"}), ramp = el("canvas"), low = el("span"), high = el("span"), lower = el("div");
  const map = el("div.map", {tabindex: 0, role: "group", "aria-label": "difference of two maps: rows attend to columns"}, canvas), legend = el("div.legend", null, low, ramp, high);
  const body = el("div.body", null, el("p.sect", {style: "padding-right:30px"}, "Difference B \u2212 A", note), map, legend, lower), card = el("section.card", {"data-picture": "difference", "data-figure": ""}, body);
  root.append(card);
  const table = mirror(card, "difference of two maps");
  let frame = {}, width = 0, cell = [1, 1], hover = null;
  const value = (q, k) => frame.delta[q * frame.shape[1] + k], label = (side, axis, i) => frame.labels[side][axis][i];
  const name = (axis, i) => label(0, axis, i) === label(1, axis, i) ? label(0, axis, i) : `${label(0, axis, i)} / ${label(1, axis, i)}`;
  const isShown = (q, k) => !frame.hidden[0][q] && !frame.hidden[1][k];

  function take() {
    frame = plain(model.frame);
    const shown = !!frame.delta;
    map.hidden = !shown; legend.style.display = shown ? "" : "none"; note.textContent = frame.title || "";
    if (!shown) { lower.replaceChildren(); return table.set(["Query", "Key", "Difference"], []); }
    const cells = [];
    for (let q = 0; q < frame.shape[0]; q++) for (let k = 0; k < frame.shape[1]; k++) if (isShown(q, k) && Math.abs(value(q, k)) >= .005) cells.push([q, k, value(q, k)]);
    cells.sort((a, b) => Math.abs(b[2]) - Math.abs(a[2]) || a[0] - b[0] || a[1] - b[1]);
    cells.length = Math.min(cells.length, LISTED);
    table.set(["Query", "Key", "Difference"], cells.map(([q, k, d]) => [name(0, q), name(1, k), signed(d)]), cells.map(([q, k, d]) => ({q, k, difference: d.toFixed(6)})));
    draw(); list();
  }
  function list() {
    const p = paint(), bar = (x, color) => el("i", {style: `width:${100 * clamp(x, 0, 1)}%;background:${color}`});
    lower.replaceChildren(...(frame.row === null || frame.row === undefined ? [el("hr"), el("p.dim.sm", null, "Pin a query token to compare its row.")] : [el("hr"), el("p.sect", null, "Row of ", el("bdi", null, name(0, Math.floor(frame.row / frame.block[0]))), el("span.r", null, "A, B")),
      ...frame.rows.map(r => el("div.two", {"data-key": r.key, "data-a": r.a.toFixed(6), "data-b": r.b.toFixed(6)}, el("bdi.ell", null, r.labels[0] === r.labels[1] ? r.labels[0] : r.labels.join(" / ")), el("div", null, bar(r.a, p.pos), bar(r.b, p.neg)), el("span.n", null, signed(r.b - r.a))))]));
  }
  function draw() {
    if (!width || !frame.delta) return;
    const p = paint(), [rows, columns] = frame.shape, w = Math.min(width, 420), h = clamp(w * rows / Math.max(1, columns), 40, 420), g = fit(canvas, w, h), most = frame.most || 1;
    cell = [w / Math.max(1, columns), h / Math.max(1, rows)];
    for (let q = 0; q < rows; q++) for (let k = 0; k < columns; k++) {
      const d = value(q, k);
      if (!isShown(q, k) || Math.abs(d) < .002) continue;
      g.fillStyle = p.signed(-Math.sign(d) * Math.sqrt(clamp(Math.abs(d) / most, 0, 1)));
      g.fillRect(k * cell[0], q * cell[1], Math.ceil(cell[0]), Math.ceil(cell[1]));
    }
    g.strokeStyle = p["line-2"]; g.lineWidth = 1; g.strokeRect(.5, .5, w - 1, h - 1);
    g.strokeStyle = p.accent; g.lineWidth = 1.5;
    if (frame.row !== null && frame.row !== undefined) g.strokeRect(0, Math.floor(frame.row / frame.block[0]) * cell[1], w, Math.max(1, cell[1]));
    if (hover) { g.strokeStyle = p.ink; g.strokeRect(hover[1] * cell[0], hover[0] * cell[1], cell[0], cell[1]); }
    const r = fit(ramp, 110, 8);
    for (let i = 0; i < 110; i++) { const x = i / 54.5 - 1; r.fillStyle = p.signed(-Math.sign(x) * Math.sqrt(Math.abs(x))); r.fillRect(i, 0, 1, 8); }
    low.textContent = `A +${number(most)}`; high.textContent = `B +${number(most)}`;
    canvas.setAttribute("aria-label", `difference of ${rows} by ${columns} weights, at most ${number(most, 3)}`);
  }
  const hit = event => { const [x, y] = pointerIn(event, canvas), q = Math.floor(y / cell[1]), k = Math.floor(x / cell[0]); return q >= 0 && k >= 0 && q < frame.shape[0] && k < frame.shape[1] ? [q, k] : null; };
  canvas.addEventListener("mousemove", event => {
    const position = frame.delta && hit(event);
    if (String(position) !== String(hover)) { hover = position; draw(); }
    if (!position) return tip.hide();
    tip.show(event, `${name(0, position[0])} \u2192 ${name(1, position[1])}`, [["B \u2212 A", signed(value(...position)), "", true]], "click pins the row");
  });
  canvas.addEventListener("mouseleave", () => { hover = null; tip.hide(); draw(); });
  canvas.addEventListener("click", event => { const position = frame.delta && hit(event); if (position) { const row = String(position[0] * frame.block[0]); model.pin = row === model.pin ? "" : row; } });
  keyboard(model, map, {n: () => table.toggle()});
  model.on("frame", take);
  model.on("remove", onWidth(map, w => { width = w; draw(); }));
  take();
}
