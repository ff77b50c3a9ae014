// Corpus > Head > Example > Edge > Dimension: the present choice of every level, each a link, with steps to its neighbours.
import { el } from "../_js/dom.js";
import { component, icon, link, select } from "../_js/shell.js";

const CSS = `
.levels { display: flex; align-items: center; height: 38px; padding: 0 16px; background: var(--surface); border-bottom: 1px solid var(--line); font-size: 12px; white-space: nowrap; overflow: hidden }
.lv { display: flex; align-items: center; padding: 0 4px; height: 26px; border-radius: 6px; color: var(--ink-3); min-width: 0 }
.lv > a { padding: 0 4px; display: flex; align-items: center; height: 26px; border-radius: 6px; min-width: 0 } .lv > a:hover { background: var(--surface-2) }
.lv b { font-weight: 600; color: var(--ink); margin-left: 5px; max-width: 220px; overflow: hidden; text-overflow: ellipsis; unicode-bidi: isolate } .lv.off b { color: var(--ink-3); font-weight: 500 }
.lv.on { background: var(--accent-soft); color: var(--accent-ink) } .lv.on b { color: var(--accent-ink) } .lv.on > a:hover { background: transparent }
.lv .sel { height: 22px; margin: 0 2px }
.sep { color: var(--line-2); padding: 0 2px; font-size: 14px }
.step { width: 18px; height: 20px; border: 0; border-radius: 4px; background: transparent; color: var(--ink-3); padding: 0; line-height: 1 }
.step:hover:not([disabled]) { background: var(--surface-3); color: var(--ink) } .step[disabled] { opacity: .35; cursor: default }
`;

// frame: {sites: [name] where there are several, site, levels: [{name, value, on, off, query, patch, previous?: patch|null, next?: patch|null}]}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const bar = el("nav.levels", {"aria-label": "level"}), items = el("span.row", {style: "gap:0;min-width:0"});
    const copied = el("span", null, "Copy link");
    const copy = el("button.btn.quiet", {onclick: async () => {
      try { await navigator.clipboard.writeText(location.href); copied.textContent = "Copied"; }
      catch { copied.textContent = "Copy the address bar"; }
      setTimeout(() => { copied.textContent = "Copy link"; }, 1500);
    }}, icon("link"), copied);
    bar.append(items, el("span.grow"), copy);
    ui.root.append(bar);
    const step = (name, direction, patch) => el("button.step", {"aria-label": `${direction} ${name.toLowerCase()}`, disabled: !patch, onclick: () => ui.go(patch)}, direction === "next" ? "\u203A" : "\u2039");
    return frame => {
      items.replaceChildren(...frame.levels.flatMap((level, i) => [
        i ? el("span.sep", {"aria-hidden": "true"}, "\u203A") : "",
        el(`span.lv${level.on ? ".on" : ""}${level.off ? ".off" : ""}`, {"data-level": level.name.toLowerCase()},
          level.name === "Head" && frame.sites?.length ? select(frame.sites.map(name => [name, name]), frame.site, "which attention", site => ui.go({site})) : null,
          link(ui, "", level.query, level.patch, {title: level.value}, level.name, el("b", null, level.value)),
          level.previous === undefined ? null : [step(level.name, "previous", level.previous), step(level.name, "next", level.next)]),
      ]));
    };
  });
}
