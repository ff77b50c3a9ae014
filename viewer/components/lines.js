import { MIN_WEIGHT } from "../_js/constants.js";
// Selection of the edges of a head view, and painting of lines; no elements. `strongestEdges` is
// geometry.strongest_edges.

const SQRT8 = new Float64Array(256).map((_, c) => Math.fround((c / 255) * (c / 255)));

// weight(head, q, k) of a frame in either codec
export function weights(frame) {
  const [, rows, columns] = frame.shape, a = frame.attention, size = rows * columns;
  return frame.codec === "sqrt8" ? (h, q, k) => SQRT8[a[h * size + q * columns + k]] : (h, q, k) => a[h * size + q * columns + k];
}

export function strongestEdges(weight, head, {rows, columns, causal, share, keys, queryShown, keyShown, offset = 0}) {
  const query = [], key = [], value = [], shownKeys = Uint8Array.from({length: columns}, (_, k) => +keyShown(k));
  const values = new Float64Array(columns);
  let pairs = 0, mass = 0, rowMass = 0;
  for (let q = 0; q < rows; q++) {
    if (!queryShown(q)) continue;
    const strong = [], last = causal ? Math.min(columns, q + offset + 1) : columns;
    let total = 0;
    for (let k = 0; k < columns; k++) {
      const w = values[k] = weight(head, q, k);
      rowMass += w;
      if (k >= last || !shownKeys[k]) continue;
      pairs++; total += w;
      if (w >= MIN_WEIGHT) strong.push(k);
    }
    mass += total;
    strong.sort((a, b) => values[b] - values[a] || a - b);
    let sum = 0;
    for (let i = 0; i < strong.length && i < keys && sum < share * total; i++) {
      query.push(q); key.push(strong[i]); value.push(values[strong[i]]);
      sum += values[strong[i]];
    }
  }
  return {query, key, value, pairs, mass, rowMass, drawn: value.length, drawnMass: value.reduce((s, w) => s + w, 0)};
}

// Paint lines with one path for each of 16 strengths: 130,000 lines are 16 strokes. `y1`, `y2` give heights by
// position, `high` is the weight of the strongest strength. Lines entirely outside `within` [from, until] are skipped.
export function paintLines(context, edges, {x1, x2, y1, y2, color, alpha, width, from = 0, high = 1, within = [-Infinity, Infinity]}) {
  const paths = new Map(), bend = (x2 - x1) * .36;
  for (let i = 0; i < edges.value.length; i++) {
    const w = edges.value[i] / high;
    if (w < from) continue;
    const a = y1(edges.query[i]), b = y2(edges.key[i]);
    if (Math.max(a, b) < within[0] - 4 || Math.min(a, b) > within[1] + 4) continue;
    const bucket = Math.min(15, Math.floor(w * 16));
    let path = paths.get(bucket);
    if (!path) paths.set(bucket, path = context.newPath ? context.newPath() : new Path2D());
    path.moveTo(x1, a);
    path.bezierCurveTo(x1 + bend, a, x2 - bend, b, x2, b);
  }
  context.strokeStyle = color;
  for (const bucket of [...paths.keys()].sort((a, b) => a - b)) {
    const w = (bucket + .5) / 16;
    context.globalAlpha = alpha(w); context.lineWidth = width(w);
    context.stroke(paths.get(bucket));
  }
  context.globalAlpha = 1;
}
