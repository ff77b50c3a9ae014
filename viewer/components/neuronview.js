import { MAX_WINDOW } from "../_js/constants.js";
import { plain, number, count, signedNumber, parsePin, clamp } from "../_js/paint.js";
import { el, mount, fit, write, tooltip, pointerIn, onWidth, mirror, keyboard } from "../_js/dom.js";
import { CSS } from "../_js/style.js";
import { dimensionParts, rescaleRow, orderOf, commandsOf, groupsOf, parseFactors, formatFactors } from "../_js/vectors.js";
import { dimensionList, DIMENSIONS_CSS } from "../_js/dimensions.js";

const OWN = `
.two { display: grid; grid-template-columns: minmax(0, 1fr) 296px; gap: 12px; height: 100% } .body.flush { padding: 6px 0 8px } .plot { position: relative; outline-offset: -2px }
.tok { box-shadow: inset 0 0 0 1.5px var(--accent); border-radius: 3px; padding: 0 6px; font-weight: 600; unicode-bidi: isolate } .seg.small { flex: none } .seg.small button { height: 22px; padding: 0 8px; white-space: nowrap } .card > header .sub { white-space: nowrap } .card > header .tok { max-width: 160px; flex: none } .card > header .sub { flex: none } .card > header .count { flex: 0 1000 auto; overflow: hidden; text-overflow: ellipsis }
@media (max-width: 1100px) { .two { grid-template-columns: minmax(0, 1fr); grid-template-rows: minmax(420px, 1fr) 300px; overflow: auto } }
bdi { unicode-bidi: isolate } .legend { display: flex; align-items: center; gap: 6px; font-size: 11px; color: var(--ink-2) }
`;
const TOP = 116;

