// Code that the cards and bars of the pages share: drawing of frames, messages to Python, links with real URLs.
import { el, mount, tooltip } from "../_js/dom.js";
import { plain } from "../_js/paint.js";
import { CSS } from "../_js/style.js";

// setup(ui) builds the lasting elements (inputs keep their focus) and returns draw(frame), which runs for every frame
// and theme
export function component(model, host, css, setup) {
  let draw = null;
  const redraw = () => {
    const frame = plain(model.frame);
    if (draw && Object.keys(frame).length) draw(frame);
  };
  const {root, paint, offer} = mount(model, host, CSS + SHELL + css, redraw);
  const send = message => model.send_msg(message);
  const ui = {root, paint, offer, model, send, go: patch => send({go: patch}), tip: tooltip(root)};
  draw = setup(ui);
  model.on("frame", redraw);
  redraw();
}

// A link (classes in `spec`: ".part.on") whose URL restores its choice. A plain click only changes the state.
export function link(ui, spec, query, patch, props, ...kids) {
  return el(`a${spec}`, {href: query ? `?${query}` : location.pathname, ...props, onclick: event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || event.button) return;
    event.preventDefault();
    ui.go(patch);
  }}, ...kids);
}

const ICONS = {
  search: ["M11.5 7a4.5 4.5 0 1 1-9 0a4.5 4.5 0 1 1 9 0", "M10.5 10.5L14 14"],
  link: ["M6.5 9.5l3-3M7.5 4.8l1.2-1.2a2.6 2.6 0 0 1 3.7 3.7l-1.2 1.2M8.5 11.2l-1.2 1.2a2.6 2.6 0 0 1-3.7-3.7l1.2-1.2"],
  sun: ["M11 8a3 3 0 1 1-6 0a3 3 0 1 1 6 0", "M8 1.5v1.6M8 12.9v1.6M1.5 8h1.6M12.9 8h1.6M3.4 3.4l1.1 1.1M11.5 11.5l1.1 1.1M3.4 12.6l1.1-1.1M11.5 4.5l1.1-1.1"],
  moon: ["M13 9.6A5.5 5.5 0 0 1 6.4 3a5.5 5.5 0 1 0 6.6 6.6z"],
  close: ["M4 4l8 8M12 4l-8 8"],
  help: ["M14 8a6 6 0 1 1-12 0a6 6 0 1 1 12 0", "M6.2 6.2a1.9 1.9 0 1 1 2.6 1.8c-.5.2-.8.5-.8 1.1M8 11.4v.1"],
};
const SVG = "http://www.w3.org/2000/svg";
export function icon(name, size = 16) {
  const svg = document.createElementNS(SVG, "svg");
  const attributes = {width: size, height: size, viewBox: "0 0 16 16", fill: "none", stroke: "currentColor", "stroke-width": 1.4,
    "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true"};
  for (const [key, value] of Object.entries(attributes)) svg.setAttribute(key, value);
  for (const d of ICONS[name]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", d);
    svg.append(path);
  }
  return svg;
}

// options: [[value, label], ...]
export function select(options, value, label, changed) {
  const node = el("select.sel", {"aria-label": label, onchange: event => changed(event.target.value)},
    options.map(([v, text]) => el("option", {value: v}, text)));
  node.value = value;
  if (node.selectedIndex < 0) node.selectedIndex = 0;
  return node;
}
export function segmented(options, value, label, changed) {
  const group = el("div.seg", {role: "group", "aria-label": label}, options.map(([v, text]) =>
    el("button", {"aria-pressed": String(v === value), onclick: () => changed(v)}, text)));
  walk(group, () => [...group.children]);
  return group;
}

// Call back after a pause of `wait` ms without calls. `.drop()` cancels a waiting call.
export function debounced(wait, callback) {
  let timer = 0;
  const call = (...args) => { clearTimeout(timer); timer = setTimeout(() => callback(...args), wait); };
  call.drop = () => clearTimeout(timer);
  return call;
}

