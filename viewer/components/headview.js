import { plain, parsePin, formatPin, number, count, percent, clamp } from "../_js/paint.js";
import { directionOf, el, middle, mount, fit, write, tooltip, pointerIn, onWidth, onceAFrame, mirror, keyboard } from "../_js/dom.js";
import { CSS } from "../_js/style.js";
import { MIN_WEIGHT } from "../_js/constants.js";
import { weights, strongestEdges, paintLines } from "../_js/lines.js";

// Two canvases lie under two columns of text. `base` holds the drawn edges around the visible part, in grey while a
// token is active; it is repainted when the frame, a slider or the scroll position changes. `top` holds the lines of
// the active token; it is repainted on hover and therefore only as large as the visible part. Tokens are elements in
// blocks, so that the browser skips the blocks outside the visible part.
const OWN = `
.plot { position: relative; min-height: 100%; outline-offset: -3px; cursor: default }
.plot canvas { position: absolute; left: 0; top: 0; pointer-events: none } .plot canvas.top { position: sticky }
.body.flush { padding: 4px 0 0 }
.col { position: absolute; top: 0; bottom: 0; width: 0 }
.t { position: absolute; contain: layout style; display: flex; align-items: center; gap: 5px; white-space: nowrap; color: var(--ink); cursor: pointer }
.bl { position: absolute; content-visibility: auto }
.col.q .t { right: 4px; flex-direction: row-reverse } .col.k .t { left: 4px }
.t .l { padding: 0 5px; border-radius: 3px; unicode-bidi: isolate; line-height: inherit }
.t .l.cut { max-width: 150px; overflow: hidden; text-overflow: ellipsis }
.t.cont .l, .t.sp .l { color: var(--ink-3) } .t.hid .l { color: var(--line-2) }
.active .t .l { color: var(--ink-3) } .active .t.hid .l { color: var(--line-2) } .active .t.on .l { color: var(--ink) } .active .t.strong .l { font-weight: 600 }
.active .t.me .l { color: var(--ink); font-weight: 600; background: var(--accent-soft); box-shadow: inset 0 0 0 1.5px var(--accent) }
.col.k .t.me .l { background: var(--accent); color: var(--on-accent) }
.active .t.edge .l { font-weight: 600; box-shadow: inset 0 0 0 1.5px var(--ink-2) }
.bd { display: flex; flex: none; contain: strict; align-items: center; gap: 3px; width: 36px; height: 14px; line-height: 14px; font-size: 11px; font-weight: 500; color: var(--ink); font-variant-numeric: tabular-nums }
.bd i { width: 8px; height: 8px; border-radius: 2px; flex: none }
.head-l { position: absolute; top: 6px; font-size: 12px; font-weight: 600; color: var(--ink-2) }
.plot.flat .col { bottom: auto } .plot.flat .t { writing-mode: vertical-rl; justify-content: flex-start } .plot.flat .col.q .t { right: auto; bottom: 0; flex-direction: row-reverse; justify-content: flex-start } .plot.flat .col.k .t { left: auto; top: 0 }
.plot.flat .t .l { padding: 5px 0 } .plot.flat .t .l.cut { max-width: none; max-height: 130px } .plot.flat .bd { writing-mode: horizontal-tb; width: 24px; justify-content: center } .plot.flat .bd i { display: none }
.seg.small { flex: none } .seg.small button { height: 22px; padding: 0 9px }
.follows { min-width: 0; gap: 4px } .follows .tag { max-width: 220px } .follows:empty { display: none }
.sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
`;
const TOP = 26, BADGES = 4, BLOCK = 32, MANY = 12, SURELY_SHORT = 9, TOLD = 12, LISTED = 400, PADDING = 4;

