// Pictures of a component as SVG, PNG or CSV, from files that work offline. (figures/ draws those of the server.) While `recording` is set, `fit` (dom.js) returns
// contexts that write SVG instead of pixels. Backgrounds, borders and text come from the elements of the page.

const SVG_NS = ["http:", "", "www.w3.org", "2000", "svg"].join("/");   // a name, not an address
let recording = null;   // Map of canvas -> SvgContext while svgOf runs, else null
export const recorderOf = canvas => {
  if (!recording) return null;
  const context = new SvgContext();
  recording.set(canvas, context);
  return context;
};

const escapeXml = text => String(text).replace(/[&<>"]/g, c => ({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})[c]);
const short = x => +(+x).toFixed(2);

class SvgPath {
  constructor() { this.d = ""; }
  moveTo(x, y) { this.d += `M${short(x)} ${short(y)}`; }
  lineTo(x, y) { this.d += `L${short(x)} ${short(y)}`; }
  bezierCurveTo(...p) { this.d += `C${p.map(short).join(" ")}`; }
  closePath() { this.d += "Z"; }
}
// The methods of a canvas context that the components use
class SvgContext extends SvgPath {
  constructor() {
    super();
    Object.assign(this, {out: [], moves: "", stack: [], fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, globalAlpha: 1, font: "11px sans-serif", textAlign: "left", textBaseline: "middle", dash: []});
  }
  put(tag, attributes, inner = "") {
    const allAttributes = this.moves ? {...attributes, transform: this.moves} : attributes;
    this.out.push(`<${tag} ${Object.entries(allAttributes).map(([k, v]) => `${k}="${escapeXml(v)}"`).join(" ")}${inner ? `>${inner}</${tag}>` : "/>"}`);
  }
  get fillAttributes() { return {fill: this.fillStyle, ...(this.globalAlpha < 1 ? {"fill-opacity": short(this.globalAlpha)} : {})}; }
  get strokeAttributes() { return {fill: "none", stroke: this.strokeStyle, "stroke-width": short(this.lineWidth), ...(this.globalAlpha < 1 ? {"stroke-opacity": short(this.globalAlpha)} : {}), ...(this.dash.length ? {"stroke-dasharray": this.dash.join(" ")} : {})}; }
  newPath() { return new SvgPath(); }
  beginPath() { this.d = ""; }
  rect(x, y, w, h) { this.d += `M${short(x)} ${short(y)}h${short(w)}v${short(h)}h${short(-w)}Z`; }
  roundRect(x, y, w, h) { this.rect(x, y, w, h); }
  arc(x, y, r) { this.d += `M${short(x - r)} ${short(y)}a${short(r)} ${short(r)} 0 1 0 ${short(2 * r)} 0a${short(r)} ${short(r)} 0 1 0 ${short(-2 * r)} 0`; }
  fill() { this.put("path", {d: this.d, ...this.fillAttributes}); }
  stroke(path = this) { this.put("path", {d: path.d, ...this.strokeAttributes}); }
  fillRect(x, y, w, h) { this.put("rect", {x: short(x), y: short(y), width: short(Math.abs(w)), height: short(Math.abs(h)), ...this.fillAttributes}); }
  strokeRect(x, y, w, h) { this.put("rect", {x: short(x), y: short(y), width: short(w), height: short(h), ...this.strokeAttributes}); }
  fillText(text, x, y) {
    const [, weight, size] = /^(?:(\d+) )?([\d.]+)px/.exec(this.font) || [];
    this.put("text", {x: short(x), y: short(y), "font-size": size || 11, ...(weight && weight !== "400" ? {"font-weight": weight} : {}), "text-anchor": {center: "middle", right: "end"}[this.textAlign] || "start",
      "dominant-baseline": {middle: "central", top: "hanging"}[this.textBaseline] || "alphabetic", ...this.fillAttributes}, escapeXml(text));
  }
  drawImage(image, ...coordinates) {
    let source = image, target = coordinates;
    if (coordinates.length === 8) {
      const [sx, sy, sw, sh] = coordinates;
      source = document.createElement("canvas"); source.width = Math.max(1, Math.round(sw)); source.height = Math.max(1, Math.round(sh));
      source.getContext("2d").drawImage(image, sx, sy, sw, sh, 0, 0, source.width, source.height);
      target = coordinates.slice(4);
    }
    const [x, y, w = image.width, h = image.height] = target;
    this.put("image", {x: short(x), y: short(y), width: short(w), height: short(h), preserveAspectRatio: "none", style: "image-rendering:pixelated", href: source.toDataURL("image/png")});
  }
  measureText(text) { return {width: String(text).length * 6}; }
  setLineDash(dash) { this.dash = dash; }
  save() { this.stack.push({moves: this.moves, fillStyle: this.fillStyle, strokeStyle: this.strokeStyle, lineWidth: this.lineWidth, globalAlpha: this.globalAlpha, font: this.font}); }
  restore() { Object.assign(this, this.stack.pop()); }
  translate(x, y) { this.moves += ` translate(${short(x)} ${short(y)})`; }
  rotate(angle) { this.moves += ` rotate(${short(angle * 180 / Math.PI)})`; }
  transform(...m) { this.moves += ` matrix(${m.map(short).join(" ")})`; }
  setTransform() { this.moves = ""; }
  clearRect() { this.out = []; }
}

// SVG text of the visible content of `card`. `repaint` redraws the component's canvases.
export function svgOf(card, repaint) {
  const frame = card.getBoundingClientRect(), parts = Object.assign([], {card});
  recording = new Map();
  try { repaint(); collect(card, frame, frame, parts); }
  finally { recording = null; repaint(); }
  const style = getComputedStyle(card), width = Math.ceil(frame.width), height = Math.ceil(frame.height) + TITLE, mm = pixels => `${short(pixels * 25.4 / 96)}mm`;
  return `<svg xmlns="${SVG_NS}" width="${mm(width)}" height="${mm(height)}" viewBox="0 0 ${width} ${height}" font-family="${escapeXml(style.fontFamily)}">` +
    `<rect width="${width}" height="${height}" fill="${style.backgroundColor}"/><text x="12" y="${TITLE - 8}" font-size="13" font-weight="600" fill="${style.color}">${escapeXml(document.title)}</text><g transform="translate(0 ${TITLE})">${parts.join("\n")}</g></svg>`;
}
const SKIPPED = ".mirror, .sr, .tip, .downloads, [hidden], button, label, input, select, textarea", TITLE = 26;   // no controls
function collect(node, frame, clip, parts) {
  if (node.matches(SKIPPED)) return;
  const style = getComputedStyle(node), box = node.getBoundingClientRect();
  if (style.display === "none" || style.visibility === "hidden" || +style.opacity === 0) return;
  const outside = box.right < clip.left || box.left > clip.right || box.bottom < clip.top || box.top > clip.bottom;
  if (outside && box.width && box.height) return;
  const x = box.left - frame.left, y = box.top - frame.top;
  if (node instanceof HTMLCanvasElement) {
    const recorder = recording.get(node);
    if (recorder) parts.push(`<g transform="translate(${short(x)} ${short(y)})">${recorder.out.join("")}</g>`);
    return;
  }
  const filled = node !== parts.card && !/^rgba\(.*, 0\)$|^transparent$/.test(style.backgroundColor), line = node !== parts.card && style.borderTopWidth !== "0px" && style.borderTopStyle !== "none" && style.borderBottomWidth !== "0px";
  if ((filled || line) && box.width && box.height) parts.push(`<rect x="${short(x)}" y="${short(y)}" width="${short(box.width)}" height="${short(box.height)}" rx="${parseFloat(style.borderTopLeftRadius) || 0}" fill="${filled ? style.backgroundColor : "none"}"${line ? ` stroke="${style.borderTopColor}"` : ""}/>`);
  const inner = style.overflow !== "visible" ? {left: Math.max(clip.left, box.left), right: Math.min(clip.right, box.right), top: Math.max(clip.top, box.top), bottom: Math.min(clip.bottom, box.bottom)} : clip;
  for (const child of node.childNodes) {
    if (child.nodeType === Node.ELEMENT_NODE) collect(child, frame, inner, parts);
    else if (child.nodeType === Node.TEXT_NODE && child.data.trim()) lines(child, style, frame, inner, parts);
  }
}
// Text of a text node, line by line as the page breaks it
function lines(node, style, frame, clip, parts) {
  const range = document.createRange();
  range.selectNodeContents(node);
  const boxes = [...range.getClientRects()];
  const put = (text, box) => { if (box && box.bottom > clip.top && box.top < clip.bottom && box.left < clip.right) parts.push(textAt(text, box.left - frame.left, (box.top + box.bottom) / 2 - frame.top, style)); };
  if (boxes.length < 2) return put(node.data, boxes[0]);
  let start = 0, top = null;
  for (let i = 0; i < node.data.length; i++) {
    range.setStart(node, i); range.setEnd(node, i + 1);
    const box = range.getClientRects()[0];
    if (!box || (top !== null && Math.abs(box.top - top) < 2)) continue;
    if (top !== null) { range.setStart(node, start); range.setEnd(node, i); put(node.data.slice(start, i), range.getClientRects()[0]); }
    start = i; top = box.top;
  }
  range.setStart(node, start); range.setEnd(node, node.data.length);
  put(node.data.slice(start), range.getClientRects()[0]);
}
const textAt = (text, x, y, style) => `<text x="${short(x)}" y="${short(y)}" font-size="${parseFloat(style.fontSize)}"${style.fontWeight === "400" ? "" : ` font-weight="${style.fontWeight}"`} fill="${style.color}" dominant-baseline="central" xml:space="preserve">${escapeXml(text)}</text>`;

// PNG of an SVG text, at `scale` times its size in CSS pixels
export async function pngOf(svg, scale) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(image.naturalWidth * scale); canvas.height = Math.round(image.naturalHeight * scale);
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise(resolve => canvas.toBlob(resolve, "image/png"));
}

// CSV of the text mirrors of a card, with exact numbers (data-* of a row) instead of rounded ones
export function csvOf(card) {
  const quote = cell => /[",\n\r]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
  return [...card.querySelectorAll("table.mirror")].map(table => {
    const titles = [...table.querySelectorAll("th")].map(th => th.textContent), rows = [...table.querySelectorAll("tbody tr")];
    const further = rows.length ? Object.keys(rows[0].dataset).filter(name => !titles.some(t => t.toLowerCase() === name)) : [];
    const lines = rows.map(row => [...titles.map((title, i) => row.dataset[title.toLowerCase()] ?? row.cells[i]?.textContent ?? ""), ...further.map(name => row.dataset[name])]);
    return [[...titles, ...further], ...lines].map(line => line.map(quote).join(",")).join("\n");
  }).join("\n\n") + "\n";
}

export function save(name, content, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], {type}));
  const link = document.createElement("a");
  link.href = url; link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
