// Colours, scales and formatted numbers; no elements. The colours themselves come from colours.py as constants.

// Convert the Maps that Panel makes of nested dicts to plain objects. Typed arrays stay as they are.
export function plain(value) {
  if (value instanceof Map) return Object.fromEntries([...value].map(([k, v]) => [k, plain(v)]));
  if (Array.isArray(value)) return value.map(plain);
  return value;
}

const bytes = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
export const clamp = (x, low, high) => x < low ? low : x > high ? high : x;

// 256 packed colours (0xAABBGGRR, the format of ImageData) and the same colours as CSS strings
function table(steps) {
  const packed = new Uint32Array(256), css = [];
  for (let i = 0; i < 256; i++) {
    const x = i / 255 * (steps.length - 1), j = Math.min(steps.length - 2, Math.floor(x));
    const a = bytes(steps[j]), b = bytes(steps[j + 1]);
    const [r, g, u] = a.map((v, c) => Math.floor(v + (b[c] - v) * (x - j) + .5));
    packed[i] = (255 << 24 | u << 16 | g << 8 | r) >>> 0;
    css.push(`rgb(${r},${g},${u})`);
  }
  return {packed, css};
}

// "auto" follows the page (data-theme of its root element), otherwise the system
export function themeOf(model) {
  if (model.theme === "light" || model.theme === "dark") return model.theme;
  const page = document.documentElement.dataset.theme;
  if (page === "light" || page === "dark") return page;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

// colours of further heads: hues a golden angle apart, in three lightnesses with contrast to the surface
function further(i, theme) {
  const l = (theme === "light" ? [.44, .6, .52] : [.82, .66, .74])[i % 3], hue = (i * 137.508 + 20) * Math.PI / 180, a = .13 * Math.cos(hue), b = .13 * Math.sin(hue);
  const [x, y, z] = [l + .3963377774 * a + .2158037573 * b, l - .1055613458 * a - .0638541728 * b, l - .0894841775 * a - 1.291485548 * b].map(v => v ** 3);   // OKLab
  const linear = [4.0767416621 * x - 3.3077115913 * y + .2309699292 * z, -1.2684380046 * x + 2.6097574011 * y - .3413193965 * z, -.0041960863 * x - .7034186147 * y + 1.707614701 * z];
  return `#${linear.map(v => Math.round(255 * clamp(v <= .0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - .055, 0, 1)).toString(16).padStart(2, "0")).join("")}`;
}

const paints = new Map();
// The colours of a theme: paint.ink, paint["line-2"], paint.seq(.4), paint.signed(-.2), paint.head(0), paint.on(.4)
export function paintOf(model) {
  const theme = themeOf(model);
  if (paints.has(theme)) return paints.get(theme);
  const {tokens, sequential, negative, positive, heads} = plain(model.esm_constants).palette[theme];
  const up = table(sequential), down = table(negative), rise = table(positive), index = x => clamp(Math.floor(x * 255 + .5), 0, 255) || 0;
  const paint = {
    ...tokens, theme, tokens,
    up: up.packed, down: down.packed, rise: rise.packed,   // weights; values below and above zero
    seq: x => up.css[index(x)],
    signed: x => (x < 0 ? down : rise).css[index(Math.abs(x))],
    head: i => i < heads.length ? heads[i] : further(i - heads.length, theme),
    // colour of text on a step of the ramp, with a contrast of at least 4.5:1
    on: theme === "light" ? x => x > .675 ? "#FFFFFF" : x > .3 ? "#000000" : tokens.ink
                          : x => x > .52 ? "#000000" : x > .25 ? "#FFFFFF" : tokens.ink,
  };
  paints.set(theme, paint);
  return paint;
}

export const SCALES = {
  linear: x => x,
  sqrt: x => Math.sqrt(x),
  log: x => clamp(1 + Math.log10(Math.max(x, 1e-3)) / 3, 0, 1),   // three decades
};

const MINUS = "\u2212";
// ".41", "1", "\u22121.2": no leading zero below one, a true minus
export function number(x, digits = 2) {
  if (x === undefined || x === null || Number.isNaN(x)) return "\u2013";
  const text = Math.abs(x).toFixed(digits);
  return (x < 0 && +text !== 0 ? MINUS : "") + (text.startsWith("0.") ? text.slice(1) : text);
}
export const signedNumber = (x, digits = 1) => number(x, digits).replace(/^\./, "0.").replace(`${MINUS}.`, `${MINUS}0.`);
const COUNT = new Intl.NumberFormat("en-US");
export const count = n => COUNT.format(n);
export const percent = x => `${Math.round(x * 100)} %`;

// "q14", "k3", "" <-> {side, index} | null; "q14k3" is a pinned edge: `other` is its other end, else null
export function parsePin(text) {
  const match = /^([qk])(\d+)(?:[qk](\d+))?$/.exec(text || "");
  return match ? {side: match[1], index: +match[2], other: match[3] === undefined ? null : +match[3]} : null;
}
export const formatPin = pin => pin ? `${pin.side}${pin.index}` : "";

// "5.8,5.10" <-> ["5.8", "5.10"]
export const parseHeads = text => (text || "").split(",").filter(Boolean);

// Names of a grid's heads. A picture of some layers (`frame.layers`) or heads (`frame.columns`) keeps the model's
// numbers.
export function gridNames(frame) {
  const [layers, heads] = frame.shape, count = n => Array.from({length: n}, (_, i) => i), rows = frame.layers || count(layers), columns = frame.columns || count(heads);
  return {rows, columns, name: (l, h) => `${rows[l]}.${columns[h]}`, cell: name => { const [l, h] = name.split(".").map(Number); return [rows.indexOf(l), columns.indexOf(h)]; }};
}

// Axis that fits values: it begins at 0 unless all values are far from it, and its ticks are round numbers
export function axisOf(values, n) {
  let least = Infinity, most = -Infinity;
  for (const v of values) if (Number.isFinite(v)) { least = Math.min(least, v); most = Math.max(most, v); }
  if (least > most) [least, most] = [0, 1];
  if (least >= 0 && least < .6 * most || least === most) least = Math.min(0, least);
  if (least === most) most = least + 1;
  const raw = (most - least) / n, power = 10 ** Math.floor(Math.log10(raw)), step = power * [1, 2, 5, 10].find(m => m * power >= raw * .999);
  const low = Math.floor(least / step + 1e-9) * step, high = Math.ceil(most / step - 1e-9) * step, digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return {low, high, ticks: Array.from({length: Math.round((high - low) / step) + 1}, (_, i) => low + i * step), text: v => number(v, digits).replace(/^(\u2212?)\.0*$/, "0")};
}