export function render({model, el: host}) {
  const {root, paint} = mount(model, host, CSS + OWN, () => { paintKey = ""; draw(); });
  const heading = el("h2", null, "Head view"), pools = el("div.seg.small", {role: "group", "aria-label": "many heads as"}), me = {};
  const tip = tooltip(root), sub = el("span.sub.ell"), counts = el("span.count.num", {"data-count": ""}), live = el("div.sr", {"aria-live": "polite"}), follows = el("span.row.follows");
  const base = el("canvas"), top = el("canvas.top"), columns = {q: el("div.col.q"), k: el("div.col.k")};
  const heads = [el("span.head-l", null, "query"), el("span.head-l", null, "key"), el("span.head-l", {style: "font-weight:400;font-size:11px;color:var(--ink-3)"}, "attention received")];
  const plot = el("div.plot", {tabindex: 0, role: "group", "aria-label": "head view: lines from each query token to its keys"}, base, top, columns.q, columns.k, heads);
  const body = el("div.body.flush", null, plot), card = el("section.card", {"data-picture": "head view", "data-figure": ""}, el("header", null, heading, sub, follows, counts, pools), body, live);
  root.append(card);
  const table = mirror(card, "edges of the head view");

  let frame = {}, tokens = {}, weight = null, edges = [], matching = [], isMatch = new Set(), high = 1, hover = null, width = 0, geometry = null, paintKey = "", nodes = {q: [], k: []}, blocks = {q: [], k: []}, marked = [], fresh = false, lastInputs = [], layoutKey = "";
  const start = side => side === "q" ? frame.query_start : frame.key_start, size = side => frame.shape[side === "q" ? 1 : 2];
  // copy of `model.hide_special`: a hover reads it for every token of every head
  let hide = model.hide_special;
  const hidden = (side, i) => hide && !!tokens[side].special[i + start(side)];
  const label = (side, i) => tokens[side].labels[i + start(side)] ?? "";
  // the active token (under the pointer, else pinned), counted from the start of the window
  function active() {
    const pin = parsePin(model.pin), local = pin && {side: pin.side, index: pin.index - start(pin.side)};
    return hover || (local && local.index >= 0 && local.index < size(local.side) ? local : null);
  }
  // true if the tokens run along the top instead of down the side; right-to-left texts then begin at the right
  const flat = () => model.layout === "rows";
  const ink = h => frame.tint ? paint()[frame.tint] : paint().head(h);
  const runsLeft = () => directionOf(tokens.q.labels.join(" ")) === "rtl";
  const canvasOf = (canvas, ...size) => { const g = fit(canvas, ...(flat() ? size.reverse() : size)); if (flat()) g.transform(0, 1, 1, 0, 0, 0); return g; };
  const pair = (h, act, i) => act.side === "q" ? weight(h, act.index, i) : weight(h, i, act.index);
  // weights between one token and all tokens of the other side, head after head, cached for picture and tooltip
  let link = {};
  function linkOf(act) {
    if (link.weight !== weight || link.side !== act.side || link.index !== act.index) {
      const n = size(act.side === "q" ? "k" : "q"), values = new Float64Array(n * frame.heads.length);
      for (let h = 0, index = 0; h < frame.heads.length; h++) for (let i = 0; i < n; i++) values[index++] = pair(h, act, i);
      link = {weight, ...act, values, n};
    }
    return link;
  }

  function take() {
    if (model.frame === lastInputs[0] && model.tokens === lastInputs[1]) return;   // frame and tokens came in one message
    const before = model.tokens === lastInputs[1] ? tokens : {}, was = frame;
    lastInputs = [model.frame, model.tokens];
    frame = pooled(plain(model.frame)); tokens = {};
    const sides = before.q ? {...before.sides} : plain(model.tokens);
    if (frame.message || !frame.attention) return message();
    if (sides.id !== frame.id || !sides.query) return;   // the matching tokens or frame have not arrived yet
    tokens = {q: sides.query, k: sides.key || sides.query, sides};
    heading.replaceChildren(frame.title ? middle(frame.title) : "Head view");
    // other heads of the same tokens: the token elements stay
    const same = before.q && ["query_start", "key_start"].every(name => frame[name] === was[name]) && String(frame.shape.slice(1)) === String(was.shape.slice(1));
    weight = weights(frame); hover = null;
    plot.hidden = false; body.querySelector(".message")?.remove();
    choose();
    if (!same) { fresh = true; build(); }
    draw();
  }
  // More heads than there are colours are drawn as their maximum or mean
  function pooled(next) {
    const n = next.heads?.length || 0;
    pools.replaceChildren(...(n > MANY ? [["maximum", "Max"], ["mean", "Mean"]].map(([value, text]) => el("button", {"aria-pressed": String(model.pooling === value), "data-pooling": value, onclick: () => { model.pooling = value; }}, text)) : []));
    pools.style.display = n > MANY ? "" : "none";
    if (n <= MANY) return next;
    const [, rows, columns] = next.shape, of = weights(next), attention = new Float32Array(rows * columns), mean = model.pooling === "mean";
    for (let h = 0; h < n; h++) for (let q = 0, i = 0; q < rows; q++) for (let k = 0; k < columns; k++, i++) { const w = of(h, q, k); if (mean) attention[i] += w / n; else if (w > attention[i]) attention[i] = w; }
    return {...next, attention, codec: "float32", heads: [`${model.pooling} of ${n} heads`], shape: [1, rows, columns], tint: "accent"};
  }
  function message() {
    plot.hidden = true; counts.textContent = ""; body.querySelector(".message")?.remove();
    if (frame.message) body.append(el("div.message", null, el("b", null, frame.message.title), frame.message.text));
    table.set(["Head", "Query", "Key", "Weight"], []);
  }
  function choose() {
    const [, rows, cols] = frame.shape;
    edges = frame.heads.map((_, h) => strongestEdges(weight, h, {rows, columns: cols, causal: frame.causal, share: model.share, keys: model.keys,
      queryShown: q => !hidden("q", q), keyShown: k => !hidden("k", k), offset: frame.query_start - frame.key_start}));
    const [, , width] = frame.shape, pairs = plain(frame.matches || {}), matched = pairs.query || [];
    isMatch = new Set(Array.from(matched, (q, i) => q * width + pairs.key[i]));
    matching = frame.heads.map((_, h) => {
      const found = {query: [], key: [], value: []};
      Array.from(matched).forEach((q, i) => { const k = pairs.key[i], w = weight(h, q, k); if (w >= MIN_WEIGHT && !hidden("q", q) && !hidden("k", k)) { found.query.push(q); found.key.push(k); found.value.push(w); } });
      return found;
    });
    // what is hidden does not set the scale of the lines
    high = model.high || (hide ? Math.max(MIN_WEIGHT, ...edges.map(e => e.value.reduce((most, w) => Math.max(most, w), 0))) : 1);
    const sum = name => edges.reduce((s, e) => s + e[name], 0);
    const part = frame.part ? ` \u00B7 ${frame.part}` : frame.n_queries > rows || frame.n_keys > cols ? ` \u00B7 tokens ${frame.query_start}\u2013${frame.query_start + rows - 1} of ${count(frame.n_queries)}, around the pin` : "";
    counts.textContent = `${count(sum("drawn"))} of ${count(sum("pairs"))} edges drawn, ${percent(sum("rowMass") ? sum("drawnMass") / sum("rowMass") : 0)} of the attention${part}${high < .995 ? ` \u00B7 widest line ${number(high)}` : ""}${model.renormalised ? " \u00B7 rows add up to 1" : ""}`;
    const n = matching.reduce((s, e) => s + e.value.length, 0);
    follows.replaceChildren(...(frame.pattern ? [el("span.tag.accent.ell", {"data-matching": n, title: frame.pattern}, `${count(n)} edge${n === 1 ? "" : "s"} of ${frame.pattern}`), el("button.btn.quiet", {"aria-label": "highlight no pattern", title: "highlight no pattern", onclick: () => model.send_msg({pattern: ""})}, "\u2715")] : []));
    Object.assign(counts.dataset, {drawn: sum("drawn"), pairs: sum("pairs"), share: (sum("drawnMass") / (sum("rowMass") || 1)).toFixed(6), high: high.toFixed(6)});
    paintKey = "";
  }
  function build() {
    for (const side of ["q", "k"]) {
      nodes[side] = Array.from({length: size(side)}, (_, i) => {
        const text = label(side, i), classes = (tokens[side].special[i + start(side)] ? ".sp" : text.startsWith("+") ? ".cont" : "");
        return el(`div.t${classes}`, {"data-side": side, "data-index": i + start(side)}, el(text.length > SURELY_SHORT ? "span.l.cut" : "span.l", {dir: "auto"}, text));   // only long labels: every shortened label costs the browser a compositing layer
      });
      blocks[side] = Array.from({length: Math.ceil(size(side) / BLOCK)}, (_, b) => el("div.bl", null, nodes[side].slice(b * BLOCK, (b + 1) * BLOCK)));
      columns[side].replaceChildren(...blocks[side]);
    }
    marked = []; layoutKey = "";
  }
  function layout() {
    const key = `${width} ${body.clientHeight} ${body.clientWidth} ${model.layout} ${model.hide_special}`;
    if (layoutKey === key) return;
    layoutKey = key;
    plot.classList.toggle("flat", flat());
    if (flat()) return layoutFlat();
    const n = Math.max(size("q"), size("k")), room = Math.max(200, body.clientHeight - 12);
    const row = clamp((room - TOP - 6) / n, 15, 44), left = clamp(width * .205, 100, 190), right = Math.max(left + 120, width - clamp(width * .34, 150, 300));
    geometry = {row, left, right, height: Math.ceil(TOP + row * n + 6), across: width, font: row > 34 ? 15 : clamp(Math.floor(row - 4), 11, 13), y: i => TOP + row * (i + .5)};
    plot.style.height = `${geometry.height}px`; plot.style.width = "";
    columns.q.style.left = columns.q.style.right = ""; columns.q.style.left = `${left - 6}px`; columns.k.style.left = `${right + 2}px`;
    [left - 14, right + 11, right + 118].forEach((x, i) => { Object.assign(heads[i].style, {left: `${x}px`, top: "", transform: i ? "" : "translateX(-100%)"}); });
    for (const side of ["q", "k"]) {
      const across = side === "q" ? `right:0;width:${left - 6}px` : `left:0;width:${Math.max(0, width - right - 2)}px`;
      positionTokens(side, (from, n) => `${across};top:${TOP + row * from}px;height:${row * n}px`, (i, from) => `top:${row * (i - from)}px;height:${row}px;font-size:${geometry.font}px;line-height:${row - 1}px`);
    }
  }
  function positionTokens(side, ofBlock, ofToken) {
    blocks[side].forEach((block, b) => { block.style.cssText = ofBlock(b * BLOCK, block.children.length); });
    nodes[side].forEach((node, i) => { node.style.cssText = ofToken(i, i - i % BLOCK); node.classList.toggle("hid", hidden(side, i)); });
  }
  // layout with exchanged axes: `row` is the width of a token, `left` and `right` are heights
  function layoutFlat() {
    const n = Math.max(size("q"), size("k")), room = Math.max(300, body.clientHeight - 12), start = 40, row = clamp((width - start - 12) / n, 18, 46), mirrored = runsLeft();
    const long = start + row * n + 12, left = clamp(room * .26, 90, 150), right = Math.max(left + 110, room - clamp(room * .3, 110, 190)), orderOf = i => mirrored ? n - 1 - i : i;
    geometry = {row, left, right, height: Math.max(width, Math.ceil(long)), across: room, font: clamp(Math.floor(row - 5), 12, 15), y: i => start + row * (orderOf(i) + .5), index: x => { const i = Math.floor((x - start) / row); return orderOf(i); }};
    plot.style.height = `${room}px`; plot.style.width = `${geometry.height}px`;
    plot.dataset.direction = mirrored ? "rtl" : "ltr";
    columns.q.style.cssText = "left:0;top:0"; columns.k.style.cssText = "left:0;top:0";
    [[left - 20, 4], [right + 4, 4]].forEach(([y, x], i) => { Object.assign(heads[i].style, {left: `${x}px`, top: `${y}px`, transform: ""}); });
    const first = (from, m) => Math.min(geometry.y(from), geometry.y(from + m - 1)) - row / 2;
    for (const side of ["q", "k"]) {
      const along = side === "q" ? `top:0;height:${left - 4}px` : `top:${right + 4}px;height:${Math.max(0, room - right - 4)}px`;
      positionTokens(side, (from, m) => `${along};left:${first(from, m)}px;width:${row * m}px`,
        (i, from) => `left:${geometry.y(i) - row / 2 - first(from, Math.min(BLOCK, size(side) - from))}px;width:${row}px;font-size:${geometry.font}px;line-height:${row - 4}px`);
    }
  }
  function draw() {
    if (!width || !tokens.q) return;
    layout(); paintBase(); paintTop(); list();
    if (fresh) { fresh = false; body.scrollTop = 0; body.scrollLeft = flat() && plot.dataset.direction === "rtl" ? geometry.height : 0; reveal(); }
  }
  // All edges in colour, or in grey behind the lines of the active token. The canvas covers the visible part and half
  // as much on each side: without a GPU, lines on a canvas as long as a long text take seconds.
  let drawn = [0, 0];
  function paintBase() {
    const extent = flat() ? body.clientWidth : body.clientHeight, from = Math.max(0, flat() ? body.scrollLeft : body.scrollTop - PADDING), until = Math.min(geometry.height, from + extent);
    const act = active(), key = `${act ? "grey" : "colour"} ${geometry.across} ${geometry.height} ${model.layout}`;
    if (paintKey === key && drawn[0] <= from && drawn[1] >= until) return;
    paintKey = key;
    drawn = [Math.max(0, Math.floor(from - extent / 2)), Math.min(geometry.height, Math.ceil(until + extent / 2))];
    base.style.top = flat() ? "0" : `${drawn[0]}px`; base.style.left = flat() ? `${drawn[0]}px` : "0";
    const p = paint(), g = canvasOf(base, geometry.across, drawn[1] - drawn[0]), {left: x1, right: x2, y} = geometry, middle = (edges.length - 1) / 2;
    g.translate(0, -drawn[0]);
    edges.forEach((e, h) => {
      const shift = (h - middle) * .8, lines = {x1, x2, y1: i => y(i) + shift, y2: i => y(i) + shift, within: drawn, high};
      if (act || frame.pattern) paintLines(g, e, {...lines, color: p["line-2"], alpha: w => clamp(.14 + .5 * w, .14, .5), width: () => 1, from: .06});
      else paintLines(g, e, {...lines, color: ink(h), alpha: w => clamp(.12 + .83 * w, .12, .95), width: w => .8 + 2.6 * w});
      if (!act && frame.pattern) paintLines(g, matching[h], {...lines, color: ink(h), alpha: w => clamp(.3 + .65 * w, .3, .95), width: w => 1 + 2.6 * w});
    });
  }
  function paintTop() {
    const from = flat() ? body.scrollLeft : body.scrollTop - PADDING, extent = flat() ? body.clientWidth : body.clientHeight;   // read before any change, which would force a layout
    const p = paint(), g = canvasOf(top, geometry.across, Math.min(geometry.height, extent)), act = active(), {left: x1, right: x2, y} = geometry, n = frame.heads.length;
    for (const node of marked) node.classList.remove("me", "on", "strong", "edge");
    for (const node of badges.splice(0)) { node.remove(); spare.push(node); }
    marked = [];
    g.translate(0, -Math.max(0, from));
    plot.classList.toggle("active", !!act);
    heads[2].style.visibility = act || flat() ? "hidden" : "";
    if (!act) return flat() ? null : received(g, p);
    const other = act.side === "q" ? "k" : "q", all = [], mark = (node, ...names) => { node.classList.add(...names); marked.push(node); };
    const strongest = [-1, -1, -1, -1];
    const {values, n: m} = linkOf(act);
    for (let i = 0; i < m; i++) {
      if (hidden(other, i)) continue;
      let best = 0;
      const [q, k] = act.side === "q" ? [act.index, i] : [i, act.index], node = nodes[other][i];
      for (let h = 0; h < n; h++) {
        const w = values[h * m + i];
        if (w > values[best * m + i]) best = h;
        if (w < MIN_WEIGHT) continue;
        (all[h] ||= []).push([q, k, w]);
        if (w >= strongest[2]) { strongest[0] = q; strongest[1] = k; strongest[2] = w; strongest[3] = h; }
      }
      const peak = values[best * m + i];
      if (peak < .02 || geometry.y(i) < from - 200 || geometry.y(i) > from + extent + 200) continue;   // tokens far outside the visible part: the next scroll repaints
      mark(node, "on", ...(peak > .15 ? ["strong"] : []));
      for (let h = 0; h < n; h++) if (n <= BADGES || h === best) node.append(badge(h, values[h * m + i]));
    }
    mark(nodes[act.side][act.index], "me");
    const pin = !hover && parsePin(model.pin), end = pin && pin.other !== null ? pin.other - start(other) : -1, columns = frame.shape[2];
    if (end >= 0 && end < size(other)) mark(nodes[other][end], "on", "edge");
    // the pinned edge, else the edges of the pattern, stand out among the lines of the token
    const standsOut = (q, k) => end >= 0 ? (act.side === "q" ? k : q) === end : !isMatch.size || isMatch.has(q * columns + k);
    // weak lines first; lines of the same head and strength form one path
    const bend = (x2 - x1) * .36, paths = Array.from({length: 32 * n}, () => null);
    all.forEach((lines, h) => {
      const shift = (h - (n - 1) / 2) * Math.min(3.2, geometry.row / n);
      for (const [q, k, w] of lines) {
        const bin = ((standsOut(q, k) ? 16 : 0) + Math.min(15, Math.floor(w / high * 16))) * n + h, path = paths[bin] ||= g.newPath ? g.newPath() : new Path2D(), a = y(q) + shift, b = y(k) + shift;
        path.moveTo(x1, a); path.bezierCurveTo(x1 + bend, a, x2 - bend, b, x2, b);
      }
    });
    paths.forEach((path, bin) => {
      if (!path) return;
      const level = Math.floor(bin / n), w = (level % 16 + .5) / 16;
      g.strokeStyle = ink(bin % n); g.globalAlpha = level < 16 ? .3 : clamp(.35 + .65 * w, .35, 1); g.lineWidth = level < 16 ? .8 : .8 + 2.6 * w;
      g.stroke(path);
    });
    g.globalAlpha = 1;
    const [q, k, w, h] = strongest;
    live.textContent = h >= 0 ? `${label("q", q)} to ${label("k", k)}, ${number(w)}, head ${frame.heads[h]}` : "no weight above .01";
  }
  // numbers beside tokens; their elements are reused for the next token
  const badges = [], spare = [];
  function badge(h, w) {
    const node = spare.pop() || el("span.bd", null, el("i"), "");
    badges.push(node);
    node.dataset.head = frame.heads[h]; node.dataset.weight = w.toFixed(4);
    node.firstChild.style.cssText = `background:${ink(h)};opacity:${clamp(w * 1.25, .25, 1)}`;
    node.lastChild.data = number(w);
    return node;
  }
  let sums = {};
  function received(g, p) {
    const key = `${frame.heads}`, n = frame.heads.length, span = Math.min(96, width - geometry.right - 160);
    if (span < 20) { heads[2].style.visibility = "hidden"; return; }
    if (sums.frame !== frame) {
      const by = frame.heads.map((_, h) => Float64Array.from({length: size("k")}, (_, k) => { let s = 0; for (let q = 0; q < size("q"); q++) s += weight(h, q, k); return s; }));
      sums = {frame, by, most: Math.max(1e-9, ...Array.from({length: size("k")}, (_, k) => hidden("k", k) ? 0 : by.reduce((s, r) => s + r[k], 0)))};
    }
    for (let k = 0; k < size("k"); k++) {
      if (hidden("k", k)) continue;
      let x = geometry.right + 118;
      sums.by.forEach((r, h) => { const w = span * r[k] / sums.most; g.fillStyle = ink(h); g.globalAlpha = .8; g.fillRect(x, geometry.y(k) - 3.5, w, 7); x += w; });
      g.globalAlpha = 1;
      write(g, sums.by.reduce((s, r) => s + r[k], 0).toFixed(1), x + 5, geometry.y(k) + .5, {color: p["ink-3"]});
    }
  }
  // text mirror: edges of the pinned token, or the strongest of the drawn edges
  function list() {
    const pin = parsePin(model.pin), act = pin && !hover ? active() : null, rows = [];
    if (act) {
      const other = act.side === "q" ? "k" : "q";
      frame.heads.forEach((_, h) => { for (let i = 0; i < size(other); i++) { const w = pair(h, act, i); if (w >= MIN_WEIGHT && !hidden(other, i)) rows.push(act.side === "q" ? [h, act.index, i, w] : [h, i, act.index, w]); } });
    } else {
      const all = Float64Array.from(edges.flatMap(e => e.value)).sort(), least = all.length > LISTED ? all[all.length - LISTED] : 0;
      edges.forEach((e, h) => e.value.forEach((w, i) => { if (w >= least) rows.push([h, e.query[i], e.key[i], w]); }));
    }
    rows.sort((a, b) => b[3] - a[3] || a[0] - b[0] || a[1] - b[1] || a[2] - b[2]);
    rows.length = Math.min(rows.length, LISTED);
    table.set(["Head", "Query", "Key", "Weight"], rows.map(([h, q, k, w]) => [frame.heads[h], label("q", q), label("k", k), number(w, 3)]),
      rows.map(([h, q, k, w]) => ({head: frame.heads[h], q: q + frame.query_start, k: k + frame.key_start, weight: w.toFixed(6)})));
  }

  function hit(event) {
    const [a, b] = pointerIn(event, plot), [x, y] = flat() ? [b, a] : [a, b], i = flat() ? geometry.index(y) : Math.floor((y - TOP) / geometry.row), side = x < geometry.left + 6 ? "q" : x > geometry.right - 6 ? "k" : null;
    return side && i >= 0 && i < size(side) ? {side, index: i} : null;
  }
  function setHover(next) {
    if ((next && `${next.side}${next.index}`) === (hover && `${hover.side}${hover.index}`)) return;
    hover = next;
    paintBase(); paintTop();
    if (frame.group) document.dispatchEvent(new CustomEvent("headatlas-hover", {detail: {group: frame.group, me, side: next?.side, row: next && frame.rows[next.side][next.index]}}));
  }
  // compared views mark the same row
  const follow = event => {
    const {group, me: from, side, row} = event.detail, index = side && frame.rows ? frame.rows[side].indexOf(row) : -1;
    if (!frame.group || group !== frame.group || from === me || !geometry) return;
    hover = index >= 0 ? {side, index} : null;
    paintBase(); paintTop();
  };
  document.addEventListener("headatlas-hover", follow);
  model.on("remove", () => document.removeEventListener("headatlas-hover", follow));
  plot.addEventListener("mousemove", event => {
    if (!geometry || !tokens.q) return;
    const token = hit(event);
    setHover(token);
    plot.style.cursor = token ? "pointer" : "default";
    if (!token) return tip.hide();
    if (tip.about === link) return tip.move(event);   // same token, same picture
    const {side, index} = token, other = side === "q" ? "k" : "q", piece = tokens[side].pieces[index + start(side)];
    tip.show(event, `${side === "q" ? "query" : "key"} ${label(side, index)}`, [["Position", String(index + start(side))], ...(piece ? [["Piece", piece]] : []),
      ...frame.heads.map((name, h) => {
        let best = -1, most = -1;
        const {values, n} = linkOf(token);
        for (let i = 0; i < n; i++) { const w = values[h * n + i]; if (w > most && !hidden(other, i)) { most = w; best = i; } }
        return {name, best, most};
      }).sort((a, b) => frame.heads.length > TOLD ? b.most - a.most : 0).slice(0, TOLD).map(({name, best, most}) => [`Head ${name} ${side === "q" ? "\u2192" : "\u2190"} ${best < 0 ? "" : label(other, best)}`, best < 0 ? "" : number(most, 3)])], edgeHint(side), link);
  });
  plot.addEventListener("mouseleave", () => { tip.hide(); if (tokens.q) setHover(null); });
  plot.addEventListener("click", event => {
    const token = tokens.q && geometry && hit(event);
    if (!token) return;
    const pin = parsePin(model.pin), index = token.index + start(token.side);
    if (!event.shiftKey || !pin || pin.side === token.side) return pinTo({side: token.side, index});
    model.pin = pin.other === index ? formatPin(pin) : `${formatPin(pin)}${token.side}${index}`;
  });
  const edgeHint = side => { const pin = parsePin(model.pin); return pin && pin.side !== side ? `click to pin \u00B7 Shift click: the edge with ${tokens[pin.side].labels[pin.index] ?? ""}` : "click to pin"; };
  body.addEventListener("scroll", onceAFrame(() => { if (tokens.q && geometry) { paintBase(); paintTop(); } }));
  function pinTo(pin) { model.pin = pin && formatPin(pin) !== model.pin ? formatPin(pin) : ""; }
  keyboard(model, plot, {
    Escape: () => { if (model.pin) model.pin = ""; },
    n: () => table.toggle(),
    ArrowDown: () => step(1), ArrowUp: () => step(-1),
    ArrowRight: () => cross("k"), ArrowLeft: () => cross("q"),
  });
  function step(by) {
    const pin = parsePin(model.pin) || {side: "q", index: start("q") - by};
    model.pin = formatPin({side: pin.side, index: clamp(pin.index + by, 0, (pin.side === "q" ? frame.n_queries : frame.n_keys) - 1)});
  }
  function cross(side) {
    const pin = parsePin(model.pin);
    if (pin) model.pin = formatPin({side, index: clamp(pin.index, 0, (side === "q" ? frame.n_queries : frame.n_keys) - 1)});
  }
  function pinned() {
    if (!tokens.q || !geometry) return;
    hover = null;
    paintBase(); paintTop(); list();
    reveal();
  }
  function reveal() {
    const act = active();
    if (!act) return;
    const y = geometry.y(act.index);
    if (flat()) { if (y < body.scrollLeft + TOP || y > body.scrollLeft + body.clientWidth - TOP) body.scrollLeft = y - body.clientWidth / 2; return; }
    if (y < body.scrollTop + TOP || y > body.scrollTop + body.clientHeight - TOP) body.scrollTop = y - body.clientHeight / 2;
  }

  model.on(["frame", "tokens"], take);
  model.on("pin", pinned);
  model.on(["share", "keys", "hide_special", "high", "renormalised"], () => { hide = model.hide_special; if (tokens.q) { sums = {}; choose(); draw(); } });
  model.on("pooling", () => { lastInputs = []; take(); });
  model.on("layout", () => { if (tokens.q) { paintKey = ""; draw(); } });
  model.on("note", () => { sub.textContent = model.note; });
  sub.textContent = model.note;
  const stop = onWidth(body, w => { width = w; draw(); });
  model.on("remove", stop);
  take();
}