// A list as one stop of the Tab key: arrow keys, j and k move the focus among its rows, which `rows()` returns. With
// `everywhere`, j and k also work while another element has the focus, and Enter while none has.
export function walk(container, rows, everywhere = false) {
  let last = null;   // row of the last focus
  const current = list => Math.max(0, list.includes(last) ? list.indexOf(last) : list.findIndex(row => row.matches(".on, [aria-pressed=true], [aria-current=page], [aria-selected=true]")));
  const rove = () => { const list = rows(), now = current(list); list.forEach((row, i) => { row.tabIndex = i === now ? 0 : -1; }); };
  const move = (event, list, from) => {
    const step = {ArrowDown: 1, ArrowRight: 1, j: 1, ArrowUp: -1, ArrowLeft: -1, k: -1, Home: -list.length, End: list.length}[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey || !list.length) return;
    event.preventDefault();
    list[Math.max(0, Math.min(list.length - 1, from + step))].focus();
  };
  container.addEventListener("focusin", event => { last = rows().find(row => row.contains(event.target)) || last; rove(); });
  container.addEventListener("keydown", event => { const list = rows(), now = list.indexOf(event.composedPath()[0]); if (now >= 0) move(event, list, now); });
  new MutationObserver(rove).observe(container, {childList: true});
  rove();
  if (!everywhere) return;
  const anywhere = event => {
    if (!container.isConnected) return document.removeEventListener("keydown", anywhere);
    if (!global(event) || !container.offsetParent || !/^(j|k|Enter)$/.test(event.key)) return;
    const list = rows(), active = document.activeElement;
    if (event.key !== "Enter") move(event, list, list.includes(last) ? current(list) : event.key === "j" ? -1 : list.length);
    else if (!active || active === document.body) list[current(list)]?.click();
  };
  document.addEventListener("keydown", anywhere);
}

export const typing = event => /^(INPUT|SELECT|TEXTAREA)$/.test(event.composedPath()[0]?.tagName || "");

// Single keys that work with any focus can be turned off for this browser: speech input and tremor can press them by
// accident
const SWITCH = "headatlas single keys";
export const singleKeys = () => { try { return localStorage.getItem(SWITCH) !== "off"; } catch { return true; } };
export const setSingleKeys = on => { try { localStorage.setItem(SWITCH, on ? "on" : "off"); } catch { /* the browser blocks its storage */ } };
// true if a key press is meant for the page
export const global = event => !event.ctrlKey && !event.metaKey && !event.altKey && !event.defaultPrevented && !typing(event) && singleKeys();

const SHELL = `
.ha a { color: inherit; text-decoration: none }
.ha kbd { font: 11px/1 var(--mono); border: 1px solid var(--line-2); border-radius: 4px; padding: 3px 5px; color: var(--ink-2); background: var(--surface) }
.mono { font-family: var(--mono) } .xs { font-size: 11px } .sm { font-size: 12px } .dim2 { color: var(--ink-2) }
.btn.icon { width: 28px; height: 28px; padding: 0; justify-content: center } .btn.quiet:hover { color: var(--ink) }
.btn[disabled] { opacity: .4; cursor: default }
.sel { height: 24px; border: 1px solid var(--line-2); border-radius: 6px; background: var(--surface); padding: 0 6px; font-size: 12px !important; font-weight: 500; max-width: 210px }
.seg button { white-space: nowrap; padding: 0 10px } .card > header .seg button { height: 22px }
.tok.q { box-shadow: inset 0 0 0 1.5px var(--accent); border-radius: 3px; padding: 1px 4px; font-weight: 600; color: var(--ink) }
.tok.k { border-radius: 3px; padding: 1px 3px }
.note { display: flex; gap: 8px; align-items: center; background: var(--surface-2); border-radius: 6px; padding: 6px 10px; font-size: 12px; color: var(--ink-2) }
.code { font: 12px/1.5 var(--mono); background: var(--surface-2); border-radius: 6px; padding: 8px 10px; white-space: pre-wrap; overflow-wrap: anywhere }
.sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; margin: 0 }
.legend { display: flex; align-items: center; gap: 6px; font-size: 11px; color: var(--ink-2); font-variant-numeric: tabular-nums; white-space: nowrap }
.stale { opacity: .55 }
`;
