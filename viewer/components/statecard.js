// A page without a picture: the reason, and what the reader can do. The loading bars appear after 150 ms.
import { el } from "../_js/dom.js";
import { component, link } from "../_js/shell.js";

const CSS = `
.st { height: 100%; justify-content: flex-start; gap: 10px; padding: 40px 28px } .st h3 { margin: 0; font-size: 15px; font-weight: 600 } .st p { color: var(--ink-2); max-width: 80ch; white-space: pre-line; overflow-wrap: anywhere }
.sk { height: 12px; border-radius: 4px; background: linear-gradient(90deg,var(--surface-2),var(--surface-3),var(--surface-2)); background-size: 200% 100%; visibility: hidden; animation: appear 0s .15s forwards }
@keyframes appear { to { visibility: visible } }
@media (prefers-reduced-motion: no-preference) { .sk { animation: appear 0s .15s forwards, slide 1.4s linear infinite } @keyframes slide { to { background-position: -200% 0 } } }
`;

// frame: {kind, title, lines: [text], code, loading: bool, actions: [{label, query, patch, primary}]}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const card = el("section.card.st");
    ui.root.append(card);
    return frame => {
      card.dataset.state = frame.kind;
      card.replaceChildren(el("h3", null, frame.title), ...(frame.loading ? [72, 90, 54].map(w => el("div.sk", {style: `width:${w}%`})) : []),
        ...frame.lines.map(line => el("p", null, line)), ...(frame.code ? [el("div.code", null, frame.code)] : []),
        el("div.row", null, (frame.actions || []).map(a => link(ui, `.btn${a.primary ? ".primary" : ""}`, a.query, a.patch, null, a.label))));
    };
  });
}
