// Facts about the store, as figures in one strip.
import { el, mirror } from "../_js/dom.js";
import { component } from "../_js/shell.js";

const CSS = `
.figures { flex-direction: row; align-items: center; height: 56px; padding: 0 4px; overflow: hidden }
.fact { padding: 0 18px; border-left: 1px solid var(--line); line-height: 1.25; white-space: nowrap; min-width: 0 } .fact:first-child { border: 0; padding-left: 12px }
.fact b { display: block; font-size: 16px; font-weight: 600; letter-spacing: -.01em; font-variant-numeric: tabular-nums; overflow: hidden; text-overflow: ellipsis; max-width: 260px; unicode-bidi: isolate }
/* in a narrow strip names are shortened, figures are not */
.fact[data-fact=Examples], .fact[data-fact=Tokens], .fact[data-fact=Heads], .fact[data-fact="Size on disk"], .fact[data-fact="Codec error"] { flex: none }
@media (max-width: 1279px) { .fact { padding: 0 12px } .fact b { font-size: 14px } } @media (max-width: 900px) { .fact[data-fact=Kept], .fact[data-fact="Codec error"] { display: none } }
.fact[data-fact^=Cut] { flex: none } .fact[data-fact="Left out"] { flex: 0 1 auto; overflow: hidden } .fact span { font-size: 11px; color: var(--ink-3) }
.figures .tag { margin-right: 42px } .figures .downloads { top: 15px }
`;

// frame: {facts: [[value, label]], tag: [text, "accent"|"warn"], sites: [names], site}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const figures = el("div.figures.card", {style: "border:0;flex:1"}), card = el("section.card.figures", {"data-picture": "store", "aria-label": "the store"}, figures), table = mirror(card, "the store");
    ui.root.append(card);
    return frame => {
      figures.replaceChildren(...frame.facts.map(([value, label]) => el("div.fact", {"data-fact": label}, el("b", {title: value}, value), el("span", null, label))),
        el("span.grow"), el(`span.tag.${frame.tag[1]}`, null, frame.tag[0]));
      table.set(["Fact", "Value"], frame.facts.map(([value, label]) => [label, value]));
    };
  });
}
