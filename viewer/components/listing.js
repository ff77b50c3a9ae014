import { MAX_THUMBNAIL } from "../_js/constants.js";
import { gridNames, parseHeads } from "../_js/paint.js";
import { WEIGHT } from "../_js/maps.js";
// Frames of standalone documents, made in the browser from all maps of an example. They are those of
// frames/view_frames.py and frames/detail_frames.py. A part is {attention, codec, shape: [layer, head, query, key],
// layers, columns, causal, query, key|null, vectors|null}. A range {name, q: [start, stop], k: [start, stop]} is the
// shown section of a part.

export const keysOf = part => part.key || part.query;
export const partNames = part => gridNames({shape: part.shape, layers: part.layers, columns: part.columns});
export const cellsOf = (part, selected) => { const names = partNames(part); return parseHeads(selected).map(names.cell).filter(([l, h]) => l >= 0 && h >= 0); };
const span = ([start, stop]) => Array.from({length: stop - start}, (_, i) => start + i);
const descending = (indices, value) => indices.sort((a, b) => value(b) - value(a) || a - b);

// weight(q, k) of one head
export function weightOf(part, [l, h]) {
  const [, heads, rows, columns] = part.shape, start = (l * heads + h) * rows * columns, a = part.attention;
  return part.codec === "sqrt8" ? (q, k) => WEIGHT[a[start + q * columns + k]] : (q, k) => a[start + q * columns + k];
}

export function cutTokens(tokens, [start, stop]) {
  return {labels: tokens.labels.slice(start, stop), special: tokens.special.slice(start, stop), pieces: tokens.pieces.slice(start, stop)};
}

export function headFrame(part, cells, range, id) {
  const [, heads, rows, columns] = part.shape, nq = range.q[1] - range.q[0], nk = range.k[1] - range.k[0], attention = new part.attention.constructor(cells.length * nq * nk);
  cells.forEach(([l, h], i) => { for (let q = 0; q < nq; q++) { const start = ((l * heads + h) * rows + q + range.q[0]) * columns + range.k[0]; attention.set(part.attention.subarray(start, start + nk), (i * nq + q) * nk); } });
  return {id, attention, codec: part.codec, heads: cells.map(cell => partNames(part).name(...cell)), causal: part.causal, shape: [cells.length, nq, nk],
    query_start: range.q[0], key_start: range.k[0], n_queries: rows, n_keys: columns, part: range.name};
}

// Square-root bytes. If a side is longer than `limit`, a pixel is the strongest of its block.
export function modelFrame(part, range, id, limit = MAX_THUMBNAIL) {
  const [layers, heads] = part.shape, size = ([a, b]) => Math.min(limit, b - a), nq = size(range.q), nk = size(range.k);
  const blocks = ([a, b], n) => Int32Array.from({length: b - a}, (_, i) => { let block = Math.floor((i * n) / (b - a)); while (block + 1 < n && Math.floor((block + 1) * (b - a) / n) <= i) block++; return block; });
  const rows = blocks(range.q, nq), columns = blocks(range.k, nk), codes = new Uint8Array(layers * heads * nq * nk);
  const code = part.codec === "sqrt8" ? x => x : x => Math.floor(Math.fround(Math.fround(Math.fround(Math.sqrt(Math.min(1, Math.max(0, x)))) * 255) + .5));
  for (let m = 0; m < layers * heads; m++) for (let q = 0; q < rows.length; q++) {
    const from = (m * part.shape[2] + q + range.q[0]) * part.shape[3] + range.k[0], to = (m * nq + rows[q]) * nk;
    for (let k = 0; k < columns.length; k++) { const v = code(part.attention[from + k]), index = to + columns[k]; if (v > codes[index]) codes[index] = v; }
  }
  return {id, codes, shape: [layers, heads, nq, nk], n_queries: rows.length, n_keys: columns.length, layers: part.layers, columns: part.columns};
}

const open = (tokens, hide) => i => !(hide && tokens.special[i]);

