// The views of one example. Keys: 1 to 6 switch the view, Esc releases the pin, h l step through heads, j k through
// examples.
import { el } from "../_js/dom.js";
import { component, global, link, typing, walk } from "../_js/shell.js";

const CSS = `
.viewtabs { display: flex; align-items: stretch; height: 36px; background: var(--surface); border: 1px solid var(--line); border-radius: 8px; padding: 0 6px }
.views { display: flex; align-items: stretch; min-width: 0 } .viewtabs a { display: flex; align-items: center; gap: 7px; padding: 0 12px; color: var(--ink-2); font-weight: 500; border-bottom: 2px solid transparent; border-top: 2px solid transparent } .viewtabs a[aria-selected=true] { color: var(--ink); font-weight: 600; border-bottom-color: var(--accent) }
.starred { border: 0; background: none; font-size: 17px; line-height: 1; padding: 2px 6px; color: var(--ink-3); align-self: center } .starred[aria-pressed=true] { color: var(--warn) }
.remark { height: 26px; width: 190px; flex: 0 1 190px; min-width: 60px; align-self: center; border: 1px solid var(--line-2); border-radius: 6px; background: var(--bg); color: var(--ink); padding: 0 8px; margin-right: 10px; font-size: 12px !important }
.viewtabs a { white-space: nowrap } .viewtabs a kbd { font-size: 10px; padding: 2px 4px } @media (max-width: 1000px) { .viewtabs a kbd { display: none } .viewtabs a { padding: 0 9px } } @media (max-width: 1100px) { .hint { display: none !important } } .hint { font-size: 11px; color: var(--ink-3); gap: 6px; padding-right: 6px }
`;

// frame: {view, views: [{view, label, query}], steps: {h, l, j, k: patch|null}, visible}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const remark = el("input.remark", {type: "text", "aria-label": "note on this example", placeholder: "A note on this example\u2026", maxlength: 2000, dir: "auto", onchange: () => ui.send({bookmark: {example: true, note: remark.value}})});
    const star = el("button.starred", {"aria-label": "star this example", title: "star this example (s)", onclick: () => ui.send({bookmark: {example: true, star: !frame.bookmark.star}})});
    const hint = el("span.row.hint", null, el("kbd", null, "click"), "pin a token ", el("kbd", null, "j"), el("kbd", null, "k"), "example ", el("kbd", null, "h"), el("kbd", null, "l"), "head ", el("kbd", null, "Esc"), "release");
    const tabs = el("div.views", {role: "tablist", "aria-label": "views"});
    ui.root.append(el("div.viewtabs", null, tabs, el("span.grow"), star, remark, hint));
    walk(tabs, () => [...tabs.children]);
    let frame = null;
    const keys = event => {
      if (!frame || !frame.visible) return;
      if (event.key === "Escape" && !typing(event)) return void ui.go({pin: ""});
      if (!global(event)) return;
      const view = frame.views[+event.key - 1], step = frame.steps[event.key];
      if (event.key === "s" && frame.bookmark?.writable) star.click();
      else if (view) ui.go({view: view.view});
      else if (step) ui.go(step);
    };
    document.addEventListener("keydown", keys);
    model.on("remove", () => document.removeEventListener("keydown", keys));
    return next => {
      frame = next;
      const {bookmark} = frame;
      star.textContent = bookmark?.star ? "\u2605" : "\u2606"; star.setAttribute("aria-pressed", String(!!bookmark?.star)); star.disabled = remark.disabled = !bookmark?.writable;
      if (ui.root.getRootNode().activeElement !== remark) remark.value = bookmark?.note || "";
      tabs.replaceChildren(...frame.views.map(({view, label, query}, i) => link(ui, "", query, {view}, {role: "tab", "aria-selected": String(view === frame.view), "data-view": view}, label, el("kbd", null, i + 1))));
      star.style.display = remark.style.display = bookmark ? "" : "none";
    };
  });
}
