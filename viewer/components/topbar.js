// Top bar: pages, search box, name of the store, theme switch, list of keys. Keys: / searches, t changes the theme,
// g c|s|e|v opens a page, ? lists all keys.
import { el, middle } from "../_js/dom.js";
import { component, debounced, global, icon, link, select, setSingleKeys, singleKeys, walk } from "../_js/shell.js";

const CSS = `
.top { display: flex; align-items: center; gap: 16px; height: 48px; padding: 0 16px; background: var(--surface); border-bottom: 1px solid var(--line) }
.brand { display: flex; align-items: center; gap: 8px; font-weight: 650; font-size: 15px; letter-spacing: -.01em }
.logo { width: 22px; height: 22px; border-radius: 5px; background: var(--accent); color: var(--on-accent); display: grid; place-items: center }
.nav { display: flex; gap: 2px; height: 48px; margin-left: 4px }
.nav a { display: flex; align-items: center; padding: 0 12px; color: var(--ink-2); border-bottom: 2px solid transparent; border-top: 2px solid transparent; font-weight: 500 }
.nav a:hover { color: var(--ink) } .nav a[aria-current] { color: var(--ink); border-bottom-color: var(--accent); font-weight: 600 }
.find { position: relative; width: 316px } .find svg { position: absolute; left: 9px; top: 8px; color: var(--ink-3) } .find kbd { position: absolute; right: 7px; top: 6px }
.find input { width: 100%; height: 32px; border: 1px solid var(--line-2); border-radius: 6px; background: var(--bg); padding: 0 36px 0 30px }
.found { position: absolute; z-index: 60; top: 36px; left: 0; right: 0; min-width: 380px; background: var(--surface); border: 1px solid var(--line-2); border-radius: 6px; box-shadow: var(--shadow); padding: 4px } .found > div { padding: 4px 8px; border-radius: 4px; cursor: pointer; display: grid; font-size: 12px; line-height: 1.35 } .found > div[aria-selected=true], .found > div:hover { background: var(--accent-soft) } .found b { font-weight: 600 } .found span { color: var(--ink-2); font-size: 11px }
.store { height: 32px; display: flex; align-items: center; border: 1px solid var(--line-2); border-radius: 6px; padding: 0 10px; font-weight: 500; max-width: 240px; min-width: 0 }
.store.several { border: 0; padding: 0 } .store.several select { height: 32px; max-width: 100%; font-size: 13px !important }
.skip { position: absolute; left: 8px; top: -60px; z-index: 60; height: 36px } .skip:focus { top: 6px }
.help { position: fixed; inset: 0; margin: auto; width: 460px; max-width: 90vw; height: fit-content; border: 1px solid var(--line-2); border-radius: 8px; background: var(--surface); color: var(--ink); box-shadow: var(--shadow); padding: 16px 20px } .help::backdrop { background: #0006 }
.help h2 { font-size: 15px; font-weight: 600 } .help dl { display: grid; grid-template-columns: 150px 1fr; gap: 4px 12px; margin: 6px 0 12px } .help dt, .help dd { margin: 0; font-size: 12px } .help .sect { margin-top: 12px }
@media (max-width: 1000px) { .top { gap: 8px; padding: 0 10px } .find { flex: 0 10 200px; min-width: 64px } .find kbd { display: none } .find input { padding-right: 6px } .store { flex: 0 1 auto; max-width: 120px } .brand { font-size: 0; gap: 0 } .nav a { padding: 0 7px } }
.side { display: none } @media (max-width: 1279px) { .side.right:not([hidden]) { display: inline-flex } } @media (max-width: 959px) { .side.left:not([hidden]) { display: inline-flex } }
`;
const HELP = [["everywhere", [["/", "search"], ["g c, g s, g e, g v", "Corpus, Search, Examples, Views"], ["b", "stars and notes"], ["t", "light or dark"], ["?", "this list"], ["Tab", "from picture to picture"]]],
  ["on a picture that has the focus", [["\u2190 \u2191 \u2192 \u2193", "move to the next head, row, cell or token"], ["Enter", "choose"], ["n", "its numbers as a table"]]],
  ["in a list of examples", [["j k", "next, previous example"], ["Enter", "open it"]]],
  ["in the views", [["1 \u2026 6", "the view"], ["h l", "previous, next head"], ["j k", "next, previous example"], ["s", "star the example"], ["Esc", "release the pin"]]]];
