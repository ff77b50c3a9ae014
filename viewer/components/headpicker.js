import { plain, parseHeads, number, clamp, gridNames } from "../_js/paint.js";
import { el, mount, fit, write, tooltip, pointerIn, onWidth, onceAFrame, mirror, keyboard } from "../_js/dom.js";
import { CSS } from "../_js/style.js";

const OWN = `
.grid { position: relative; outline-offset: 3px } .chips { display: flex; flex-wrap: wrap; gap: 5px; margin-top: 9px; align-items: center; max-height: 136px; overflow: hidden auto }
.between { margin-top: 8px } .between select { height: 24px; border: 1px solid var(--line-2); border-radius: 6px; background: var(--surface) }
.heads-of { padding-right: 30px } .sect + canvas { margin-top: 2px } .facts p { font-size: 12px; color: var(--ink-2); overflow-wrap: anywhere; white-space: pre-line }
`;

export function render({model, el: host}) {
  const {root, paint} = mount(model, host, CSS + OWN, () => draw());
  const tip = tooltip(root), scaleEnd = el("div.xs.dim.num", {"data-scale": ""}), canvas = el("canvas", {role: "img"}), chips = el("div.chips"), facts = el("div.facts");
  const grid = el("div.grid", {tabindex: 0, role: "group", "aria-label": "heads: rows are layers, columns are heads"}, canvas);
  const lines = el("div"), body = el("div.body", null, el("p.sect.heads-of", null, "Heads"), grid, scaleEnd, chips, lines, facts), card = el("section.card", {"data-picture": "heads", "data-figure": ""}, body);
  root.append(card);
  const table = mirror(card, "weight of each head");
  let frame = {}, shape = [0, 0], names = gridNames({shape}), geometry = null, hover = null, width = 0;
  const selected = () => parseHeads(model.selected), value = (l, h) => frame.values[l * shape[1] + h];

  function take() {
    frame = plain(model.frame);
    shape = frame.shape || [0, 0]; names = gridNames({...frame, shape});
    draw();
    const rows = [], attributes = [];
    for (let l = 0; l < shape[0]; l++) for (let h = 0; h < shape[1]; h++) { rows.push([names.name(l, h), number(value(l, h), 3)]); attributes.push({head: names.name(l, h), value: value(l, h).toFixed(6)}); }
    table.set(["Head", "Weight"], rows, attributes);
  }
  function draw() {
    const [layers, heads] = shape;
    if (!width || !layers) return;
    const high = frame.values.reduce((most, v) => Math.max(most, v), 0) || 1, p = paint(), margin = layers > 100 ? 24 : 18, top = 14, cell = clamp(Math.min(Math.floor((width - margin) / heads), Math.floor(360 / layers)), 2, 18), gap = cell >= 12 ? 1.5 : cell >= 6 ? 1 : 0;
    geometry = {margin, top, cell};
    const g = fit(canvas, width, top + cell * layers + 3), every = cell >= 14 ? 1 : cell >= 8 ? 4 : 8, round = cell > 9 ? 2 : 0, size = cell - gap;
    for (let h = 0; h < heads; h += every) write(g, names.columns[h], margin + h * cell + size / 2, top - 7, {align: "center", color: p["ink-3"], size: 10});
    for (let l = 0; l < layers; l += every) write(g, names.rows[l], margin - 5, top + l * cell + size / 2, {align: "right", color: p["ink-3"], size: 10});
    for (let l = 0; l < layers; l++) for (let h = 0; h < heads; h++) {
      const x = margin + h * cell, y = top + l * cell, v = value(l, h);
      g.fillStyle = p.seq(Math.sqrt(clamp(v / high, 0, 1)));
      g.beginPath(); g.roundRect(x, y, size, size, round); g.fill();
      if (v < .02 * high && gap) { g.strokeStyle = p.line; g.lineWidth = 1; g.beginPath(); g.roundRect(x + .5, y + .5, size - 1, size - 1, round); g.stroke(); }
    }
    scaleEnd.replaceChildren(el("bdi", null, frame.title || "weight"), `: 0 to ${number(high)}`);
    const ring = (name, color, outer) => {
      const [l, h] = names.cell(name), x = margin + h * cell, y = top + l * cell;
      if (l < 0 || h < 0) return;
      for (const [c, grow, w] of [[p.surface, 1.5, 2], [color, outer, 2]]) { g.strokeStyle = c; g.lineWidth = w; g.beginPath(); g.roundRect(x - grow, y - grow, size + 2 * grow, size + 2 * grow, 3); g.stroke(); }
    };
    for (const [name, {star}] of Object.entries(frame.bookmarks || {})) {
      const [l, h] = names.cell(name);
      if (l < 0 || h < 0) continue;
      g.fillStyle = star ? p.warn : p["ink-3"]; g.beginPath(); g.arc(margin + h * cell + size - 2, top + l * cell + 2, 2, 0, 7); g.fill();
    }
    selected().forEach((name, i) => ring(name, p.head(i), .25));
    if (hover) ring(hover, p["ink-2"], .75);
    canvas.setAttribute("aria-label", `${layers} layers of ${heads} heads, shown ${model.selected}`);
    Object.assign(canvas.dataset, {layers, left: margin, top, cell});
    drawChips();
  }
  function drawChips() {
    const p = paint(), heads = selected();
    chips.replaceChildren(...heads.map((name, i) => el("button.hchip", {"data-head": name, title: heads.length > 1 ? "click to remove \u00B7 double click to keep only this head" : "the only head",
      onclick: event => { if (heads.length > 1) once(event, () => set(heads.filter(n => n !== name))); }, ondblclick: () => { clearTimeout(waiting); set([name]); }}, el("i", {style: `background:${p.head(i)}`}), name)),
      model.single ? "" : el("button.btn.quiet", {onclick: () => allOfLayer()}, "all of layer"));
  }
  // A click on a chip removes it, so a double click would have no target: wait for a second click first
  let waiting = 0;
  const once = (event, act) => { clearTimeout(waiting); if (event.detail) waiting = setTimeout(act, 220); else act(); };
  const set = heads => { model.selected = [...new Set(heads)].join(","); };
  const allOfLayer = (row = Math.max(0, names.cell(selected()[0] || names.name(0, 0))[0])) => set(names.columns.map((_, h) => names.name(row, h)));
  function choose(name, add) {
    const heads = selected();
    if (!add || model.single) return set([name]);
    set(heads.includes(name) ? (heads.length > 1 ? heads.filter(n => n !== name) : heads) : [...heads, name]);
  }
  function hit(event) {
    const [x, y] = pointerIn(event, canvas), h = Math.floor((x - geometry.margin) / geometry.cell), l = Math.floor((y - geometry.top) / geometry.cell);
    return l >= 0 && h >= 0 && l < shape[0] && h < shape[1] ? [l, h] : null;
  }
  // Layer whose number is under the pointer, or null; a click there selects all heads of the layer
  function layerAt(event) {
    const [x, y] = pointerIn(event, canvas), l = Math.floor((y - geometry.top) / geometry.cell);
    return !model.single && x < geometry.margin && l >= 0 && l < shape[0] ? l : null;
  }
  canvas.addEventListener("mousemove", event => {
    const cell = geometry && hit(event), name = cell && names.name(...cell), row = geometry && layerAt(event);
    canvas.style.cursor = cell || row !== null ? "pointer" : "default";
    if (name !== hover) { hover = name; draw(); }
    if (row !== null) return tip.show(event, `Layer ${names.rows[row]}`, [], "click to show all its heads");
    if (!cell) return tip.hide();
    tip.show(event, `Head ${name}`, [[frame.title || "weight", number(value(...cell), 3), "", true], ...(frame.bookmarks?.[name] ? [[`${frame.bookmarks[name].star ? "\u2605 " : ""}${frame.bookmarks[name].note.slice(0, 120)}`, ""]] : [])], model.single ? "click to show" : "click to show \u00B7 Shift click to add");
  });
  canvas.addEventListener("mouseleave", () => { hover = null; tip.hide(); draw(); });
  canvas.addEventListener("click", event => { const cell = geometry && hit(event); if (cell) return choose(names.name(...cell), event.shiftKey); const row = geometry && layerAt(event); if (row !== null) allOfLayer(row); });
  const move = (dl, dh) => () => {
    const [l, h] = names.cell(selected()[0] || "");
    set([names.name(clamp(l + dl, 0, shape[0] - 1), clamp(h + dh, 0, shape[1] - 1))]);
  };
  keyboard(model, grid, {ArrowUp: move(-1, 0), ArrowDown: move(1, 0), ArrowLeft: move(0, -1), ArrowRight: move(0, 1), n: () => table.toggle()});

  function slider(name, text, min, max, step, read, shown, take) {
    const output = el("output"), input = el("input", {type: "range", min, max, step, "aria-label": text, "data-control": name});
    const send = onceAFrame(() => { model[name] = take(+input.value); });
    const show = v => { output.textContent = shown(v); input.style.setProperty("--p", `${(v - min) / (max - min) * 100}%`); };
    input.addEventListener("input", () => { show(+input.value); send(); });
    const refresh = () => { const v = read(model[name]); if (+input.value !== v || !output.textContent) { input.value = v; show(v); } };
    refresh();
    model.on(name, refresh);
    return el("div.fld", null, el("span", null, text), output, input);
  }
  function controls() {
    const box = el("input", {type: "checkbox", checked: model.hide_special, "data-control": "hide_special"});
    box.addEventListener("change", () => { model.hide_special = box.checked; });
    model.on("hide_special", () => { box.checked = model.hide_special; });
    // check box for a field with two values
    const check = (name, on, off, text) => {
      const node = el("input", {type: "checkbox", "data-control": name}), refresh = () => { node.checked = model[name] === on; };
      node.addEventListener("change", () => { model[name] = node.checked ? on : off; });
      model.on(name, refresh); refresh();
      return el("label.ck", null, node, text);
    };
    const unit = el("div.seg", {role: "group", "aria-label": "unit"}), between = el("label.fld.between", null, "From \u2192 to");
    const units = () => unit.replaceChildren(...["token", "word", "sentence"].map(name => el("button", {"aria-pressed": String(model.unit === name), "data-unit": name, onclick: () => { model.unit = name; }}, `${name[0].toUpperCase()}${name.slice(1)}s`)));
    const ways = el("select", {"data-control": "segments", "aria-label": "from \u2192 to"}, [["all", "all"], ...["aa", "ab", "ba", "bb"].map(way => [way, way.toUpperCase().split("").join(" \u2192 ")])].map(([value, text]) => el("option", {value}, text)));
    ways.addEventListener("change", () => { model.segments = ways.value; });
    const pair = () => { between.style.display = model.pairs ? "" : "none"; ways.value = model.segments; };
    between.append(ways); units(); pair();
    model.on("unit", units); model.on(["segments", "pairs"], pair);
    const hides = el("span"), hidesText = () => { hides.textContent = model.hides_first ? "hide first token and special tokens" : "hide special tokens"; };
    model.on("hides_first", hidesText); hidesText();
    const renormalise = check("weights", "renormalised", "stored", "renormalise rows over what is shown"), input = renormalise.firstChild, enable = () => { input.disabled = !model.hide_special; renormalise.classList.toggle("dim", input.disabled); };
    model.on("hide_special", enable); enable();
    lines.replaceChildren(...(model.specials ? [el("hr"), el("p.sect", null, "Show"), el("label.ck", null, box, hides), model.alone ? "" : renormalise] : []),
      ...(model.lines ? [el("hr"), el("p.sect", null, "Lines"),
      slider("share", "Share of each row", 10, 100, 5, v => Math.round(v * 100), v => `${v} %`, v => v / 100),
      slider("keys", "Keys per row", 1, 64, 1, v => v, v => `at most ${v}`, v => v)] : []),
      ...(model.choices ? [el("hr"), unit, between, check("layout", "rows", "columns", "rows as columns (wide scripts)")] : []));
  }
  function drawFacts() {
    facts.replaceChildren(...plain(model.facts).flatMap(([heading, text]) => [el("hr"), el("p.sect", null, heading), el("p", null, text)]));
  }
  controls(); drawFacts(); take();
  model.on("frame", take);
  model.on("selected", draw);
  model.on("facts", drawFacts);
  model.on("remove", onWidth(grid, w => { width = w; draw(); }));
}
