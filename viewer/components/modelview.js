import { plain, number, count, clamp, SCALES, parseHeads, gridNames } from "../_js/paint.js";
import { el, mount, fit, write, tooltip, at, onWidth, mirror, keyboard } from "../_js/dom.js";
import { CSS } from "../_js/style.js";
import { codeColours, mapStrip, kept, WEIGHT } from "../_js/maps.js";

const OWN = `.body.flush { padding: 4px 8px 8px } .plot { position: relative; outline-offset: -2px } .stack { position: absolute; left: 0; top: 0; pointer-events: none }`;

export function render({model, el: host}) {
  const {root, paint} = mount(model, host, CSS + OWN, () => redraw());
  const tip = tooltip(root), counts = el("span.count.num"), canvas = el("canvas", {role: "img"}), over = el("canvas.stack");
  const plot = el("div.plot", {tabindex: 0, role: "group", "aria-label": "model view: one map a head, rows are layers, columns are heads"}, canvas, over);
  const body = el("div.body.flush", null, plot), card = el("section.card", {"data-picture": "model view"}, el("header", null, el("h2", null, "Model view"), el("span.sub", null, "row = layer, column = head"), counts), body);
  root.append(card);
  const table = mirror(card, "strongest cell of each head");
  let frame = {}, names = null, tokens = {}, width = 0, geometry = null, hover = null, strongest = [], keep = {q: [], k: []};

  let taken = [];
  function take() {
    if (model.frame === taken[0] && model.tokens === taken[1]) return;   // both came in one message
    taken = [model.frame, model.tokens];
    frame = plain(model.frame);
    const given = plain(model.tokens);
    if (frame.message || !frame.codes) return message();
    if (given.id !== frame.id || !given.query) return;
    tokens = {q: given.query, k: given.key || given.query}; names = gridNames(frame);
    body.querySelector(".message")?.remove(); plot.hidden = false;
    measure(); redraw();
  }
  function message() {
    plot.hidden = true; counts.textContent = ""; body.querySelector(".message")?.remove();
    if (frame.message) body.append(el("div.message", null, el("b", null, frame.message.title), frame.message.text));
    table.set(["Head", "Query", "Key", "Weight"], []);
  }
  // token range that a cell stands for, as text
  const span = (side, i) => {
    const cells = frame.shape[side === "q" ? 2 : 3], n = side === "q" ? frame.n_queries : frame.n_keys, from = Math.floor(i * n / cells), to = Math.max(from + 1, Math.floor((i + 1) * n / cells));
    return to - from > 1 ? `${from}\u2013${to - 1}` : tokens[side].labels[from] ?? "";
  };
  function measure() {
    const [layers, heads, rows, cols] = frame.shape;
    keep = {q: kept(tokens.q.special, rows, frame.n_queries, model.hide_special), k: kept(tokens.k.special, cols, frame.n_keys, model.hide_special)};
    strongest = [];
    for (let l = 0; l < layers; l++) for (let h = 0; h < heads; h++) {
      let best = -1, q = -1, k = -1;
      for (const r of keep.q) {
        const from = ((l * heads + h) * rows + r) * cols;
        for (const c of keep.k) { const v = frame.codes[from + c]; if (v > best) { best = v; q = r; k = c; } }
      }
      strongest.push({name: names.name(l, h), q, k, weight: best < 0 ? 0 : WEIGHT[best]});
    }
    counts.textContent = `${count(layers * heads)} heads \u00B7 rows attend to columns${rows < frame.n_queries || cols < frame.n_keys ? ` \u00B7 each pixel the strongest of ${Math.ceil(frame.n_queries / rows)} \u00D7 ${Math.ceil(frame.n_keys / cols)}` : ""}`;
    table.set(["Head", "Query", "Key", "Weight"], strongest.map(s => [s.name, s.q < 0 ? "" : span("q", s.q), s.k < 0 ? "" : span("k", s.k), number(s.weight, 3)]),
      strongest.map(s => ({head: s.name, q: s.q, k: s.k, weight: s.weight.toFixed(6)})));
  }
  function redraw() {
    if (!width || !tokens.q) return;
    const [layers, heads] = frame.shape, p = paint(), left = 24, top = 22, room = Math.max(240, body.clientHeight - 14);
    const gap = heads > 16 || layers > 16 ? 3 : 5;
    const w = clamp((width - left - 4) / heads - gap, 8, 150), h = clamp((room - top) / layers - gap, Math.min(w, 30), Math.min(w * 1.1, 150));
    geometry = {left, top, w, h, gap};
    const height = top + layers * (h + gap), g = fit(canvas, width, height);
    const colours = codeColours(p, SCALES[model.scale]), every = w >= 18 ? 1 : 4;
    plot.style.height = `${height}px`;
    const across = keep.k.length, down = keep.q.length;
    g.imageSmoothingEnabled = across > w * devicePixelRatio;
    for (let j = 0; j < heads; j += every) write(g, names.columns[j], left + j * (w + gap) + w / 2, 10, {align: "center", color: p["ink-3"]});
    for (let l = 0; l < layers; l++) {
      write(g, names.rows[l], left - 8, top + l * (h + gap) + h / 2, {align: "right", color: p["ink-3"]});
      const strip = mapStrip(frame.codes, l * heads * frame.shape[2] * frame.shape[3], heads, frame.shape[2], frame.shape[3], colours, keep.q, keep.k);
      for (let j = 0; j < heads; j++) {
        const x = Math.round(left + j * (w + gap)), y = Math.round(top + l * (h + gap));
        if (across && down) g.drawImage(strip, j * across, 0, across, down, x, y, Math.round(w), Math.round(h));
        g.strokeStyle = p.line; g.lineWidth = 1; g.strokeRect(x - .5, y - .5, Math.round(w) + 1, Math.round(h) + 1);
      }
    }
    canvas.setAttribute("aria-label", `${layers} layers of ${heads} heads`);
    canvas.dataset.maps = frame.id;
    mark();
  }
  // rings of the chosen heads, over the maps, so that choosing repaints no map
  function mark() {
    if (!geometry) return;
    const p = paint(), {left, top, w, h, gap} = geometry, g = fit(over, width, top + frame.shape[0] * (h + gap) + 2);
    const ring = (name, color, thick) => {
      const [l, j] = names.cell(name);
      if (l < 0 || j < 0) return;
      const x = Math.round(left + j * (w + gap)), y = Math.round(top + l * (h + gap));
      g.strokeStyle = color; g.lineWidth = thick; g.strokeRect(x - 1.5, y - 1.5, Math.round(w) + 3, Math.round(h) + 3);
    };
    parseHeads(model.selected).forEach((name, i) => ring(name, p.head(i), 2.5));
    if (model.enlarged) ring(model.enlarged, p.ink, parseHeads(model.selected).includes(model.enlarged) ? 1 : 2.5);
    if (hover) ring(hover, p["ink-2"], 1.5);
  }
  function hit(event) {
    const [x, y] = at(event, plot), {left, top, w, h, gap} = geometry, j = Math.floor((x - left) / (w + gap)), l = Math.floor((y - top) / (h + gap));
    return l >= 0 && j >= 0 && l < frame.shape[0] && j < frame.shape[1] ? names.name(l, j) : null;
  }
  plot.addEventListener("mousemove", event => {
    if (!geometry) return;
    const name = hit(event);
    plot.style.cursor = name ? "pointer" : "default";
    if (name !== hover) { hover = name; mark(); }
    if (!name) return tip.hide();
    const [l, j] = names.cell(name), s = strongest[l * frame.shape[1] + j];
    tip.show(event, `Head ${name}`, s.q < 0 ? [] : [["Strongest", number(s.weight, 3), "", true], ["from", span("q", s.q)], ["to", span("k", s.k)]], "click to enlarge \u00B7 Shift click adds it to the head view");
  });
  plot.addEventListener("mouseleave", () => { hover = null; tip.hide(); mark(); });
  plot.addEventListener("click", event => {
    const name = geometry && hit(event);
    if (!name) return;
    if (!event.shiftKey) return void (model.enlarged = name);
    const chosen = parseHeads(model.selected);
    model.selected = (chosen.includes(name) ? chosen.filter(n => n !== name) : [...chosen, name]).join(",");
  });
  const move = (dl, dj) => () => {
    if (!names) return;
    const [l, j] = names.cell(model.enlarged);
    model.enlarged = names.name(clamp(l + dl, 0, frame.shape[0] - 1), clamp(j + dj, 0, frame.shape[1] - 1));
  };
  keyboard(model, plot, {ArrowUp: move(-1, 0), ArrowDown: move(1, 0), ArrowLeft: move(0, -1), ArrowRight: move(0, 1), n: () => table.toggle()});

  take();
  model.on(["frame", "tokens"], take);
  model.on(["enlarged", "selected"], mark);
  model.on("hide_special", () => { if (tokens.q) { measure(); redraw(); } });
  model.on("scale", redraw);
  model.on("remove", onWidth(body, w => { width = w - 16; redraw(); }));
}
