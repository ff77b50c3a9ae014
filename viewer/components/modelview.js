import { plain, number, count, clamp, SCALES, parseHeads, gridNames } from "../_js/paint.js";
import { el, mount, fit, write, tooltip, pointerIn, onWidth, mirror, keyboard } from "../_js/dom.js";
import { CSS } from "../_js/style.js";
import { codeColours, mapStrip, shownCells, WEIGHT } from "../_js/maps.js";

const ORDERS = [["layer", "by layer"], ["weight", "by weight"], ["search", "by search"]], STRIP = 14;
const OWN = `.order { flex: none } .order button { padding: 0 9px; height: 22px; flex: none } .order button:disabled { color: var(--ink-3); opacity: .6; cursor: default } .body.flush { padding: 4px 8px 8px } .plot { position: relative; outline-offset: -2px } .stack { position: absolute; left: 0; top: 0; pointer-events: none }`;

export function render({model, el: host}) {
  const {root, paint} = mount(model, host, CSS + OWN, () => redraw());
  const tip = tooltip(root), counts = el("span.count.num"), sub = el("span.sub.ell"), order = el("div.seg.order", {role: "group", "aria-label": "order of the heads"}), canvas = el("canvas", {role: "img"}), over = el("canvas.stack");
  const plot = el("div.plot", {tabindex: 0, role: "group", "aria-label": "model view: one map a head, rows are layers, columns are heads"}, canvas, over);
  const body = el("div.body.flush", null, plot), card = el("section.card", {"data-picture": "model view", "data-figure": ""}, el("header", null, el("h2", null, "Model view"), sub, counts, order), body);
  root.append(card);
  const table = mirror(card, "strongest cell of each head");
  let frame = {}, ranks = null, names = null, tokens = {}, width = 0, geometry = null, hover = null, strongest = [], high = 1, keep = {q: [], k: []};

  let lastInputs = [];
  function take() {
    if (model.frame === lastInputs[0] && model.tokens === lastInputs[1]) return;   // frame and tokens came in one message
    lastInputs = [model.frame, model.tokens];
    frame = plain(model.frame);
    const sides = plain(model.tokens);
    if (frame.message || !frame.codes) return message();
    if (sides.id !== frame.id || !sides.query) return;
    tokens = {q: sides.query, k: sides.key || sides.query}; names = gridNames(frame);
    body.querySelector(".message")?.remove(); plot.hidden = false;
    arrange(); measure(); redraw();
  }
  // Order by score, if there are scores: `ranks.heads` lists cells, `ranks.position` is the rank of each cell from 0
  function arrange() {
    const {scores, title} = plain(model.ranking || {}), ranked = !model.alone && model.arrange !== "layer" && scores && frame.shape && scores.length === frame.shape[0] * frame.shape[1];
    ranks = null;
    if (ranked) {
      const heads = Array.from(scores.keys()).sort((a, b) => (scores[b] || 0) - (scores[a] || 0) || a - b), position = new Int32Array(heads.length);
      heads.forEach((cell, i) => { position[cell] = i; });
      ranks = {heads, position, scores, title};
    }
    sub.textContent = ranks ? `ordered by ${ranks.title}` : "row = layer, column = head";
    order.style.display = model.alone ? "none" : "";
    order.replaceChildren(...ORDERS.map(([value, text]) => el("button", {"aria-pressed": String(model.arrange === value), "data-arrange": value, disabled: value === "search" && !model.searched, title: value === "search" && !model.searched ? "search for a pattern first" : null, onclick: () => { model.arrange = value; }}, text)));
  }
  function message() {
    plot.hidden = true; counts.textContent = ""; body.querySelector(".message")?.remove();
    if (frame.message) body.append(el("div.message", null, el("b", null, frame.message.title), frame.message.text));
    table.set(["Head", "Query", "Key", "Weight"], []);
  }
  // range of tokens that a cell covers, as text
  const span = (side, i) => {
    const cells = frame.shape[side === "q" ? 2 : 3], n = side === "q" ? frame.n_queries : frame.n_keys, from = Math.floor(i * n / cells), to = Math.max(from + 1, Math.floor((i + 1) * n / cells));
    const start = side === "q" && frame.query_start || 0;
    return to - from > 1 ? `${from + start}\u2013${to - 1 + start}` : tokens[side].labels[from] ?? "";
  };
  function measure() {
    const [layers, heads, rows, cols] = frame.shape;
    keep = {q: shownCells(tokens.q.special, rows, frame.n_queries, model.hide_special), k: shownCells(tokens.k.special, cols, frame.n_keys, model.hide_special)};
    strongest = [];
    for (let l = 0; l < layers; l++) for (let h = 0; h < heads; h++) {
      let best = -1, q = -1, k = -1;
      for (const r of keep.q) {
        const from = ((l * heads + h) * rows + r) * cols;
        for (const c of keep.k) { const v = frame.codes[from + c]; if (v > best) { best = v; q = r; k = c; } }
      }
      strongest.push({name: names.name(l, h), q, k, weight: best < 0 ? 0 : WEIGHT[best]});
    }
    high = model.hide_special ? strongest.reduce((most, s) => Math.max(most, s.weight), 0) || 1 : 1;
    counts.dataset.high = high.toFixed(6);
    counts.textContent = `${count(layers * heads)} heads \u00B7 rows attend to columns${high < .995 ? ` \u00B7 darkest ${number(high)}` : ""}${rows < frame.n_queries || cols < frame.n_keys ? ` \u00B7 each pixel the strongest of ${Math.ceil(frame.n_queries / rows)} \u00D7 ${Math.ceil(frame.n_keys / cols)}` : ""}${frame.note ? ` \u00B7 ${frame.note}` : ""}`;
    counts.title = frame.note || "";
    list();
  }
  function list() {
    const ranking = ranks ? ranks.heads.map(cell => [strongest[cell], ranks.scores[cell]]) : strongest.map(s => [s, null]);
    table.set(["Head", "Query", "Key", "Weight", ...(ranks ? ["Score"] : [])], ranking.map(([s, score]) => [s.name, s.q < 0 ? "" : span("q", s.q), s.k < 0 ? "" : span("k", s.k), number(s.weight, 3), ...(ranks ? [number(score, 3)] : [])]),
      ranking.map(([s, score]) => ({head: s.name, q: s.q, k: s.k, weight: s.weight.toFixed(6), ...(ranks ? {score: score.toFixed(6)} : {})})));
  }
  function redraw() {
    if (!width || !tokens.q) return;
    const [layers, heads] = frame.shape, p = paint(), left = ranks ? 4 : 24, top = ranks ? 4 : 22, strip = ranks ? STRIP : 0, room = Math.max(240, body.clientHeight - 14);
    const gap = heads > 48 ? 1 : heads > 16 || layers > 16 ? 3 : 5;
    const w = clamp((width - left - 4) / heads - gap, 4, 320), h = clamp((room - top) / layers - gap - strip, Math.min(w, 30), w * 1.1);
    geometry = {left, top, w, h, gap, strip};
    const height = top + layers * (h + gap + strip), g = fit(canvas, width, height);
    const colours = codeColours(p, w => SCALES[model.scale](clamp(w / high, 0, 1))), every = w >= 18 ? 1 : 4;
    plot.style.height = `${height}px`;
    const across = keep.k.length, down = keep.q.length, cells = frame.shape[2] * frame.shape[3];
    g.imageSmoothingEnabled = across > w * devicePixelRatio;
    if (!ranks) for (let j = 0; j < heads; j += every) write(g, names.columns[j], left + j * (w + gap) + w / 2, 10, {align: "center", color: p["ink-3"]});
    for (let l = 0; l < layers; l++) {
      if (!ranks) write(g, names.rows[l], left - 8, top + l * (h + gap) + h / 2, {align: "right", color: p["ink-3"]});
      const maps = mapStrip(frame.codes, l * heads * cells, heads, frame.shape[2], frame.shape[3], colours, keep.q, keep.k);
      for (let j = 0; j < heads; j++) {
        const {x, y} = corner(l, j);
        if (across && down) g.drawImage(maps, j * across, 0, across, down, x, y, Math.round(w), Math.round(h));
        g.strokeStyle = p.line; g.lineWidth = 1; g.strokeRect(x - .5, y - .5, Math.round(w) + 1, Math.round(h) + 1);
        if (!ranks || w < 24) continue;
        write(g, names.name(l, j), x + 1, y - 7, {color: p["ink-2"], weight: 600, size: 10});
        if (w >= 50) write(g, number(ranks.scores[l * heads + j]), x + w, y - 7, {color: p["ink-3"], size: 10, align: "right"});
      }
    }
    canvas.setAttribute("aria-label", `${layers} layers of ${heads} heads`);
    canvas.dataset.maps = frame.id;
    mark();
  }
  // top left corner of a head's map: by layer, or by rank with the same number of maps per row
  function corner(l, j) {
    const {left, top, w, h, gap, strip} = geometry, heads = frame.shape[1], cell = l * heads + j, position = ranks ? ranks.position[cell] : cell;
    return {x: Math.round(left + position % heads * (w + gap)), y: Math.round(top + strip + Math.floor(position / heads) * (h + gap + strip))};
  }
  // Rings of the selected heads, on a canvas over the maps, so that a new selection repaints no map
  function mark() {
    if (!geometry) return;
    const p = paint(), {top, w, h, gap, strip} = geometry, g = fit(over, width, top + frame.shape[0] * (h + gap + strip) + 2);
    const ring = (name, color, thick) => {
      const [l, j] = names.cell(name);
      if (l < 0 || j < 0) return;
      const {x, y} = corner(l, j);
      g.strokeStyle = color; g.lineWidth = thick; g.strokeRect(x - 1.5, y - 1.5, Math.round(w) + 3, Math.round(h) + 3);
    };
    parseHeads(model.selected).forEach((name, i) => ring(name, p.head(i), 2.5));
    if (model.enlarged) ring(model.enlarged, p.ink, parseHeads(model.selected).includes(model.enlarged) ? 1 : 2.5);
    if (hover) ring(hover, p["ink-2"], 1.5);
  }
  function hit(event) {
    const [x, y] = pointerIn(event, plot), {left, top, w, h, gap, strip} = geometry, [layers, heads] = frame.shape, column = Math.floor((x - left) / (w + gap)), row = Math.floor((y - top) / (h + gap + strip));
    if (row < 0 || column < 0 || row >= layers || column >= heads) return null;
    const cell = ranks ? ranks.heads[row * heads + column] : row * heads + column;
    return names.name(Math.floor(cell / heads), cell % heads);
  }
  plot.addEventListener("mousemove", event => {
    if (!geometry) return;
    const name = hit(event);
    plot.style.cursor = name ? "pointer" : "default";
    if (name !== hover) { hover = name; mark(); }
    if (!name) return tip.hide();
    const [l, j] = names.cell(name), s = strongest[l * frame.shape[1] + j];
    tip.show(event, `Head ${name}`, s.q < 0 ? [] : [...(ranks ? [[ranks.title, number(ranks.scores[l * frame.shape[1] + j], 3), `#${ranks.position[l * frame.shape[1] + j] + 1}`, true]] : []), ["Strongest", number(s.weight, 3), "", true], ["from", span("q", s.q)], ["to", span("k", s.k)]], "click to enlarge \u00B7 Shift click adds it to the head view");
  });
  plot.addEventListener("mouseleave", () => { hover = null; tip.hide(); mark(); });
  plot.addEventListener("click", event => {
    const name = geometry && hit(event);
    if (!name) return;
    if (!event.shiftKey) return void (model.enlarged = name);
    const heads = parseHeads(model.selected);
    model.selected = (heads.includes(name) ? heads.filter(n => n !== name) : [...heads, name]).join(",");
  });
  const move = (dl, dj) => () => {
    if (!names) return;
    const [l, j] = names.cell(model.enlarged), [layers, heads] = frame.shape;
    if (!ranks) return void (model.enlarged = names.name(clamp(l + dl, 0, layers - 1), clamp(j + dj, 0, heads - 1)));
    const cell = ranks.heads[clamp(ranks.position[l * heads + j] + dl * heads + dj, 0, layers * heads - 1)];
    model.enlarged = names.name(Math.floor(cell / heads), cell % heads);
  };
  keyboard(model, plot, {ArrowUp: move(-1, 0), ArrowDown: move(1, 0), ArrowLeft: move(0, -1), ArrowRight: move(0, 1), n: () => table.toggle()});

  take();
  model.on(["frame", "tokens"], take);
  model.on(["enlarged", "selected"], mark);
  model.on("hide_special", () => { if (tokens.q) { measure(); redraw(); } });
  model.on(["arrange", "ranking", "searched"], () => { arrange(); if (tokens.q && strongest.length) { list(); redraw(); } });
  model.on("scale", redraw);
  model.on("remove", onWidth(body, w => { width = w - 16; redraw(); }));
}
