// Figures that a search rests on: rows, examples and heads, with the source and time of the answer.
import { el } from "../_js/dom.js";
import { component } from "../_js/shell.js";

const CSS = `
.sum { display: flex; align-items: center; gap: 18px; height: 34px; padding: 0 12px; border-radius: 8px; background: var(--surface); border: 1px solid var(--line); font-size: 12px; color: var(--ink-2); white-space: nowrap; overflow: hidden }
.sum span { flex: none } .sum .right { flex: 0 1 auto; overflow: hidden; text-overflow: ellipsis } .sum .right:nth-last-child(-n+2) { flex: none }
.sum b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums }
`;

// frame: {figures: [[number, words]], right: [text], stale: text, partial: text}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const bar = el("div.sum", {role: "status"});
    ui.root.append(bar);
    return frame => bar.replaceChildren(...(frame.stale ? [el("span.tag", null, frame.stale)] : []), ...(frame.partial ? [el("span.tag.warn", {"data-partial": "1"}, frame.partial)] : []),
      ...frame.figures.map(([figure, words]) => el("span", null, el("b", null, figure), ` ${words}`)), el("span.grow"), ...frame.right.map(text => el("span.right", {title: text}, text)));
  });
}
