// A page without a picture: the reason, and what the reader can do. The loading bars appear after 150 ms.
import { el } from "../_js/dom.js";
import { component, link } from "../_js/shell.js";

const CSS = `
.st { height: 100%; justify-content: flex-start; gap: 10px; padding: 40px 28px } .st h3 { margin: 0; font-size: 15px; font-weight: 600 } .st p { color: var(--ink-2); max-width: 80ch; white-space: pre-line; overflow-wrap: anywhere }
.st.listing { padding: 16px 20px; overflow: auto } .named { columns: 3 300px; column-gap: 28px } .named section { margin-bottom: 12px; break-inside: avoid } .pat { display: grid; grid-template-columns: minmax(110px, 38%) 1fr; gap: 8px; width: 100%; border: 0; background: none; text-align: left; padding: 3px 6px; border-radius: 4px; font-size: 12px !important; line-height: 1.35 } .pat:hover, .pat:focus-visible { background: var(--surface-2) } .pat b { font-weight: 600 }
.sk { height: 12px; border-radius: 4px; background: linear-gradient(90deg,var(--surface-2),var(--surface-3),var(--surface-2)); background-size: 200% 100%; visibility: hidden; animation: appear 0s .15s forwards }
@keyframes appear { to { visibility: visible } }
@media (prefers-reduced-motion: no-preference) { .sk { animation: appear 0s .15s forwards, slide 1.4s linear infinite } @keyframes slide { to { background-position: -200% 0 } } }
`;

// frame: {kind, title, lines: [text], code, loading: bool, actions: [{label, query, patch, primary}],
//         items: [{group, name, label, text, run}]}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const card = el("section.card.st");
    ui.root.append(card);
    const named = items => items.length ? [el("div.named", null, [...new Set(items.map(item => item.group))].map(group => el("section", null, el("p.sect", null, group),
      items.filter(item => item.group === group).map(item => el("button.pat", {"data-pattern-item": item.name, title: item.run, onclick: () => ui.send({run: item.run})}, el("b", null, item.label), el("span.dim2", null, item.text))))))] : [];
    return frame => {
      card.dataset.state = frame.kind;
      card.replaceChildren(el("h3", null, frame.title), ...(frame.loading ? [72, 90, 54].map(w => el("div.sk", {style: `width:${w}%`})) : []),
        ...frame.lines.map(line => el("p", null, line)), ...(frame.code ? [el("div.code", null, frame.code)] : []),
        el("div.row", null, (frame.actions || []).map(a => link(ui, `.btn${a.primary ? ".primary" : ""}`, a.query, a.patch, null, a.label))), ...named(frame.items || []));
      card.classList.toggle("listing", !!frame.items?.length);
    };
  });
}
