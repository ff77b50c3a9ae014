import { FONT } from "../_js/constants.js";
import { paintOf, plain } from "../_js/paint.js";
import { recorderOf, svgOf, pngOf, csvOf, save } from "../_js/picture.js";
// Elements, canvases and tooltips. Corpus strings reach the page as text nodes only: `el` never parses markup.

// el("div.row", {title: "x", onclick: f}, child, "text"): classes follow dots; properties on* are listeners, others
// attributes
export function el(spec, props, ...kids) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag || "div");
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(props || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") node.style.cssText = value;
    else if (name === "value" || name === "checked") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  add(node, kids);
  return node;
}
function add(node, kids) {
  for (const kid of kids) {
    if (kid === undefined || kid === null || kid === false) continue;
    if (Array.isArray(kid)) add(node, kid);
    else node.append(kid instanceof Node ? kid : document.createTextNode(String(kid)));
  }
}

// Text that is cut in its middle if it has no room: long ids differ at their ends
export function middle(text, spec = "span") {
  const letters = [...String(text)], n = Math.min(8, Math.floor(letters.length / 2));
  if (letters.length < 14) return el(`${spec}.ell`, {title: text, dir: "auto"}, text);
  // the name of the whole is the text: that of the parts would have a gap
  return el(`${spec}.mid`, {title: text, dir: "auto", role: "img", "aria-label": text}, el("span.ell", null, letters.slice(0, -n).join("")), el("span", null, letters.slice(-n).join("")));
}

// "rtl" if most letters of a text run from right to left. Tokens in elements of their own do not decide it for `dir=auto`.
const RTL = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]/g, LTR = /[A-Za-z\u00c0-\u02af\u0370-\u052f\u3040-\u9fff\uac00-\ud7af]/g;
export const directionOf = text => (text.match(RTL) || []).length > (text.match(LTR) || []).length ? "rtl" : "ltr";

// Make the component's root, one element with the style and the theme variables. `changed(paint)` runs when the theme
// changes; the returned `paint()` gives the current colours; `offer()` adds download menus to cards that came later.
export function mount(model, host, css, changed) {
  const style = document.createElement("style"), root = el("div.ha");
  style.textContent = css;
  host.replaceChildren(style, root);
  let paint = null;
  const restyle = () => {
    const next = paintOf(model);
    if (next === paint) return;
    const first = paint === null;
    paint = next;
    root.dataset.theme = paint.theme;
    root.style.colorScheme = paint.theme;
    for (const [name, value] of Object.entries(paint.tokens)) root.style.setProperty(`--${name}`, value);
    if (!first) changed(paint);
  };
  restyle();
  model.on("theme", restyle);
  const observer = new MutationObserver(restyle), media = matchMedia("(prefers-color-scheme: dark)");
  observer.observe(document.documentElement, {attributes: true, attributeFilter: ["data-theme"]});
  media.addEventListener("change", restyle);
  const offer = () => root.querySelectorAll("[data-picture]").forEach(card => card.querySelector(":scope > .downloads") || downloads(card, model, () => changed(paint)));
  queueMicrotask(offer);
  model.on("remove", () => { observer.disconnect(); media.removeEventListener("change", restyle); });
  return {root, paint: () => paint, offer};
}

