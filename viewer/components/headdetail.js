import { plain, number, signedNumber, parsePin, clamp, SCALES } from "../_js/paint.js";
import { el, mount, fit, tooltip, pointerIn, onWidth, mirror, keyboard } from "../_js/dom.js";
import { CSS } from "../_js/style.js";
import { codeColours, mapImage, shownCells } from "../_js/maps.js";

const OWN = `
.map { position: relative; margin: 8px 0 10px; outline-offset: 2px } .facts { display: grid; grid-template-columns: 1fr auto; gap: 4px 8px; font-size: 12px; color: var(--ink-2) } .facts b { color: var(--ink); font-weight: 500; text-align: right; font-variant-numeric: tabular-nums }
.wl { display: grid; grid-template-columns: minmax(0, 1fr) 84px 36px; gap: 8px; align-items: center; min-height: 22px; font-size: 12px; width: 100%; border: 0; background: none; text-align: left; padding: 1px 0 } .wl:hover { background: var(--surface-2) }
.wl .n { text-align: right; font-variant-numeric: tabular-nums } bdi { unicode-bidi: isolate } .legend { display: flex; align-items: center; gap: 6px; font-size: 11px; color: var(--ink-2); margin-bottom: 8px } .legend canvas { border: 1px solid var(--line-2) }
`;

