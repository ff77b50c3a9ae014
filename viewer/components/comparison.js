import { plain, number } from "../_js/paint.js";
import { el, mount, mirror } from "../_js/dom.js";
import { CSS } from "../_js/style.js";

const OWN = `
.side { display: grid; grid-template-columns: 18px minmax(0,1fr); gap: 2px 6px; font-size: 12px; margin-top: 8px } .side b { font-weight: 650 } .side .a { color: var(--pos) } .side .b { color: var(--neg) }
.pickb { width: 100%; height: 26px; border: 1px solid var(--line-2); border-radius: 6px; background: var(--surface); margin-top: 6px; font-size: 12px } .numb { width: 72px }
.moved { display: grid; grid-template-columns: 46px minmax(0,1fr) 34px; gap: 8px; align-items: center; height: 22px; width: 100%; border: 0; background: none; text-align: left; font-size: 12px; padding: 0 2px } .moved:hover { background: var(--surface-2) } .moved[aria-pressed=true] { background: var(--accent-soft) } .moved .n { text-align: right; font-variant-numeric: tabular-nums }
`;
const KINDS = [["examples", "Examples"], ["heads", "Heads"], ["models", "Models"]];

export function render({model, el: host}) {
  const {root} = mount(model, host, CSS + OWN, () => draw());
  const body = el("div.body"), card = el("section.card", {"data-picture": "heads that change"}, body);
  root.append(card);
  const table = mirror(card, "heads that change");
  const send = message => model.send_msg(message);
  function draw() {
    const frame = plain(model.frame);
    if (!frame.compare) return body.replaceChildren();
    const most = Math.max(1e-6, ...frame.heads.map(h => h.value));
    const choose = frame.choices.length ? el("select.pickb", {"aria-label": "compare with", onchange: event => send({b: event.target.value})}, frame.choices.map(([value, text]) => el("option", {value}, text))) : "";
    if (choose) choose.value = frame.choice;
    const field = frame.number === undefined ? "" : el("label.row", {style: "margin-top:6px;font-size:12px"}, "B is example", el("input.pickb.numb", {type: "number", min: 0, value: frame.number, "aria-label": "number of example B", style: "margin:0", onchange: event => send({b: event.target.value})}));
    body.replaceChildren(el("p.sect", null, "Compare"), el("div.seg", {role: "group", "aria-label": "kind of comparison"}, KINDS.map(([value, text]) => el("button", {"aria-pressed": String(frame.compare === value), "data-compare": value, onclick: () => send({compare: value})}, text))),
      el("div.side", null, el("b.a", null, "A"), el("span", {dir: "auto"}, frame.a), el("b.b", null, "B"), el("span", {dir: "auto"}, frame.b)), choose, field,
      frame.compare === "models" || !frame.a ? "" : el("div.row", {style: "margin-top:8px"}, el("button.btn", {onclick: () => send({swap: true})}, "Swap A and B")),
      ...(frame.heads.length ? [el("hr"), el("p.sect", null, frame.list, el("span.r", {title: "half the absolute difference of a row, averaged over rows"}, "row change")), ...frame.heads.map(h => el("button.moved", {"data-head": h.head, "data-value": h.value.toFixed(6), "aria-pressed": String(h.head === frame.head), onclick: () => send({head: h.head})},
        el("b", null, h.head), el("div.bar", null, el("i", {style: `width:${100 * h.value / most}%`})), el("span.n", null, number(h.value))))] : [el("hr"), el("p.dim.sm", null, frame.why || "")]));
    table.set(["Head", "Value"], frame.heads.map(h => [h.head, number(h.value, 3)]), frame.heads.map(h => ({head: h.head, value: h.value.toFixed(6)})));
  }
  model.on("frame", draw);
  draw();
}
