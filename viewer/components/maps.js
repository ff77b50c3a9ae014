// Attention maps as pixels: one table maps codes to colours, one ImageData holds a map.

export const WEIGHT = new Float64Array(256).map((_, c) => Math.fround((c / 255) * (c / 255)));

// 256 packed colours for square-root codes under a scale of weights. All maps use the same table, so that they can be
// compared.
export function codeColours(paint, scale) {
  return Uint32Array.from(WEIGHT, w => paint.up[Math.min(255, Math.floor(scale(w) * 255 + .5))]);
}

// A map of rows x columns as a canvas with one pixel per cell. `keepRows` and `keepColumns` list the shown cells;
// `empty` is the colour of masked cells.
export function mapImage(code, rows, columns, colours, {keepRows, keepColumns, causal = false, empty = null} = {}) {
  const r = keepRows || Array.from({length: rows}, (_, i) => i), c = keepColumns || Array.from({length: columns}, (_, i) => i);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, c.length); canvas.height = Math.max(1, r.length);
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height), pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < r.length; i++) for (let j = 0; j < c.length; j++) {
    pixels[i * canvas.width + j] = empty !== null && causal && c[j] / columns > (r[i] + .999) / rows ? empty : colours[code(r[i], c[j])];
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Maps side by side as one canvas with one pixel per cell: `codes` from `start` on are `n` maps of rows x columns
export function mapStrip(codes, start, n, rows, columns, colours, keepRows, keepColumns) {
  const canvas = document.createElement("canvas"), across = keepColumns.length;
  canvas.width = Math.max(1, n * across); canvas.height = Math.max(1, keepRows.length);
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height), pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < keepRows.length; i++) {
    let to = i * canvas.width;
    for (let j = 0; j < n; j++) {
      const row = start + (j * rows + keepRows[i]) * columns;
      for (let c = 0; c < across; c++) pixels[to++] = colours[codes[row + keepColumns[c]]];
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Cells of one side that are shown while special tokens are hidden. In long examples a cell covers several tokens.
export function shownCells(special, cells, n, hide) {
  const keep = [];
  for (let i = 0; i < cells; i++) {
    const from = Math.floor(i * n / cells), to = Math.max(from + 1, Math.floor((i + 1) * n / cells));
    let any = !hide;
    for (let t = from; t < to && !any; t++) any = !special[t];
    if (any) keep.push(i);
  }
  return keep;
}
