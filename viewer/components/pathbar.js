// Path bar, Corpus > Head > Example > Edge > Dimension: the current choice at each part as a link, with steps to its
// neighbours.
import { el, middle } from "../_js/dom.js";
import { component, icon, link, select, walk } from "../_js/shell.js";

const CSS = `
.path { display: flex; align-items: center; height: 38px; padding: 0 16px; background: var(--surface); border-bottom: 1px solid var(--line); font-size: 12px; white-space: nowrap; overflow: hidden }
.part { display: flex; align-items: center; padding: 0 4px; height: 26px; border-radius: 6px; color: var(--ink-3); min-width: 0 }
.part > a { padding: 0 4px; display: flex; align-items: center; height: 26px; border-radius: 6px; min-width: 0 } .part > a:hover { background: var(--surface-2) }
.part b { font-weight: 600; color: var(--ink); margin-left: 5px; max-width: 220px; overflow: hidden; text-overflow: ellipsis; unicode-bidi: isolate } .part[data-part=head] { flex: none } .path .btn { flex: none }
@media (max-width: 1000px) { .part .name { display: none } .part[data-part=head] .name { display: inline } .part.off[data-part=edge], .part.off[data-part=dimension], .sep:has(+ .part.off[data-part=edge]), .sep:has(+ .part.off[data-part=dimension]) { display: none } }
.part.off b { color: var(--ink-3); font-weight: 500 }
.part.on { background: var(--accent-soft); color: var(--accent-ink) } .part.on b { color: var(--accent-ink) } .part.on > a:hover { background: transparent }
.part .sel { height: 22px; margin: 0 2px }
.sep { color: var(--line-2); padding: 0 2px; font-size: 14px }
.step { width: 18px; height: 20px; border: 0; border-radius: 4px; background: transparent; color: var(--ink-3); padding: 0; line-height: 1 }
.step:hover:not([disabled]) { background: var(--surface-3); color: var(--ink) } .step[disabled] { opacity: .35; cursor: default }
`;

// frame: {sites: [name] if there is more than one, site, path: [{name, value, on, off, query, patch, previous?:
//         patch|null, next?: patch|null}]}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const bar = el("nav.path", {"aria-label": "path"}), items = el("span.row", {style: "gap:0;min-width:0"});
    const copied = el("span", null, "Copy link");
    const copy = el("button.btn.quiet", {onclick: async () => {
      try { await navigator.clipboard.writeText(location.href); copied.textContent = "Copied"; }
      catch { copied.textContent = "Copy the address bar"; }
      setTimeout(() => { copied.textContent = "Copy link"; }, 1500);
    }}, icon("link"), copied);
    bar.append(items, el("span.grow"), copy);
    ui.root.append(bar);
    walk(items, () => [...items.querySelectorAll("a, button:not([disabled])")]);
    const step = (name, direction, patch) => el("button.step", {"aria-label": `${direction} ${name.toLowerCase()}`, disabled: !patch, onclick: () => ui.go(patch)}, direction === "next" ? "\u203A" : "\u2039");
    return frame => {
      items.replaceChildren(...frame.path.flatMap((part, i) => [
        i ? el("span.sep", {"aria-hidden": "true"}, "\u203A") : "",
        el(`span.part${part.on ? ".on" : ""}${part.off ? ".off" : ""}`, {"data-part": part.name.toLowerCase()},
          part.name === "Head" && frame.sites?.length ? select(frame.sites.map(name => [name, name]), frame.site, "attention site", site => ui.go({site})) : null,
          link(ui, "", part.query, part.patch, {title: part.value}, el("span.name", null, part.name), part.name === "Edge" ? el("b.ell", null, part.value) : middle(part.value, "b")),
          part.previous === undefined ? null : [step(part.name, "previous", part.previous), step(part.name, "next", part.next)]),
      ]));
    };
  });
}