const KEYS = {c: "corpus", s: "search", e: "examples", v: "views"};

// frame: {page, pages: [{page, label, query}], store, stores: [[name, query]], theme, drawers: ["left", "right"]}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const input = el("input", {type: "search", placeholder: "Head, token, text or pattern", "aria-label": "search", maxlength: 2000,
      role: "combobox", "aria-expanded": "false", "aria-controls": "found", autocomplete: "off", onblur: () => shut(), oninput: () => { chosen = -1; if (input.value.trim()) suggest(input.value); else shut(); },
      onkeydown: event => {
        const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
        if (event.key === "Enter" && input.value.trim()) { const pick = found.text === input.value && chosen >= 0 ? {pick: chosen} : {}; shut(); ui.send({find: input.value, ...pick}); }
        else if (step && found.items.length) { event.preventDefault(); chosen = (chosen + step + found.items.length) % found.items.length; list(); }
        if (event.key === "Escape") { if (box.hidden) input.blur(); else shut(); }
      }});
    // meanings of the text, which the server knows
    const box = el("div.found", {id: "found", role: "listbox", "aria-label": "suggestions", hidden: true}), suggest = debounced(120, text => { if (text === input.value) ui.send({suggest: text}); });
    let found = {text: "", items: []}, chosen = -1;
    const shut = () => { suggest.drop(); box.hidden = true; chosen = -1; input.setAttribute("aria-expanded", "false"); };
    function list() {
      box.hidden = !found.items.length; input.setAttribute("aria-expanded", String(!box.hidden));
      box.replaceChildren(...found.items.map(([kind, label, detail], i) => el("div", {role: "option", "aria-selected": String(i === Math.max(0, chosen)), "data-kind": kind, onmousedown: event => { event.preventDefault(); shut(); ui.send({find: found.text, pick: i}); }}, el("b", null, el("bdi", null, label)), el("span", null, detail))));
    }
    const off = el("input", {type: "checkbox", "data-control": "keys", onchange: () => setSingleKeys(off.checked)});
    const help = el("dialog.help", {"aria-label": "keys"}, el("div.row", null, el("h2", null, "Keys"), el("span.grow"), el("button.btn", {onclick: () => help.close()}, "Close")),
      HELP.map(([heading, keys]) => [el("p.sect", null, heading), el("dl", null, keys.map(([key, effect]) => [el("dt", null, el("kbd", null, key)), el("dd", null, effect)]))]),
      el("label.ck", null, off, "single keys work without Ctrl or Alt (Tab, Esc and the keys of a picture always work)"));
    const ask = () => { off.checked = singleKeys(); help.showModal(); };
    const helper = el("button.btn.quiet.icon", {"aria-label": "keys", title: "keys (?)", onclick: ask}, icon("help"));
    const open = document.documentElement.dataset;
    const sides = {left: "heads", right: "details"};
    const drawers = Object.entries(sides).map(([side, label]) => el(`button.btn.side.${side}`, {"aria-expanded": "false", "data-side": side, onclick: () => drawer(open.drawer === side ? "" : side)}, label[0].toUpperCase() + label.slice(1)));
    function drawer(side) {
      if (side) open.drawer = side; else delete open.drawer;
      for (const button of drawers) button.setAttribute("aria-expanded", String(button.dataset.side === side));
    }
    const nav = el("nav.nav", {"aria-label": "pages"}), store = el("span.store.ell"), switcher = el("button.btn.quiet.icon", {"aria-label": "light or dark", onclick: flip});
    const marks = el("button.btn.quiet.icon", {"aria-label": "stars and notes", title: "stars and notes (b)", onclick: () => document.dispatchEvent(new CustomEvent("headatlas-bookmarks"))}, "\u2606");
    const logo = el("span.logo", {"aria-hidden": "true"}, arcs());
    const heading = el("h1.sr"), skip = el("button.skip.btn.primary", {onclick: skipToPage}, "Skip to the page");
    // the area of the pages, a neighbour of this bar
    const page = () => host.getRootNode().host?.getRootNode().querySelector(".page-area");
    ui.root.append(el("header.top", null, skip, heading, el("div.brand", null, logo, "headatlas"), nav, el("span.grow"),
      el("div.find", null, icon("search"), input, el("kbd", null, "/"), box), store, drawers, marks, helper, switcher), help);
    // a lasting tabindex would take the page's own elements out of the order of the Tab key
    function skipToPage() {
      const area = page();
      area.tabIndex = 0;
      area.focus();
      area.addEventListener("blur", () => area.removeAttribute("tabindex"), {once: true});
    }
    walk(nav, () => [...nav.children]);
    function flip() { ui.go({theme: document.documentElement.dataset.theme === "dark" ? "light" : "dark"}); }
    let awaiting = 0;
    const keys = event => {
      if (!global(event) || help.open) return;
      const page = awaiting && Date.now() - awaiting < 900 ? KEYS[event.key] : null;
      awaiting = event.key === "g" ? Date.now() : 0;
      if (page) ui.go({page});
      else if (event.key === "/") { event.preventDefault(); input.focus(); input.select(); }
      else if (event.key === "t") flip();
      else if (event.key === "?") ask();
    };
    const close = event => {   // listens before other handlers, because Esc also releases the pin
      if (event.key !== "Escape" || !open.drawer || help.open) return;
      drawer("");
      event.stopPropagation();
    };
    document.addEventListener("keydown", keys);
    document.addEventListener("keydown", close, true);
    model.on("remove", () => { document.removeEventListener("keydown", keys); document.removeEventListener("keydown", close, true); });
    return frame => {
      for (const [name, value] of Object.entries({role: "main", "aria-label": "page"})) page()?.setAttribute(name, value);
      heading.textContent = `${frame.pages.find(({page}) => page === frame.page)?.label} of ${frame.store}`;
      if (frame.found && frame.found.text === input.value && frame.found !== found && ui.root.getRootNode().activeElement === input) { found = frame.found; list(); }
      nav.replaceChildren(...frame.pages.map(({page, label, query}) =>
        link(ui, "", query, {page}, {"aria-current": page === frame.page ? "page" : null, "data-page": page}, label)));
      const hasChoice = frame.stores.length > 1;
      store.replaceChildren(hasChoice ? select(frame.stores.map(([name]) => [name, name]), frame.store, "store", name => { location.search = `?${frame.stores.find(s => s[0] === name)[1]}`; }) : middle(frame.store));
      store.classList.toggle("several", hasChoice);
      store.title = frame.store;
      for (const button of drawers) button.hidden = !frame.drawers.includes(button.dataset.side);
      if (open.drawer && !frame.drawers.includes(open.drawer)) drawer("");
      switcher.replaceChildren(icon(document.documentElement.dataset.theme === "dark" ? "moon" : "sun"));
    };
  });
}

function arcs() {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({width: 22, height: 22, viewBox: "0 0 22 22", fill: "none", stroke: "currentColor", "stroke-width": 1.6, "stroke-linecap": "round"}))
    svg.setAttribute(key, value);
  for (const [d, opacity] of [["M6 6c6 0 4 10 10 10", .95], ["M6 11c4 0 6-5 10-5", .6], ["M6 16c5 0 5-5 10-5", .6]]) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", d);
    path.setAttribute("opacity", opacity);
    svg.append(path);
  }
  return svg;
}