// Value of each head: weight of the pinned edge (without one, of the strongest edge of `cell` at the pinned token), or
// without a pin the mean over rows of the strongest key
export function pickerFrame(part, pin, range, hide, cell = [0, 0]) {
  const [layers, heads] = part.shape, values = new Float32Array(layers * heads), keys = keysOf(part), pinned = pin && (pin.side === "q" ? range.q : range.k);
  const inside = pinned && pin.index >= pinned[0] && pin.index < pinned[1];
  const queries = span(range.q).filter(open(part.query, hide)), columns = span(range.k).filter(open(keys, hide));
  const link = (weight, i) => pin.side === "q" ? weight(pin.index, i) : weight(i, pin.index), chosen = weightOf(part, cell), others = pin?.side === "q" ? columns : queries;
  const partner = !inside ? -1 : pin.other ?? others.reduce((best, i) => best < 0 || link(chosen, i) > link(chosen, best) ? i : best, -1);
  for (let l = 0; l < layers; l++) for (let h = 0; h < heads; h++) {
    const weight = weightOf(part, [l, h]);
    const strongest = q => { let most = 0; for (const k of columns) { const w = weight(q, k); if (w > most) most = w; } return most; };
    values[l * heads + h] = inside ? partner < 0 ? 0 : link(weight, partner)
      : queries.reduce((sum, q) => sum + strongest(q), 0) / Math.max(1, queries.length);
  }
  return {values, shape: [layers, heads], layers: part.layers, columns: part.columns, title: inside ? partner < 0 ? "no edge of the pinned token is shown" : `weight of ${[part.query.labels[pin.side === "q" ? pin.index : partner], keys.labels[pin.side === "q" ? partner : pin.index]].join(" \u2192 ")}` : "mean strongest key"};
}

export function strongestFrame(part, cells, range, hide, n = 9) {
  const edges = [], names = partNames(part), keys = keysOf(part), queries = span(range.q).filter(open(part.query, hide)), columns = span(range.k).filter(open(keys, hide));
  let least = 0;   // weight of the last listed edge; of equal weights the first one stays
  cells.forEach((cell, slot) => { const weight = weightOf(part, cell); for (const q of queries) for (const k of columns) {
    const w = weight(q, k);
    if (!(w > least)) continue;
    let rank = edges.length;
    while (rank && edges[rank - 1][3] < w) rank--;
    edges.splice(rank, 0, [slot, q, k, w]);
    if (edges.length > n) edges.pop();
    if (edges.length === n) least = edges[n - 1][3];
  } });
  return {heads: cells.map(cell => names.name(...cell)), alone: true,
    edges: edges.map(([slot, query, key, weight]) => ({slot, query, key, labels: [part.query.labels[query], keys.labels[key]], weight}))};
}

export function pinnedFrame(part, cells, pin, range, hide, n = cells.length < 3 ? 8 : 6) {
  const names = partNames(part), own = pin.side === "q" ? part.query : keysOf(part), others = pin.side === "q" ? keysOf(part) : part.query;
  const reach = pin.side === "q" ? range.k : range.q, maps = cells.map(cell => weightOf(part, cell)), link = (map, i) => pin.side === "q" ? map(pin.index, i) : map(i, pin.index);
  const of = i => maps.map(map => link(map, i)), peak = i => Math.max(0, ...of(i)), total = some => maps.map(map => some.reduce((sum, i) => sum + link(map, i), 0));
  const all = span(reach), hidden = all.filter(i => hide && others.special[i]), order = descending(all.filter(open(others, hide)), peak);
  const count = Math.min(n, Math.max(3, order.filter(i => peak(i) >= .01).length)), top = order.slice(0, count), remainder = order.slice(count);
  const row = (tokens, i, weights) => ({label: tokens.labels[i], position: i, weights}), same = !part.key && range.q[0] === range.k[0] && range.q[1] === range.k[1];
  const frame = {side: pin.side, position: pin.index, label: own.labels[pin.index], heads: cells.map(cell => names.name(...cell)), rows: top.map(i => row(others, i, of(i))),
    rest: remainder.length ? total(remainder) : [], hidden: hidden.length ? total(hidden) : [], back: [], turns: same, edge: {}, partner: -1, alone: true};
  if (top.length) {
    const best = frame.partner = pin.other ?? top[0], everywhere = [], pair = [own.labels[pin.index], others.labels[best]];
    for (let l = 0; l < part.shape[0]; l++) for (let h = 0; h < part.shape[1]; h++) everywhere.push({head: names.name(l, h), weight: link(weightOf(part, [l, h]), best)});
    frame.edge = {title: pin.side === "q" ? pair : pair.reverse(), heads: descending([...everywhere.keys()], i => everywhere[i].weight).slice(0, 5).map(i => everywhere[i])};
  }
  if (same) {
    const back = i => Math.max(...maps.map(map => pin.side === "q" ? map(i, pin.index) : map(pin.index, i)));
    frame.back = descending(all.filter(i => i !== pin.index && !(hide && own.special[i])), back).slice(0, 3).map(i => row(own, i, [back(i)]));
  }
  return frame;
}

