// The views of one example. Keys: 1 to 6 switch the view, Esc releases the pin, h l step through heads, j k through
// examples.
import { el } from "../_js/dom.js";
import { component, global, link, typing } from "../_js/shell.js";

const CSS = `
.viewtabs { display: flex; align-items: stretch; height: 36px; background: var(--surface); border: 1px solid var(--line); border-radius: 8px; padding: 0 6px }
.viewtabs a { display: flex; align-items: center; gap: 7px; padding: 0 12px; color: var(--ink-2); font-weight: 500; border-bottom: 2px solid transparent; border-top: 2px solid transparent } .viewtabs a[aria-selected=true] { color: var(--ink); font-weight: 600; border-bottom-color: var(--accent) }
.viewtabs a kbd { font-size: 10px; padding: 2px 4px; opacity: .8 } @media (max-width: 1100px) { .hint { display: none !important } } .hint { font-size: 11px; color: var(--ink-3); gap: 6px; padding-right: 6px }
`;

// frame: {view, views: [{view, label, query}], steps: {h, l, j, k: patch|null}, visible}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const bar = el("div.viewtabs", {role: "tablist", "aria-label": "views"});
    ui.root.append(bar);
    let frame = null;
    const keys = event => {
      if (!frame || !frame.visible) return;
      if (event.key === "Escape" && !typing(event)) return void ui.go({pin: ""});
      if (!global(event)) return;
      const view = frame.views[+event.key - 1], step = frame.steps[event.key];
      if (view) ui.go({view: view.view});
      else if (step) ui.go(step);
    };
    document.addEventListener("keydown", keys);
    model.on("remove", () => document.removeEventListener("keydown", keys));
    return next => {
      frame = next;
      bar.replaceChildren(...frame.views.map(({view, label, query}, i) => link(ui, "", query, {view}, {role: "tab", "aria-selected": String(view === frame.view), "data-view": view}, label, el("kbd", null, i + 1))),
        el("span.grow"), el("span.row.hint", null, el("kbd", null, "click"), "pin a token ", el("kbd", null, "j"), el("kbd", null, "k"), "example ", el("kbd", null, "h"), el("kbd", null, "l"), "head ", el("kbd", null, "Esc"), "release"));
    };
  });
}