export function render({model, el: host}) {
  const {root, paint} = mount(model, host, CSS + OWN + DIMENSIONS_CSS, () => draw());
  const tip = tooltip(root), sub = el("span.sub"), token = el("span.tok.ell"), spot = el("span.sub.num"), counts = el("span.count.num"), orders = el("div.seg.small"), canvas = el("canvas", {role: "img"});
  const plot = el("div.plot", {tabindex: 0, role: "group", "aria-label": "neuron view: query, keys, products, score and attention of one row"}, canvas), body = el("div.body.flush", null, plot), side = el("div.body");
  const card = el("section.card", {"data-picture": "neuron view", "data-figure": ""}, el("header", null, el("h2", null, "Neuron view"), sub, token, spot, counts, orders), body), right = el("section.card", null, side);
  root.append(el("div.two", null, card, right));
  const table = mirror(card, "scores and attention of the row"), dims = mirror(right, "dimensions by their part");
  let frame = {}, tokens = {}, width = 0, focus = 0, dim = null, scale = new Map(), parts = [], order = [], rows = [], now = {}, g0 = null, hover = null;
  const label = k => tokens.k.labels[k] ?? "", before = () => scaled(frame.stored.length ? frame.stored : frame.rebuilt);

  function take() {
    const next = plain(model.frame), sides = plain(model.tokens);
    if (next.message || !next.query) { frame = next; return message(); }
    if (sides.id !== next.id || !sides.query) return;
    frame = next; tokens = {q: sides.query, k: sides.key || sides.query};
    body.querySelector(".message")?.remove(); plot.hidden = false; right.style.visibility = ""; token.style.display = orders.style.display = "";
    sub.textContent = `head ${frame.head}, query`; token.textContent = tokens.q.labels[frame.query_pos] ?? "";
    counts.textContent = agreement(); counts.dataset.worst = worst().toFixed(6);
    update();
  }
  function message() {
    tokens = {}; plot.hidden = true; right.style.visibility = "hidden"; token.style.display = orders.style.display = "none";
    sub.textContent = spot.textContent = counts.textContent = ""; body.querySelector(".message")?.remove();
    if (frame.message) body.append(el("div.message", null, el("b", null, frame.message.title), frame.message.text));
    table.set(["Key", "Score", "Rebuilt", "Stored"], []); dims.set(["Dimension", "Part"], []);
  }
  // largest difference between the stored attention and the attention rebuilt from the vectors
  function worst() {
    let most = 0;
    if (frame.stored.length && frame.rebuilt.length) for (let k = 0; k < frame.stored.length; k++) most = Math.max(most, Math.abs(frame.stored[k] - frame.rebuilt[k]));
    return most;
  }
  function agreement() {
    const summary = `${frame.query.length} dimensions${frame.codec ? ` \u00B7 ${frame.codec}` : ""}${frame.bias?.length ? " \u00B7 position bias added" : ""}`;
    if (!frame.rebuilt.length) return `${summary} \u00B7 scores lack a position bias that is not stored: attention as stored`;
    return frame.stored.length ? `${summary} \u00B7 rebuilt within ${number(worst(), 4)} of the stored attention` : `${summary} \u00B7 attention rebuilt from the vectors`;
  }
  function update() {
    rows = Array.from(frame.seen.keys()).filter(k => frame.seen[k] && !(model.hide_special && tokens.k.special[k]));
    const n = rows.length;   // of a long text only the strongest keys are drawn: a canvas has no room for all
    if (n > MAX_WINDOW) { const strongest = new Set([...rows].sort((a, b) => before()[b] - before()[a]).slice(0, MAX_WINDOW)); rows = rows.filter(k => strongest.has(k)); }
    spot.textContent = `position ${frame.query_pos}${n > rows.length ? ` \u00B7 the ${rows.length} strongest of ${count(n)} keys` : ""}`;
    focus = model.measured === "" ? frame.focus : +model.measured;
    scale = parseFactors(model.factors);
    if (!rows.includes(focus) && rows.length) focus = rows.reduce((best, k) => before()[k] > before()[best] ? k : best);   // a hidden key cannot be the focus
    parts = dimensionParts(frame, focus); now = rescaleRow(frame, scale); order = orderOf(model.order, parts, frame.pairs);
    dim = model.dim === "" || +model.dim >= parts.length ? orderOf("part", parts, frame.pairs)[0] : +model.dim;
    const names = ["dimension", "part", ...(frame.pairs.length ? ["pairs"] : [])];
    orders.replaceChildren(...names.map(name => el("button", {"aria-pressed": String(model.order === name), "data-order": name, onclick: () => { model.order = name; }}, {dimension: "as is", part: "by part", pairs: "pairs"}[name])));
    draw(); aside();
    const attention = shownAttention();
    table.set(["Key", "Score", "Attention", "Stored"], rows.map(k => [label(k), signedNumber(now.scores[k], 3), number(attention[k], 3), frame.stored.length ? number(frame.stored[k], 3) : ""]),
      rows.map(k => ({key: k, score: now.scores[k].toFixed(5), attention: attention[k].toFixed(6), stored: frame.stored.length ? frame.stored[k].toFixed(6) : ""})));
    dims.set(["Dimension", "Query", "Key", "Part"], order.map(d => [d, signedNumber(frame.query[d], 3), signedNumber(frame.keys[focus * frame.query.length + d], 3), number(parts[d], 3)]),
      order.map(d => ({dimension: d, part: parts[d].toFixed(6)})));
  }
  const shownAttention = () => scaled(now.edited ? now.attention : frame.rebuilt.length ? frame.rebuilt : frame.stored);
  // with `renormalised`, the weights of the shown keys add up to 1
  function scaled(weights) {
    if (!model.renormalised || !model.hide_special) return weights;
    const total = weights.reduce((sum, w, k) => tokens.k.special[k] ? sum : sum + w, 0) || 1;
    return weights.map((w, k) => tokens.k.special[k] ? 0 : w / total);
  }
  function aside() {
    const attention = shownAttention(), first = before(), top = [...rows].sort((a, b) => Math.max(attention[b], first[b]) - Math.max(attention[a], first[a])).slice(0, 6);
    let hidden = null;
    if (model.hide_special) { hidden = 0; for (let k = 0; k < frame.seen.length; k++) if (frame.seen[k] && tokens.k.special[k]) hidden += attention[k]; }
    const shared = frame.n_sharing > 1 ? `Key head ${frame.kv_head}, shared by ${frame.n_sharing} query heads. ` : "";
    dimensionList(side, {parts, scale, dim, paint: paint(), edited: now.edited, pairs: frame.pairs, commands: commandsOf(frame, scale, model.order), groups: groupsOf(model.order, parts.length, frame.pairs), canScale: frame.rebuilt.length > 0, hidden,
      rows: top.map(k => ({label: label(k), k, now: attention[k], before: first[k]})), setDim: d => { model.dim = String(d); },
      rescale: (dims, value) => {
        const changed = new Map(dims ? scale : []);
        for (const d of dims || []) changed.set(d, value);
        model.factors = formatFactors(changed);
      },
      note: [`Part: what a dimension adds to the score of `, el("bdi", {style: "font-weight:600;color:var(--ink)"}, label(focus)), `, against the mean of the other keys. `, shared,
        frame.pairs.length ? `After rotary embedding: dimensions ${frame.pairs[0].join(" and ")} turn together, and so do the others of a pair. ` : frame.rotary ? "After rotary embedding. " : "", frame.softcap ? `Scores are soft-capped at ${frame.softcap}. ` : "",
        frame.rebuilt.length ? "" : "The model adds a learned bias by position to these scores, so factors are off. "]});
  }
  function geometry() {
    const d = frame.query.length, label = 104, dot = 104, attention = 128, span = Math.max(60, Math.floor((width - label - 24 - 20 - dot - attention) / 2));
    const row = clamp((Math.max(200, body.clientHeight - 20) - TOP - 18) / Math.max(1, rows.length), 15, 48);
    return {d, xk: label, xp: label + span + 24, span, cell: span / d, xd: label + 2 * span + 44, xa: label + 2 * span + 44 + dot, row, height: Math.ceil(TOP + row * rows.length + 20), label: label - 12};
  }
  // image of vectors with one pixel per number; each of its rows is stretched later, with gaps between them
  function image(values, count) {
    const p = paint(), d = frame.query.length, c = document.createElement("canvas");
    c.width = d; c.height = Math.max(1, count);
    const context = c.getContext("2d"), data = context.createImageData(d, c.height), pixels = new Uint32Array(data.data.buffer);
    let most = 1e-9;
    for (let i = 0; i < d * count; i++) most = Math.max(most, Math.abs(values(Math.floor(i / d), order[i % d])));
    for (let i = 0; i < d * count; i++) { const v = values(Math.floor(i / d), order[i % d]) / most; pixels[i] = (v < 0 ? p.down : p.rise)[Math.floor(Math.pow(Math.abs(v), .7) * 255 + .5)]; }
    context.putImageData(data, 0, 0);
    return c;
  }
  function draw() {
    if (!width || !tokens.k) return;
    const p = paint(), o = g0 = geometry(), {d, xk, xp, xd, xa, span, cell, row} = o, g = fit(canvas, width, o.height), factor = i => scale.has(i) ? scale.get(i) : 1;
    plot.style.height = `${o.height}px`;
    const head = (text, x) => write(g, text, x, 12, {color: p.ink, size: 12, weight: 600}), root2 = Math.abs(frame.scaling * Math.sqrt(d) - 1) < 1e-3;
    head("key vectors", xk); head("query \u00D7 key", xp); head(root2 ? `q \u00B7 k / \u221A${d}` : `q \u00B7 k \u00D7 ${frame.scaling.toPrecision(3)}`, xd); head("attention", xa);
    g.imageSmoothingEnabled = false;
    write(g, tokens.q.labels[frame.query_pos] ?? "", o.label, 38, {align: "right", size: 12, weight: 600, color: p["accent-ink"]});
    g.drawImage(image((_, i) => frame.query[i], 1), xk, 29, span, 18);
    g.strokeStyle = p.accent; g.lineWidth = 1.5; g.strokeRect(xk - .75, 28.25, span + 1.5, 19.5);
    const caption = span < 210 ? ["part in the score of", label(focus).slice(0, 14)] : ["part of each dimension in the score of", `${label(focus)}, against the mean of the other keys`];
    caption.forEach((text, i) => write(g, text, xk, 66 + 15 * i, {color: p["ink-2"]}));
    const most = parts.reduce((m, v) => Math.max(m, Math.abs(v)), 1e-9), base = 72;
    g.fillStyle = p["line-2"]; g.fillRect(xp, base, span, 1);
    order.forEach((i, x) => { const h = 44 * parts[i] * factor(i) / most; g.fillStyle = h < 0 ? p.neg : p.pos; g.fillRect(xp + x * cell + .3, h < 0 ? base : base - h, Math.max(.6, cell - .6), Math.abs(h)); });
    if (frame.pairs.length * 2 === d && frame.pairs.every(([a, b]) => a < d / 2 && b === a + d / 2) && model.order === "dimension") for (const x of [xk, xp]) ["first of each pair", "second"].forEach((text, i) => { g.fillStyle = p["line-2"]; g.fillRect(x + i * span / 2 + 1, TOP - 8, span / 2 - 3, 1); write(g, text, x + (i + .5) * span / 2, TOP - 16, {align: "center", size: 10, color: p["ink-3"]}); });
    const keys = image((r, i) => frame.keys[rows[r] * d + i], rows.length), products = image((r, i) => frame.query[i] * frame.keys[rows[r] * d + i] * factor(i), rows.length);
    const attention = shownAttention(), first = before(), top = rows.reduce((m, k) => Math.max(m, Math.abs(now.scores[k])), 1e-9);
    rows.forEach((k, r) => {
      const y = TOP + r * row, middle = y + row / 2, gap = row > 20 ? 2 : 1, on = k === focus || k === hover;
      if (k === hover) { g.fillStyle = p["surface-2"]; g.fillRect(0, y, width, row); }
      write(g, label(k).slice(0, 16), o.label, middle, {align: "right", size: 12, weight: on ? 600 : 400, color: on ? p.ink : p["ink-2"]});
      g.drawImage(keys, 0, r, d, 1, xk, y + gap, span, row - 2 * gap); g.drawImage(products, 0, r, d, 1, xp, y + gap, span, row - 2 * gap);
      const zero = xd + 30, bar = 28 * now.scores[k] / top;
      g.fillStyle = p["line-2"]; g.fillRect(zero, y + 1, 1, row - 2);
      g.fillStyle = bar < 0 ? p.neg : p.pos; g.fillRect(bar < 0 ? zero + bar : zero, middle - 4, Math.abs(bar), 8);
      write(g, signedNumber(now.scores[k], 1), xd + 88, middle, {align: "right", color: p["ink-2"]});
      g.fillStyle = p["surface-3"]; g.beginPath(); g.roundRect(xa, middle - 4, 78, 8, 2); g.fill();
      g.fillStyle = p.accent; g.beginPath(); g.roundRect(xa, middle - 4, Math.max(1.5, 78 * clamp(attention[k], 0, 1)), 8, 2); g.fill();
      if (now.edited || frame.stored.length) { g.fillStyle = p.ink; g.fillRect(xa + 78 * clamp(first[k], 0, 1) - .75, middle - 6, 1.5, 12); }
      write(g, number(attention[k]), xa + 110, middle, {align: "right", weight: attention[k] > .1 ? 600 : 400, color: p.ink});
    });
    g.strokeStyle = p.line; g.lineWidth = 1; for (const x of [xk, xp]) g.strokeRect(x - .5, TOP + .5, span + 1, rows.length * row - 1);
    const pair = model.order === "pairs" ? frame.pairs.findIndex(dims => dims.includes(dim)) : -1, x = order.indexOf(pair < 0 ? dim : frame.pairs[pair][0]) * cell, across = pair < 0 ? cell : 2 * cell;
    g.strokeStyle = p.ink; g.lineWidth = 1.5; for (const left of [xk, xp]) g.strokeRect(left + x - .75, TOP - 1, across + 1.5, rows.length * row + 2);
    write(g, pair < 0 ? `dim ${dim}` : `pair ${pair}`, clamp(xp + x + cell / 2, xp + 18, xp + span - 18), TOP + rows.length * row + 11, {align: "center", weight: 600, color: p.ink});
    canvas.setAttribute("aria-label", `head ${frame.head}, query ${tokens.q.labels[frame.query_pos]}: strongest key ${label(focus)}`);
  }
  function hit(event) {
    const [x, y] = pointerIn(event, canvas), k = rows[Math.floor((y - TOP) / g0.row)], column = [g0.xk, g0.xp].find(left => x >= left && x < left + g0.span);
    return {k: y >= TOP ? k : undefined, i: column === undefined ? undefined : order[Math.floor((x - column) / g0.cell)]};
  }
  canvas.addEventListener("mousemove", event => {
    if (!g0 || !tokens.k) return;
    const {k, i} = hit(event);
    canvas.style.cursor = k === undefined && i === undefined ? "default" : "pointer";
    if ((k ?? null) !== hover) { hover = k ?? null; draw(); }
    if (k === undefined) return tip.hide();
    const d = g0.d, key = frame.keys[k * d + i], attention = shownAttention();
    if (i !== undefined) tip.show(event, `dim ${i} \u00B7 ${label(k)}`, [["Query", signedNumber(frame.query[i], 3)], ["Key", signedNumber(key, 3)], ["Product, scaled", signedNumber(frame.query[i] * key * frame.scaling, 3), "", true],
      ...(frame.pairs.filter(pair => pair.includes(i)).map(pair => ["Rotary pair", `${frame.pairs.indexOf(pair)}: ${pair.join(" and ")}`]))], "click to choose the dimension");
    else tip.show(event, `${tokens.q.labels[frame.query_pos]} \u2192 ${label(k)}`, [["Score", signedNumber(now.scores[k], 3)], ["Attention", number(attention[k], 3), now.edited ? "changed" : frame.rebuilt.length ? "rebuilt" : "", true],
      ...(frame.stored.length ? [["Stored", number(frame.stored[k], 3)]] : []), ["Rank", `${1 + rows.filter(r => attention[r] > attention[k]).length}`]], "click to measure parts for this key");
  });
  canvas.addEventListener("mouseleave", () => { hover = null; tip.hide(); draw(); });
  canvas.addEventListener("click", event => {
    if (!g0 || !tokens.k) return;
    const {k, i} = hit(event);
    if (i !== undefined) model.dim = String(i); else if (k !== undefined) { model.measured = String(k); model.dim = ""; }
  });
  const step = by => () => { const pin = parsePin(model.pin); if (tokens.q) model.pin = `q${clamp((pin ? pin.index : frame.query_pos) + by, 0, tokens.q.labels.length - 1)}`; };
  keyboard(model, plot, {ArrowDown: step(1), ArrowUp: step(-1), n: () => { table.toggle(); }, Escape: () => { if (model.pin) model.pin = ""; }});

  take();
  model.on(["frame", "tokens"], take);
  model.on(["order", "hide_special", "renormalised", "factors", "dim", "measured"], () => { if (tokens.k) update(); });
  model.on("remove", onWidth(body, w => { width = w; draw(); }));
}
