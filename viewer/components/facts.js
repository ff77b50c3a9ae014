// Facts about the store, as figures in one strip.
import { el, middle, mirror } from "../_js/dom.js";
import { component } from "../_js/shell.js";

const CSS = `
.figures { flex-direction: row; align-items: center; height: 30px; padding: 0 4px; overflow: hidden }
.fact { padding: 0 10px; border-left: 1px solid var(--line); display: flex; gap: 6px; align-items: baseline; white-space: nowrap; min-width: 0 } .fact:first-child { border: 0; padding-left: 8px }
.fact b { font-size: 12px; font-weight: 600; font-variant-numeric: tabular-nums; overflow: hidden; text-overflow: ellipsis; max-width: 220px; unicode-bidi: isolate }
/* in a narrow strip names are shortened, figures are not */
.fact[data-fact=Examples], .fact[data-fact=Tokens], .fact[data-fact=Heads], .fact[data-fact="Size on disk"], .fact[data-fact="Codec error"] { flex: none }
@media (max-width: 1279px) { .fact { padding: 0 8px } .fact b { font-size: 12px } } @media (max-width: 900px) { .fact[data-fact=Kept], .fact[data-fact="Codec error"] { display: none } }
.fact[data-fact^=Cut] { flex: none } .fact span { font-size: 11px; color: var(--ink-3) }
.figures .tag { margin-right: 42px } .figures .downloads { top: 2px } .figures .left-out { margin-right: 8px }
dialog { position: fixed; inset: 0; margin: auto; width: 720px; max-width: 90vw; height: fit-content; max-height: 80vh; overflow: auto; border: 1px solid var(--line-2); border-radius: 8px; background: var(--surface); color: var(--ink); box-shadow: var(--shadow); padding: 16px 20px } dialog::backdrop { background: #0006 }
dialog h2 { font-size: 15px; font-weight: 600 } dialog ul { margin: 10px 0 0; padding-left: 18px; font-size: 12px; line-height: 1.6 } dialog li { overflow-wrap: anywhere; unicode-bidi: isolate }
`;

// frame: {facts: [[value, label]], tag: [text, "accent"|"warn"], left_out: [lines]}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const figures = el("div.figures.card", {style: "border:0;flex:1"}), card = el("section.card.figures", {"data-picture": "store", "aria-label": "the store"}, figures), table = mirror(card, "the store");
    const lines = el("ul"), list = el("dialog", {"aria-label": "left out of this store"}, el("div.row", null, el("h2", null, "Left out of this store"), el("span.grow"), el("button.btn", {onclick: () => list.close()}, "Close")), lines);
    ui.root.append(card, list);
    return frame => {
      lines.replaceChildren(...frame.left_out.map(line => el("li", null, line)));
      const button = frame.left_out.length ? el("button.btn.left-out", {onclick: () => list.showModal()}, `left out (${frame.left_out.length})`) : "";
      figures.replaceChildren(...frame.facts.map(([value, label]) => el("div.fact", {"data-fact": label}, middle(value, "b"), el("span", null, label))),
        el("span.grow"), button, el(`span.tag.${frame.tag[1]}`, null, frame.tag[0]));
      table.set(["Fact", "Value"], [...frame.facts.map(([value, label]) => [label, value]), ...frame.left_out.map(line => ["Left out", line])]);
    };
  });
}