export function detailFrame(part, cell, range, hide) {
  const keys = cutTokens(keysOf(part), range.k), queries = cutTokens(part.query, range.q), nq = queries.labels.length, nk = keys.labels.length, weight = weightOf(part, cell);
  const attention = Float32Array.from({length: nq * nk}, (_, i) => weight(range.q[0] + Math.floor(i / nk), range.k[0] + i % nk)), {edges} = strongestFrame(part, [cell], range, hide, 6);
  return {head: partNames(part).name(...cell), attention, shape: [nq, nk], causal: part.causal && !range.name, labels: [queries.labels, keys.labels], special: [queries.special, keys.special],
    facts: [], alone: true, edges: edges.map(e => ({...e, query: e.query - range.q[0], key: e.key - range.k[0]}))};
}

// One row of one head from its vectors (view_frames.neuron_frame). `part.vectors` has query, key, logsumexp and
// constants of the site.
export function neuronFrame(part, [l, h], q, id) {
  const v = part.vectors, [, heads, rows, n] = part.shape, d = v.d_head, kv = Math.floor(h / v.n_sharing), kvHeads = heads / v.n_sharing, index = (l * heads + h) * rows + q;
  const query = v.query.slice(index * d, (index + 1) * d), from = (l * kvHeads + kv) * n, keys = v.key.slice(from * d, (from + n) * d), logsumexp = v.logsumexp[index];
  const softcap = v.softcap[l], scaling = v.scaling[l], scores = new Float32Array(n), mask = new Uint8Array(n);
  const span = rows + n - 1, bias = v.bias ? v.bias.slice((l * heads + h) * span + rows - 1 - q, (l * heads + h) * span + rows - 1 - q + n) : new Float32Array(0);
  const rebuilt = new Float32Array(v.position_bias && !bias.length ? 0 : n), stored = part.attention ? Float32Array.from({length: n}, (_, k) => weightOf(part, [l, h])(q, k)) : new Float32Array(0);
  for (let k = 0; k < n; k++) {
    let raw = 0;
    for (let i = 0; i < d; i++) raw += query[i] * keys[k * d + i];
    raw *= scaling;
    const score = (softcap ? softcap * Math.tanh(raw / softcap) : raw) + (bias.length ? bias[k] : 0);
    scores[k] = score;
    mask[k] = v.masks[(v.mask_of[l] * rows + q) * n + k];
    if (rebuilt.length) rebuilt[k] = mask[k] ? Math.exp(Math.min(score - logsumexp, 0)) : 0;
  }
  const shown = stored.length ? stored : rebuilt;
  let focus = 0;
  shown.forEach((w, k) => { if (mask[k] && (!mask[focus] || w > shown[focus])) focus = k; });
  return {id, query, keys, scores, bias, seen: mask, rebuilt, stored, focus, head: partNames(part).name(l, h), query_pos: q, kv_head: v.kv_heads[kv], n_sharing: v.n_sharing,
    scaling, softcap: softcap || 0, rotary: v.rotary, pairs: v.pairs, store: "", site: "", codec: v.codec, logsumexp};
}