export function render({model, el: host}) {
  const {root, paint} = mount(model, host, CSS + OWN, () => draw());
  const tip = tooltip(root), title = el("h2", {style: "font-size:15px;font-weight:600"}), note = el("p.dim.sm", {hidden: true}), canvas = el("canvas", {role: "img"}), lower = el("div");
  const map = el("div.map", {tabindex: 0, role: "group", "aria-label": "map of one head: rows attend to columns"}, canvas), ramp = el("canvas"), top = el("span.num", {"data-high": ""});
  const body = el("div.body", null, title, note, map, el("div.legend", null, "0", ramp, top, el("span.grow"), el("span", null, "rows attend to columns")), lower), card = el("section.card", {"data-picture": "one head", "data-figure": ""}, body);
  root.append(card);
  const table = mirror(card, "map of one head");
  let frame = {}, width = 0, keep = {q: [], k: []}, size = 0, hover = null, high = 1, start = [0, 0];
  const value = (q, k) => frame.attention[q * frame.shape[1] + k];

  function take() {
    frame = plain(model.frame);
    const shown = !!frame.attention;
    map.hidden = !shown; body.querySelector(".legend").style.display = shown ? "" : "none";
    title.textContent = frame.head ? `Head ${frame.head}` : "";
    note.textContent = frame.note || ""; note.hidden = !frame.note; start = frame.start || [0, 0];
    if (!shown) { lower.replaceChildren(); return table.set(["Query", "Key", "Weight"], []); }
    facts(); draw();
  }
  function facts() {
    const name = label => el("bdi", null, label);
    lower.replaceChildren(el("div.facts", null, frame.facts.map(([label, x, unit]) => [el("span", null, label), el("b", {"data-fact": label, "data-value": x}, unit ? `${signedNumber(x, 2)} ${unit}` : number(x))])), el("hr"),
      el("p.sect", null, "Strongest edges here"), ...frame.edges.map(e => el("button.wl", {"data-query": e.query, "data-key": e.key, "data-weight": e.weight.toFixed(6), onclick: () => { model.pin = `q${e.query}`; }},
        el("span.ell", null, name(e.labels[0]), " \u2192 ", name(e.labels[1])), el("div.bar", null, el("i", {style: `width:${clamp(e.weight, 0, 1) * 100}%`})), el("span.n", null, number(e.weight)))),
      ...(frame.alone ? [] : [el("hr"), el("div.row", null, el("button.btn.primary", {onclick: () => model.send_msg({go: "head"})}, "Head view"), el("button.btn", {onclick: () => model.send_msg({go: "neuron"})}, "Neuron view"))]));
    table.set(["Query", "Key", "Weight"], frame.edges.map(e => [...e.labels, number(e.weight, 3)]), frame.edges.map(e => ({query: e.query, key: e.key, weight: e.weight.toFixed(6)})));
  }
  function draw() {
    if (!width || !frame.attention) return;
    const p = paint(), [rows, cols] = frame.shape;
    keep = {q: shownCells(frame.special[0], rows, rows, model.hide_special), k: shownCells(frame.special[1], cols, cols, model.hide_special)};
    size = Math.min(width, 420);
    const height = clamp(size * keep.q.length / Math.max(1, keep.k.length), 40, 480), g = fit(canvas, size, height), scale = SCALES[model.scale];
    high = model.hide_special ? Math.max(1e-3, ...keep.q.map(q => keep.k.reduce((most, k) => Math.max(most, value(q, k)), 0))) : 1; top.textContent = number(high);
    const colours = codeColours(p, w => scale(clamp(w / high, 0, 1))), image = mapImage((q, k) => clamp(Math.floor(Math.sqrt(value(q, k)) * 255 + .5), 0, 255), rows, cols, colours,
      {keepRows: keep.q, keepColumns: keep.k, causal: frame.causal, empty: grey(p["surface-2"])});
    g.imageSmoothingEnabled = image.width > size * devicePixelRatio;
    g.drawImage(image, 0, 0, size, height);
    g.strokeStyle = p["line-2"]; g.lineWidth = 1; g.strokeRect(.5, .5, size - 1, height - 1);
    map.size = {w: size / keep.k.length, h: height / keep.q.length};
    const pin = parsePin(model.pin), line = pin && keep[pin.side].indexOf(pin.index - start[pin.side === "q" ? 0 : 1]);
    g.strokeStyle = p.accent; g.lineWidth = 1.5;
    if (pin && line >= 0) pin.side === "q" ? g.strokeRect(0, line * map.size.h, size, map.size.h) : g.strokeRect(line * map.size.w, 0, map.size.w, height);
    if (hover) { g.strokeStyle = p.ink; g.strokeRect(keep.k.indexOf(hover[1]) * map.size.w, keep.q.indexOf(hover[0]) * map.size.h, map.size.w, map.size.h); }
    canvas.setAttribute("aria-label", `attention of head ${frame.head}`);
    const r = fit(ramp, 120, 8);
    for (let i = 0; i < 120; i++) { r.fillStyle = p.seq(scale(i / 119)); r.fillRect(i, 0, 1, 8); }
  }
  const grey = hex => { const [r, g, b] = [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16)); return (255 << 24 | b << 16 | g << 8 | r) >>> 0; };
  const hit = event => { const [x, y] = pointerIn(event, canvas), q = keep.q[Math.floor(y / map.size.h)], k = keep.k[Math.floor(x / map.size.w)]; return q === undefined || k === undefined ? null : [q, k]; };
  canvas.addEventListener("mousemove", event => {
    const position = map.size && hit(event);
    if (String(position) !== String(hover)) { hover = position; draw(); }
    if (!position) return tip.hide();
    tip.show(event, `${frame.labels[0][position[0]]} \u2192 ${frame.labels[1][position[1]]}`, [["Weight", number(value(...position), 3), "", true], ["Query", String(position[0] + start[0])], ["Key", String(position[1] + start[1])]], "click pins the row");
  });
  canvas.addEventListener("mouseleave", () => { hover = null; tip.hide(); draw(); });
  canvas.addEventListener("click", event => { const position = map.size && hit(event); if (position) { const pin = `q${position[0] + start[0]}`; model.pin = model.pin === pin ? "" : pin; } });
  keyboard(model, map, {n: () => table.toggle(), Escape: () => { if (model.pin) model.pin = ""; }});
  take();
  model.on("frame", take);
  model.on(["pin", "hide_special", "scale"], draw);
  model.on("remove", onWidth(map, w => { width = w; draw(); }));
}
