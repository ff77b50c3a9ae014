import { plain, number, count, parsePin, clamp, SCALES } from "../_js/paint.js";
import { el, mount, fit, write, tooltip, pointerIn, onWidth, onceAFrame, mirror, keyboard } from "../_js/dom.js";
import { CSS } from "../_js/style.js";
import { codeColours, mapImage, WEIGHT } from "../_js/maps.js";

// The map is drawn from tiles of the level whose blocks are about a pixel wide. Missing tiles are requested from the
// server, and coarser tiles replace them meanwhile. Positions are cells of the map; `view` is the window on the canvas.
const OWN = `
.plot { position: absolute; inset: 0; outline-offset: -3px; cursor: crosshair; overflow: hidden; touch-action: none } .plot.moving { cursor: grabbing } .body.flush { padding: 0; overflow: hidden }
.inset { position: absolute; right: 12px; bottom: 12px; border: 1px solid var(--line-2); background: var(--surface); box-shadow: var(--shadow); pointer-events: none }
.tools { display: flex; gap: 8px; align-items: center; margin-left: auto } .tools .seg button { height: 22px; padding: 0 9px } .ramp { border: 1px solid var(--line-2) } .legend { display: flex; gap: 5px; align-items: center; font-size: 11px; color: var(--ink-2) }
.sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
`;
const LEFT = 104, TOP = 92, RIGHT = 78, BOTTOM = 46, SMALLEST = 6, LISTED = 60, WAIT = 250;

