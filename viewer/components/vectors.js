// One attention row from its vectors, in the browser: what a dimension adds, and the row after dimensions were scaled.

// part of each dimension in the score of key `focus`, against the mean of the other keys seen (geometry.dimension_parts)
export function dimensionParts(frame, focus) {
  const d = frame.query.length, n = frame.seen.length, mean = new Float64Array(d);
  let others = 0;
  for (let k = 0; k < n; k++) if (k !== focus && frame.seen[k]) { others++; for (let i = 0; i < d; i++) mean[i] += frame.keys[k * d + i]; }
  return Float64Array.from(mean, (sum, i) => frame.query[i] * (frame.keys[focus * d + i] - (others ? sum / others : 0)) * frame.scaling);
}

// scores and attention when dimension i counts scale[i] times: {scores, attention}. Without changes those of the frame.
export function rescaled(frame, scale) {
  const d = frame.query.length, n = frame.seen.length, edited = [...scale.entries()].filter(([, s]) => s !== 1);
  if (!edited.length || !frame.rebuilt.length) return {scores: frame.scores, attention: frame.rebuilt, edited: false};
  const scores = new Float64Array(n);
  for (let k = 0; k < n; k++) {
    let raw = 0;
    for (let i = 0; i < d; i++) raw += frame.query[i] * frame.keys[k * d + i] * (scale.has(i) ? scale.get(i) : 1);
    raw *= frame.scaling;
    scores[k] = (frame.softcap ? frame.softcap * Math.tanh(raw / frame.softcap) : raw) + (frame.bias?.length ? frame.bias[k] : 0);
  }
  // what takes attention besides the keys (a sink) keeps its place in the sum
  let top = frame.logsumexp;
  for (let k = 0; k < n; k++) if (frame.seen[k]) top = Math.max(top, scores[k]);
  let before = 0, after = 0;
  for (let k = 0; k < n; k++) if (frame.seen[k]) { before += Math.exp(frame.scores[k] - top); after += Math.exp(scores[k] - top); }
  const rest = Math.max(0, Math.exp(frame.logsumexp - top) - before), sum = after + (rest > 1e-3 * before ? rest : 0);
  return {scores, attention: Float64Array.from(scores, (s, k) => frame.seen[k] ? Math.exp(s - top) / sum : 0), edited: true};
}

// dimensions in the order shown: as they are, by the size of their part, or rotary pairs side by side
export function orderOf(order, parts) {
  const d = parts.length, all = Array.from({length: d}, (_, i) => i);
  if (order === "part") return all.sort((a, b) => Math.abs(parts[b]) - Math.abs(parts[a]) || a - b);
  if (order === "pairs" && d % 2 === 0) return all.map((_, i) => (i >> 1) + (i & 1) * d / 2);
  return all;
}