// Download menu in the corner of a card that names its picture: `data-picture="head view"`. A card with `data-figure`
// has a figure for print, which the server draws from the store. A file that works offline has no server: there the
// picture itself is saved, without its controls.
const COLUMNS = [["single", "One column, 85 mm"], ["double", "Two columns, 170 mm"]], PNG_DPI = 600, SCREEN_DPI = 96;
const TITLES = {SVG: "shapes and text", PDF: "for a paper, with its fonts", PNG: `${PNG_DPI} dots per inch`, CSV: "the numbers", HTML: "a page of its own that works offline"};
function downloads(card, model, repaint) {
  const of = card.dataset.picture, drawn = card.dataset.figure !== undefined, fileName = `${model.alone ? document.title.slice(0, 60) : "headatlas"} ${of}`.trim().replace(/[^\p{L}\p{N}._-]+/gu, "-");
  let waiting = "", pieces = [];   // format of the figure that the server draws; pages arrive in several messages
  const choose = async (format, column) => {
    menu.open = false; reason("");
    if (format === "CSV") return save(`${fileName}.csv`, csvOf(card), "text/csv");
    if (format === "HTML") return model.send_msg({download: of});
    if (!model.alone) { waiting = format; return model.send_msg({figure: of, column, format: format === "PDF" ? "pdf" : "svg"}); }
    const theme = model.theme;
    Object.assign(model, {theme: "light"});
    let svg;
    try { svg = svgOf(card, repaint); } finally { Object.assign(model, {theme}); }
    save(`${fileName}.${format.toLowerCase()}`, format === "SVG" ? svg : await pngOf(svg, 2), "image/svg+xml");
  };
  const item = (format, column) => el("button", {role: "menuitem", "data-format": format, "data-column": column, title: TITLES[format], onclick: () => choose(format, column)}, format);
  const row = (label, ...items) => el("div.formats", null, el("span", null, label), items);
  const figures = !drawn ? [] : model.alone ? [row("Picture", item("SVG"), item("PNG"))] : COLUMNS.map(([column, label]) => row(label, item("SVG", column), item("PDF", column), item("PNG", column)));
  const others = [card.querySelector("table.mirror") ? item("CSV") : "", model.alone ? "" : item("HTML")].filter(Boolean);
  if (!figures.length && !others.length) return;
  const list = el("div", {role: "menu"}, figures, others.length ? row(drawn ? "Data, page" : "", ...others) : "");
  const menu = el("details.downloads", null, el("summary", {"aria-label": `download ${of}`, title: "Download"}, "\u2913"), list);
  const reason = text => { list.querySelector(".reason")?.remove(); if (text) { list.append(el("p.reason", {role: "alert"}, text)); menu.open = true; } };
  menu.addEventListener("focusout", event => { if (!menu.contains(event.relatedTarget)) menu.open = false; });
  card.append(menu);
  const saveFigure = async (file, content) => {
    const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0)), type = waiting === "PDF" ? "application/pdf" : "image/svg+xml", name = `${file}.${waiting.toLowerCase()}`;
    save(name, waiting === "PNG" ? await pngOf(new TextDecoder().decode(bytes), PNG_DPI / SCREEN_DPI) : new Blob([bytes], {type}), type);
  };
  model.on("msg:custom", data => {
    const answer = plain(data);
    if (answer.of !== of) return;
    if (answer.error !== undefined) { pieces = []; reason(answer.error); }
    else if (answer.content !== undefined) saveFigure(answer.file, answer.content);
    else if (answer.page !== undefined) {
      pieces.push(answer.page);
      if (!answer.more) { save(`${fileName}.html`, new Blob(pieces, {type: "text/html"}), "text/html"); pieces = []; }
    }
  });
}

