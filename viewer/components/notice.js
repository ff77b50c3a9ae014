// Rejected values of the address, each with its reason, and banners about the store.
import { el } from "../_js/dom.js";
import { component, icon } from "../_js/shell.js";

const CSS = `
.complaint { display: flex; gap: 12px; align-items: flex-start; margin: 8px 16px 0; padding: 8px 12px; border-radius: 6px; background: var(--warn-soft); color: var(--warn); font-size: 12px }
.complaint ul { margin: 0; padding: 0; list-style: none; flex: 1; min-width: 0; overflow-wrap: anywhere } .complaint b { font-weight: 600 }
.complaint code { font: 12px var(--mono); unicode-bidi: isolate }
`;

// frame: {title, problems: [{field, value, reason}], banners: [{kind, text, label?}]}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const box = el("div.complaint", {role: "alert"});
    const banners = el("div");
    ui.root.append(banners, box);
    return frame => {
      banners.replaceChildren(...(frame.banners || []).map(b => el("div.complaint", {role: "status", "data-banner": b.kind}, el("span.grow", null, b.text), b.label ? el("button.btn.primary", {onclick: () => ui.send({refresh: true})}, b.label) : "")));
      box.style.display = frame.problems.length ? "" : "none";
      box.replaceChildren(el("b", null, frame.title),
        el("ul", null, frame.problems.map(p => el("li", {"data-field": p.field}, el("code", null, `${p.field} = ${p.value}`), ` \u2014 ${p.reason}`))),
        el("button.btn.quiet.icon", {"aria-label": "dismiss", onclick: () => ui.send({dismiss: true})}, icon("close")));
    };
  });
}