export function render({model, el: host}) {
  const {root, paint} = mount(model, host, CSS + OWN, () => { images.clear(); draw(); });
  const tip = tooltip(root), sub = el("span.sub.ell"), canvas = el("canvas", {role: "img"}), inset = el("canvas.inset"), live = el("div.sr", {"aria-live": "polite"}), tools = el("div.tools");
  const plot = el("div.plot", {tabindex: 0, role: "group", "aria-label": "matrix: rows are queries, columns are keys; wheel or + and \u2212 zoom, drag or arrows move, 0 fits"}, canvas, inset);
  const body = el("div.body.flush", null, plot), card = el("section.card", {"data-picture": "matrix", "data-figure": ""}, el("header", null, el("h2", null, "Matrix"), sub, tools), body, live);
  root.append(card);
  const table = mirror(card, "strongest cells of the matrix");
  let frame = {}, tokens = {}, view = null, size = [0, 0], hover = null, tiles = new Map(), requests = new Set(), images = new Map(), own = "";

  function take() {
    frame = plain(model.frame);
    body.querySelector(".message")?.remove();
    if (frame.message || !frame.levels) return message();
    const sides = plain(model.tokens);
    if (sides.id !== frame.id.split("/")[0] || !sides.query) return;
    tokens = {q: sides.query, k: sides.key || sides.query};
    tiles = new Map(); requests = new Set(); images = new Map();
    for (const tile of frame.tiles) keep(tile);
    plot.hidden = false;
    sub.textContent = `head ${frame.head}${frame.note ? `, ${frame.note}` : ""}`;
    view = null; draw();
  }
  function message() {
    plot.hidden = true; sub.textContent = ""; tools.replaceChildren();
    if (frame.message) body.append(el("div.message", null, el("b", null, frame.message.title), frame.message.text));
    table.set(["Query", "Key", "Weight"], []);
  }
  const key = (level, row, column, kind) => `${level} ${row} ${column} ${level ? kind : "maximum"}`;
  const keep = tile => tiles.set(key(tile.level, tile.row, tile.column, tile.kind), tile);
  const room = () => [Math.max(40, size[0] - LEFT - RIGHT), Math.max(40, size[1] - TOP - BOTTOM)];

  // view: {row, column, cell}: the first row and column, and pixels of one cell
  function fitted() {
    const [w, h] = room(), [rows, columns] = frame.shape, cell = Math.min(w / columns, h / rows, 96);
    return {row: 0, column: 0, cell};
  }
  function restore() {
    const parts = model.zoom.split(",").map(Number), least = fitted();
    view = parts.length === 3 && parts.every(Number.isFinite) ? clampView({row: parts[0], column: parts[1], cell: room()[0] / Math.max(SMALLEST, parts[2])}) : least;
  }
  function clampView({row, column, cell}) {
    const [w, h] = room(), [rows, columns] = frame.shape, least = fitted().cell, most = Math.max(least, w / SMALLEST);
    cell = clamp(cell, least, Math.min(most, 60));
    return {cell, row: clamp(row, 0, Math.max(0, rows - h / cell)), column: clamp(column, 0, Math.max(0, columns - w / cell))};
  }
  let later = 0;
  const tell = () => { clearTimeout(later); later = setTimeout(() => {
    const fits = view.cell <= fitted().cell * 1.001;
    own = fits ? "" : `${view.row.toFixed(1)},${view.column.toFixed(1)},${(room()[0] / view.cell).toFixed(1)}`;
    if (model.zoom !== own) model.zoom = own;
    list();
  }, WAIT); };
  const paintSoon = onceAFrame(() => draw());
  const move = next => { view = clampView(next); tell(); paintSoon(); };
  function zoom(factor, x = room()[0] / 2, y = room()[1] / 2) {
    const cell = clampView({...view, cell: view.cell * factor}).cell;
    move({cell, row: view.row + y / view.cell - y / cell, column: view.column + x / view.cell - x / cell});
  }
  const levelOf = () => clamp(Math.floor(Math.log2(1 / (view.cell * (window.devicePixelRatio || 1)))) + 1, 0, frame.levels.length - 1);
  const visibleRange = () => { const [w, h] = room(); return {rows: [view.row, Math.min(frame.shape[0], view.row + h / view.cell)], columns: [view.column, Math.min(frame.shape[1], view.column + w / view.cell)]}; };

  function visibleTiles(level) {
    const side = frame.tile << level, {rows, columns} = visibleRange(), positions = [];
    for (let r = Math.floor(rows[0] / side); r * side < rows[1]; r++) for (let c = Math.floor(columns[0] / side); c * side < columns[1]; c++)
      if (!(frame.causal && c * side >= (r + 1) * side)) positions.push([r, c]);
    return positions;
  }
  function imageOf(tile) {
    const name = key(tile.level, tile.row, tile.column, tile.kind);
    let image = images.get(name);
    if (!image) {
      const [, columns] = tile.shape;
      images.set(name, image = mapImage((r, c) => tile.codes[r * columns + c], ...tile.shape, colours()));
      if (images.size > 400) images.delete(images.keys().next().value);
    }
    return image;
  }
  // what is hidden does not set the scale of the colours
  const high = () => model.hide_special ? frame.high || 1 : 1;
  let coloured = {};
  function colours() {
    const name = `${paint().theme} ${model.scale} ${high()}`;
    if (coloured.name !== name) coloured = {name, table: codeColours(paint(), w => SCALES[model.scale](clamp(w / high(), 0, 1)))};
    return coloured.table;
  }
  // Draw the visible part of one tile, or of the coarser tile that covers it. True if the tile itself was available.
  function drawTile(g, level, r, c) {
    const side = frame.tile << level, area = {rows: [r * side, Math.min(frame.shape[0], (r + 1) * side)], columns: [c * side, Math.min(frame.shape[1], (c + 1) * side)]};
    for (let l = level, tr = r, tc = c; l < frame.levels.length; l++, tr >>= 1, tc >>= 1) {
      const tile = tiles.get(key(l, tr, tc, model.pooling));
      if (!tile) continue;
      const span = visibleRange(), block = 1 << l, left = tc * frame.tile * block, top = tr * frame.tile * block;
      const cut = (a, b) => [Math.max(a[0], b[0]), Math.min(a[1], b[1])], [r0, r1] = cut(area.rows, span.rows), [c0, c1] = cut(area.columns, span.columns);
      if (r1 <= r0 || c1 <= c0) return true;
      g.drawImage(imageOf(tile), (c0 - left) / block, (r0 - top) / block, (c1 - c0) / block, (r1 - r0) / block,
        LEFT + (c0 - view.column) * view.cell, TOP + (r0 - view.row) * view.cell, (c1 - c0) * view.cell, (r1 - r0) * view.cell);
      return l === level;
    }
    return false;
  }
  function draw() {
    if (!size[0] || !frame.levels || !tokens.q) return;
    if (!view) { restore(); list(); }
    const p = paint(), g = fit(canvas, ...size), level = levelOf(), missing = [], [w, h] = room(), {rows, columns} = visibleRange();
    const right = (columns[1] - view.column) * view.cell, bottom = (rows[1] - view.row) * view.cell;
    g.imageSmoothingEnabled = false;
    for (const [r, c] of visibleTiles(level)) if (!drawTile(g, level, r, c)) missing.push([level, r, c, model.pooling]);
    if (frame.causal && view.cell >= 3) {   // masked cells
      g.fillStyle = p["surface-2"];
      for (let q = Math.floor(rows[0]); q < rows[1]; q++) { const x = Math.max(0, (q + 1 - view.column) * view.cell); if (x < right) g.fillRect(LEFT + x, TOP + Math.max(0, q - view.row) * view.cell, right - x, Math.min(view.cell, bottom - (q - view.row) * view.cell)); }
    }
    if (model.hide_special) veil(g, p, right, bottom);
    g.strokeStyle = p["line-2"]; g.lineWidth = 1; g.strokeRect(LEFT - .5, TOP - .5, right + 1, bottom + 1);
    labels(g, p); margins(g, p, right, bottom); marks(g, p, right, bottom); overview(p); head(p, level);
    canvas.setAttribute("aria-label", `attention of head ${frame.head}: queries ${Math.floor(rows[0])} to ${Math.ceil(rows[1]) - 1}, keys ${Math.floor(columns[0])} to ${Math.ceil(columns[1]) - 1}`);
    Object.assign(canvas.dataset, {level, cell: view.cell.toFixed(3), row: view.row.toFixed(2), column: view.column.toFixed(2), missing: missing.length, left: LEFT, top: TOP});
    ask(missing);
  }
  // A message names all tiles that are missing now, and replaces the last one: tiles that moved out of sight are not made
  function ask(missing) {
    const wanted = missing.slice(0, 48);
    if (wanted.every(t => requests.has(key(...t)))) return;
    requests = new Set(wanted.map(t => key(...t)));
    model.send_msg({tiles: wanted, id: frame.id});
  }
  model.on("msg:custom", data => {
    const answer = plain(data);
    if (!answer.tiles || answer.id !== frame.id) return;
    answer.tiles.forEach(tile => keep(plain(tile)));
    draw(); list();
  });
  const special = (side, i) => model.hide_special && !!tokens[side].special[i];
  function veil(g, p, right, bottom) {
    const {rows, columns} = visibleRange();
    g.fillStyle = p["surface-2"];
    for (const [side, [from, to], first] of [["q", rows, view.row], ["k", columns, view.column]]) for (let i = Math.floor(from); i < to; i++) {
      if (!special(side, i)) continue;
      const start = Math.max(0, (i - first) * view.cell), length = Math.min((i + 1 - first) * view.cell, side === "q" ? bottom : right) - start;
      side === "q" ? g.fillRect(LEFT, TOP + start, right, length) : g.fillRect(LEFT + start, TOP, length, bottom);
    }
  }
  const label = (side, i) => tokens[side].labels[i] ?? "";
  // token labels if they fit, else positions
  function labels(g, p) {
    const {rows, columns} = visibleRange(), pin = parsePin(model.pin), fits = view.cell >= 9.5, step = fits ? 1 : nice(46 / view.cell), font = clamp(Math.floor(view.cell - 1), 9, 12);
    const name = (side, i) => { const text = fits ? label(side, i) : count(i); return text.length > 15 ? `${text.slice(0, 14)}\u2026` : text; };
    const color = (side, i) => pin && pin.side === side && pin.index === i ? p.ink : special(side, i) ? p["line-2"] : hover && hover[side === "q" ? 0 : 1] === i ? p.accent : p["ink-2"];
    for (let q = Math.max(0, Math.ceil(rows[0] / step - .5) * step); q < rows[1]; q += step) { const y = TOP + (q + .5 - view.row) * view.cell; if (q >= 0 && y > TOP) write(g, name("q", q), LEFT - 6, y, {align: "right", size: font, color: color("q", q), weight: pin?.side === "q" && pin.index === q ? 600 : 400}); }
    for (let k = Math.max(0, Math.ceil(columns[0] / step - .5) * step); k < columns[1]; k += step) {
      const x = LEFT + (k + .5 - view.column) * view.cell;
      if (k < 0 || x < LEFT) continue;
      g.save(); g.translate(x, TOP - 6); g.rotate(-Math.PI / 2); write(g, name("k", k), 0, 0, {size: font, color: color("k", k), weight: pin?.side === "k" && pin.index === k ? 600 : 400}); g.restore();
    }
  }
  const nice = least => { let step = 1; for (const m of [1, 2, 5]) for (let e = 1; e < 1e6; e *= 10) if (m * e >= least && (step < least || m * e < step)) step = m * e; return step; };
  const most = (values, side) => { let top = 1e-9; values.forEach((v, i) => { if (v > top && !special(side, i)) top = v; }); return top; };
  function margins(g, p, right, bottom) {
    const {rows, columns} = visibleRange(), bars = (values, side, [from, to], first, span, put) => {
      const per = Math.max(1, Math.ceil(1 / view.cell)), top1 = most(values, side);
      for (let i = Math.floor(from / per) * per; i < to; i += per) { let top = 0; for (let j = i; j < Math.min(i + per, values.length); j++) if (!special(side, j)) top = Math.max(top, values[j]); put((i - first) * view.cell, per * view.cell, span * top / top1); }
    };
    const gap = view.cell > 6 ? 2 : 0;
    g.fillStyle = p["line-2"];
    bars(frame.entropy, "q", rows, view.row, RIGHT - 18, (y, h, w) => { if (y >= -1) g.fillRect(LEFT + right + 8, TOP + y + gap / 2, w, Math.max(.5, h - gap)); });
    bars(frame.received, "k", columns, view.column, BOTTOM - 16, (x, w, h) => { if (x >= -1) g.fillRect(LEFT + x + gap / 2, TOP + bottom + 6, Math.max(.5, w - gap), h); });
    write(g, "row entropy", LEFT + right + 8, TOP - 8, {color: p["ink-3"], size: 10});
    write(g, "received", LEFT - 6, TOP + bottom + 12, {color: p["ink-3"], size: 10, align: "right"});
  }
  function marks(g, p, right, bottom) {
    const pin = parsePin(model.pin), box = (side, i, color) => {
      const first = side === "q" ? view.row : view.column, a = (i - first) * view.cell, limit = side === "q" ? bottom : right;
      if (a + view.cell < 0 || a > limit) return;
      g.strokeStyle = color; g.lineWidth = 1.5;
      const start = Math.max(0, a), length = Math.max(1, Math.min(limit, a + view.cell) - start);
      side === "q" ? g.strokeRect(LEFT, TOP + start, right, length) : g.strokeRect(LEFT + start, TOP, length, bottom);
    };
    if (hover) { box("q", hover[0], p["line-2"]); box("k", hover[1], p["line-2"]); }
    if (pin) box(pin.side, pin.index, p.accent);
  }
  function overview(p) {
    const zoomed = view.cell > fitted().cell * 1.01;
    inset.style.display = zoomed ? "" : "none";
    if (!zoomed) return;
    const [rows, columns] = frame.shape, scale = 132 / Math.max(rows, columns), g = fit(inset, columns * scale, rows * scale), top = frame.levels.length - 1, tile = tiles.get(key(top, 0, 0, model.pooling)), {rows: r, columns: c} = visibleRange();
    if (tile) g.drawImage(imageOf(tile), 0, 0, columns * scale, rows * scale);
    g.strokeStyle = p.accent; g.lineWidth = 1.5; g.strokeRect(c[0] * scale + .75, r[0] * scale + .75, Math.max(2, (c[1] - c[0]) * scale - 1.5), Math.max(2, (r[1] - r[0]) * scale - 1.5));
  }
  function head(p, level) {
    const name = `${level} ${model.pooling} ${model.scale} ${p.theme} ${high()}`;
    if (tools.dataset.drawn === name) return;
    tools.dataset.drawn = name;
    const group = (field, options) => el("div.seg", {role: "group", "aria-label": field}, options.map(([value, text]) => el("button", {"aria-pressed": String(model[field] === value), "data-choice": value, onclick: () => { model[field] = value; }}, text)));
    const ramp = el("canvas.ramp"), g = fit(ramp, 64, 8);
    for (let i = 0; i < 64; i++) { g.fillStyle = p.seq(SCALES[model.scale](i / 63)); g.fillRect(i, 0, 1, 8); }
    tools.replaceChildren(el("span.legend", null, level ? el("span", {style: "margin-right:8px"}, `a pixel is the ${model.pooling} of ${1 << level} \u00D7 ${1 << level}`) : "", "0", ramp, el("span.num", {"data-high": high().toFixed(6)}, number(high()).replace(/\.00$/, ""))), group("scale", [["linear", "Linear"], ["sqrt", "\u221A"], ["log", "Log"]]),
      frame.levels.length > 1 || level ? group("pooling", [["maximum", "Max"], ["mean", "Mean"]]) : "",
      el("div.seg", {role: "group", "aria-label": "zoom"}, el("button", {"aria-label": "zoom out", onclick: () => zoom(1 / 1.6)}, "\u2212"), el("button", {"aria-label": "fit", onclick: () => move(fitted())}, "fit"), el("button", {"aria-label": "zoom in", onclick: () => zoom(1.6)}, "+")));
  }
  // strongest visible cells of this level as rows of the text mirror; a position is the first cell of the block
  function list() {
    if (!view || !frame.levels) return;
    const level = levelOf(), block = 1 << level, {rows, columns} = visibleRange(), best = [];
    let floor = -1;
    for (const [r, c] of visibleTiles(level)) {
      const tile = tiles.get(key(level, r, c, model.pooling));
      if (!tile) continue;
      for (let i = 0; i < tile.shape[0]; i++) for (let j = 0; j < tile.shape[1]; j++) {
        const code = tile.codes[i * tile.shape[1] + j];
        if (code <= floor) continue;
        const q = (r * frame.tile + i) * block, k = (c * frame.tile + j) * block;
        if (q + block <= rows[0] || q >= rows[1] || k + block <= columns[0] || k >= columns[1] || (!level && (special("q", q) || special("k", k)))) continue;
        best.push([code, q, k]);
        if (best.length > 4 * LISTED) { best.sort((a, b) => b[0] - a[0]); best.length = LISTED; floor = best.at(-1)[0]; }
      }
    }
    best.sort((a, b) => b[0] - a[0] || a[1] - b[1] || a[2] - b[2]);
    best.length = Math.min(best.length, LISTED);
    const span = (side, i) => level ? `${i}\u2013${Math.min(i + block, frame.shape[side === "q" ? 0 : 1]) - 1}` : label(side, i);
    table.set(["Query", "Key", "Weight"], best.map(([code, q, k]) => [span("q", q), span("k", k), number(WEIGHT[code], 3)]), best.map(([code, q, k]) => ({q, k, level, weight: WEIGHT[code].toFixed(6)})));
  }

  function hit(event) {
    const [x, y] = pointerIn(event, plot), q = Math.floor(view.row + (y - TOP) / view.cell), k = Math.floor(view.column + (x - LEFT) / view.cell), {rows, columns} = visibleRange();
    return x >= LEFT && y >= TOP && q < rows[1] && k < columns[1] ? [q, k] : null;
  }
  function valueAt(q, k) {
    for (let level = levelOf(); level < frame.levels.length; level++) {
      const side = frame.tile << level, tile = tiles.get(key(level, Math.floor(q / side), Math.floor(k / side), model.pooling));
      if (tile) return [WEIGHT[tile.codes[((q >> level) % frame.tile) * tile.shape[1] + (k >> level) % frame.tile]], 1 << level];
    }
    return [frame.causal && k > q ? 0 : NaN, 1];
  }
  let drag = null;
  plot.addEventListener("pointerdown", event => { if (!view || event.button) return; drag = {x: event.clientX, y: event.clientY, view, far: false}; });
  plot.addEventListener("pointermove", event => {
    if (!view) return;
    if (drag && event.buttons) {
      const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
      if (!drag.far && Math.hypot(dx, dy) > 4) { drag.far = true; plot.classList.add("moving"); plot.setPointerCapture(event.pointerId); tip.hide(); }
      if (drag.far) move({cell: drag.view.cell, row: drag.view.row - dy / view.cell, column: drag.view.column - dx / view.cell});
      return;
    }
    const cell = hit(event);
    if (String(cell) !== String(hover)) { hover = cell; paintSoon(); }
    if (!cell) return tip.hide();
    const [q, k] = cell, [value, block] = valueAt(q, k), range = i => block > 1 ? `${i - i % block}\u2013${i - i % block + block - 1}` : String(i);
    live.textContent = `${label("q", q)} to ${label("k", k)}, ${number(value, 3)}`;
    tip.show(event, `${label("q", q)} \u2192 ${label("k", k)}`, [[block > 1 ? `${model.pooling} of ${block} \u00D7 ${block}` : "Weight", frame.causal && k > q ? "masked" : number(value, 3), "", true], ["Query", range(q)], ["Key", range(k)]], "click pins the row");
  });
  plot.addEventListener("pointerup", event => {
    const far = drag?.far;
    drag = null; plot.classList.remove("moving");
    const cell = !far && view && hit(event);
    if (cell) model.pin = model.pin === `q${cell[0]}` ? "" : `q${cell[0]}`;
  });
  plot.addEventListener("pointerleave", () => { hover = null; tip.hide(); paintSoon(); });
  plot.addEventListener("wheel", event => {
    if (!view) return;
    event.preventDefault();
    const [x, y] = pointerIn(event, plot);
    zoom(Math.exp(-clamp(event.deltaY, -200, 200) / 300), clamp(x - LEFT, 0, room()[0]), clamp(y - TOP, 0, room()[1]));
  }, {passive: false});
  const pan = (dr, dc) => () => view && move({...view, row: view.row + dr * 60 / view.cell, column: view.column + dc * 60 / view.cell});
  keyboard(model, plot, {ArrowUp: pan(-1, 0), ArrowDown: pan(1, 0), ArrowLeft: pan(0, -1), ArrowRight: pan(0, 1), "+": () => zoom(1.6), "=": () => zoom(1.6), "-": () => zoom(1 / 1.6), 0: () => move(fitted()), n: () => table.toggle(), Escape: () => { if (model.pin) model.pin = ""; }});

  model.on(["frame", "tokens"], take);
  model.on("pin", () => draw());
  model.on("hide_special", () => { if (view) { images.clear(); draw(); list(); } });
  model.on(["pooling", "scale"], () => { if (view) { images.clear(); requests.clear(); draw(); list(); } });
  model.on("zoom", () => { if (frame.levels && model.zoom !== own) { own = model.zoom; view = null; draw(); } });
  model.on("remove", onWidth(body, () => { size = [body.clientWidth, body.clientHeight]; view = null; draw(); }));
  take();
}
