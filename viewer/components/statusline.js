// Source, error bound and time of the numbers.
import { el } from "../_js/dom.js";
import { component } from "../_js/shell.js";

const CSS = `
.status { display: flex; align-items: center; gap: 16px; height: 26px; padding: 0 16px; background: var(--surface); border-top: 1px solid var(--line); font-size: 11px; color: var(--ink-2); white-space: nowrap; overflow: hidden }
.dot { width: 7px; height: 7px; border-radius: 50%; background: var(--good); display: inline-block; margin-right: 6px } .dot.warn { background: var(--warn) }
`;

// frame: {good: bool, parts: [text], right: [text]}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const bar = el("footer.status", {"aria-live": "polite"});
    ui.root.append(bar);
    return frame => bar.replaceChildren(
      ...frame.parts.map((part, i) => el("span", null, i ? null : el(`i.dot${frame.good ? "" : ".warn"}`, {"aria-hidden": "true"}), part)),
      el("span.grow"), ...frame.right.map(part => el("span", null, part)));
  });
}