// Size a canvas in CSS pixels, sharp on any screen. Returns its cleared context.
export function fit(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const recorder = recorderOf(canvas);
  if (recorder) return recorder;
  const w = Math.max(1, Math.round(width * ratio)), h = Math.max(1, Math.round(height * ratio));
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

export function write(context, text, x, y, {color, size = 11, weight = 400, align = "left", base = "middle"} = {}) {
  context.font = `${weight} ${size}px ${FONT}`;
  context.textAlign = align; context.textBaseline = base;
  if (color) context.fillStyle = color;
  context.fillText(text, x, y);
}

// The tooltip of a component: a title, rows of [label, value, note, hot], and a line on what a click does
export function tooltip(root) {
  const node = el("div.tip", {role: "tooltip"});
  root.append(node);
  let box = null;
  const tip = {
    about: null,   // object that the tooltip describes, if the caller passes one: over the same object it is only moved
    hide() { node.style.display = "none"; tip.about = null; },
    show(event, title, rows = [], foot = "", about = null) {
      node.replaceChildren(el("div.tip-title", null, title),
        el("div.tip-rows", null, rows.map(([label, value, note, hot]) => [
          el(`span.tip-label${hot ? ".hot" : ""}`, null, label), el(`span.tip-value${hot ? ".hot" : ""}`, null, value),
          el("span.tip-note", null, note || "")])),
        foot ? el("div.tip-foot", null, foot) : "");
      node.style.display = "block";
      box = node.getBoundingClientRect();
      tip.about = about;
      tip.move(event);
    },
    move(event) {
      let x = event.clientX + 14, y = event.clientY + 16;
      if (x + box.width > innerWidth - 8) x = event.clientX - box.width - 12;
      if (y + box.height > innerHeight - 8) y = event.clientY - box.height - 12;
      node.style.left = `${Math.max(6, x)}px`; node.style.top = `${Math.max(6, y)}px`;
    },
  };
  tip.hide();
  return tip;
}

// Position [x, y] of the pointer in a node, in CSS pixels
export function pointerIn(event, node = event.currentTarget) {
  const box = node.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

// Call back with the width of a node now and whenever it changes. Returns a function that stops this.
export function onWidth(node, callback) {
  let last = -1;
  const observer = new ResizeObserver(() => {
    const width = Math.floor(node.clientWidth);
    if (width > 0 && width !== last) { last = width; callback(width); }
  });
  observer.observe(node);
  return () => observer.disconnect();
}

// Call at most once per animation frame, with the latest arguments
export function onceAFrame(callback) {
  let latest = null, waiting = false;
  return (...args) => {
    latest = args;
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; callback(...latest); });
  };
}

// Text mirror: a table behind a picture with the content of its canvas, for screen readers, the `n` key and the tests
export function mirror(root, caption) {
  const head = el("thead"), body = el("tbody"), table = el("table.mirror", {"data-mirror": caption}, el("caption", null, caption), head, body);
  root.append(table);
  let rows = [], entries = [], titles = null;
  const text = cell => cell === undefined || cell === null || cell === false ? "" : String(cell);
  return {
    table,
    // columns: names; data: arrays of cells; attributes: one object of data-* per row. Only differences are written.
    set(columns, data, attributes = []) {
      rows = data;
      if (titles !== columns.join("\n")) {
        titles = columns.join("\n"); entries = [];
        head.replaceChildren(el("tr", null, columns.map(c => el("th", null, c))));
        body.replaceChildren();
      }
      entries.splice(data.length).forEach(row => row.node.remove());
      data.forEach((cells, i) => {
        if (!entries[i]) { entries[i] = {node: el("tr", null, cells.map(() => el("td"))), cells: [], about: {}}; body.append(entries[i].node); }
        const row = entries[i], about = attributes[i] || {};
        cells.forEach((cell, j) => { const now = text(cell); if (row.cells[j] !== now) { row.cells[j] = now; row.node.children[j].textContent = now; } });
        for (const name of Object.keys(row.about)) if (!(name in about)) row.node.removeAttribute(`data-${name}`);
        for (const [name, value] of Object.entries(about)) if (row.about[name] !== value) row.node.setAttribute(`data-${name}`, value);
        row.about = about;
      });
    },
    toggle() { table.classList.toggle("open"); },
    get rows() { return rows; },
  };
}

// Keys of a focused picture. Escape works with any focus, if the picture is visible and the reader is not typing.
export function keyboard(model, node, actions) {
  const typing = event => /^(INPUT|TEXTAREA|SELECT)$/.test(event.composedPath()[0]?.tagName || "") || event.composedPath()[0]?.isContentEditable;
  const plainKey = event => !event.ctrlKey && !event.metaKey && !event.altKey;
  node.addEventListener("keydown", event => {
    if (event.key !== "Escape" && actions[event.key] && plainKey(event) && !typing(event)) { event.preventDefault(); actions[event.key](); }
  });
  if (!actions.Escape) return;
  const escape = event => { if (event.key === "Escape" && node.offsetParent && !typing(event)) actions.Escape(); };
  document.addEventListener("keydown", escape);
  model.on("remove", () => document.removeEventListener("keydown", escape));
}
