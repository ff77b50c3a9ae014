// One attention row from its vectors, computed in the browser: the part of each dimension, and the row with scaled
// dimensions.

// part of each dimension in the score of key `focus`, relative to the mean of the other keys of the mask
// (geometry.dimension_parts)
export function dimensionParts(frame, focus) {
  const d = frame.query.length, n = frame.seen.length, mean = new Float64Array(d);
  let others = 0;
  for (let k = 0; k < n; k++) if (k !== focus && frame.seen[k]) { others++; for (let i = 0; i < d; i++) mean[i] += frame.keys[k * d + i]; }
  return Float64Array.from(mean, (sum, i) => frame.query[i] * (frame.keys[focus * d + i] - (others ? sum / others : 0)) * frame.scaling);
}

// {scores, attention, edited} of the row if dimension i is scaled by scale[i]; those of the frame if nothing is scaled
export function rescaleRow(frame, scale) {
  const d = frame.query.length, n = frame.seen.length, factors = [...scale.entries()].filter(([, s]) => s !== 1);
  if (!factors.length || !frame.rebuilt.length) return {scores: frame.scores, attention: frame.rebuilt, edited: false};
  const scores = new Float64Array(n);
  for (let k = 0; k < n; k++) {
    let raw = 0;
    for (let i = 0; i < d; i++) raw += frame.query[i] * frame.keys[k * d + i] * (scale.has(i) ? scale.get(i) : 1);
    raw *= frame.scaling;
    scores[k] = (frame.softcap ? frame.softcap * Math.tanh(raw / frame.softcap) : raw) + (frame.bias?.length ? frame.bias[k] : 0);
  }
  // attention that goes to no key (a sink) stays in the sum
  let top = frame.logsumexp;
  for (let k = 0; k < n; k++) if (frame.seen[k]) top = Math.max(top, scores[k]);
  let before = 0, after = 0;
  for (let k = 0; k < n; k++) if (frame.seen[k]) { before += Math.exp(frame.scores[k] - top); after += Math.exp(scores[k] - top); }
  const sink = Math.max(0, Math.exp(frame.logsumexp - top) - before), sum = after + (sink > 1e-3 * before ? sink : 0);
  return {scores, attention: Float64Array.from(scores, (s, k) => frame.seen[k] ? Math.exp(s - top) / sum : 0), edited: true};
}

// factors of dimensions as text, "12,44:0+7:0.5" (state/address_values.read_factors), <-> Map of dimension -> factor
export const parseFactors = text => new Map((text || "").split("+").filter(Boolean).flatMap(term => { const [dims, factor] = term.split(":"); return dims.split(",").map(d => [+d, +factor]); }));
export const formatFactors = scale => byFactor(scale).map(([factor, dims]) => `${dims.join(",")}:${factor}`).join("+");
function byFactor(scale) {
  const members = new Map();
  for (const [d, factor] of [...scale].filter(([, f]) => f !== 1).sort(([a], [b]) => a - b)) members.set(factor, [...(members.get(factor) || []), d]);
  return [...members];
}

// groups of dimensions that are scaled together: rotary pairs, then the dimensions of none; else each dimension alone
export function groupsOf(order, n, pairs) {
  if (order !== "pairs" || !pairs.length) return Array.from({length: n}, (_, i) => [i]);
  const paired = new Set(pairs.flat());
  return [...pairs, ...Array.from({length: n}, (_, i) => [i]).filter(([i]) => !paired.has(i))];
}

// order of the dimensions: as they are, by the size of their part, or with rotary pairs side by side, the fastest first
export function orderOf(order, parts, pairs) {
  const d = parts.length, all = Array.from({length: d}, (_, i) => i);
  if (order === "part") return all.sort((a, b) => Math.abs(parts[b]) - Math.abs(parts[a]) || a - b);
  if (order === "pairs" && pairs.length) { const paired = new Set(pairs.flat()); return [...pairs.flat(), ...all.filter(i => !paired.has(i))]; }
  return all;
}

// {"what-if", intervene}: commands that scale the same dimensions over the corpus of the store, and in its model
// (rotary pairs by number if `order` puts them side by side)
export function commandsOf(frame, scale, order) {
  const groups = byFactor(scale), pairs = order === "pairs" ? frame.pairs : [];
  if (!groups.length || !frame.store) return {};
  const terms = groups.flatMap(([factor, dims]) => {
    const whole = [...pairs.keys()].filter(i => pairs[i].every(d => dims.includes(d))), alone = dims.filter(d => !whole.some(i => pairs[i].includes(d)));
    return [...(whole.length ? [`pairs:${whole.join(",")}:${factor}`] : []), ...(alone.length ? [`${alone.join(",")}:${factor}`] : [])];
  });
  const change = terms.join("+"), site = frame.site ? ` --site ${frame.site}` : "";
  const store = /^[\w.,:@%+/][\w.,:@%+/-]*$/.test(frame.store) ? frame.store : `'${frame.store.replaceAll("'", "'\\''")}'`;
  return {"what-if": `headatlas what-if ${store} --head ${frame.head} --dimensions ${change}${site}`, intervene: `headatlas intervene JOB.toml --heads ${frame.head} --do dimensions:${change}${site}`};
}
