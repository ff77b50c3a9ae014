import { plain, number, count } from "../_js/paint.js";
import { el, mount, mirror } from "../_js/dom.js";
import { CSS } from "../_js/style.js";

const OWN = `
.side { display: grid; grid-template-columns: 18px minmax(0,1fr); gap: 2px 6px; font-size: 12px; margin-top: 8px } .side b { font-weight: 650 } .side .a { color: var(--pos) } .side .b { color: var(--neg) }
.pickb { width: 100%; height: 26px; border: 1px solid var(--line-2); border-radius: 6px; background: var(--surface); margin-top: 6px; font-size: 12px } .numb { width: 72px }
.moved { display: grid; grid-template-columns: 46px minmax(0,1fr) 34px; gap: 8px; align-items: center; height: 22px; width: 100%; border: 0; background: none; text-align: left; font-size: 12px; padding: 0 2px } .moved:hover { background: var(--surface-2) } .moved[aria-pressed=true] { background: var(--accent-soft) } .moved .bar { position: relative } .moved .bar u { position: absolute; top: 3px; height: 1px; background: var(--ink) } .found { display: block; width: 100%; min-height: 24px; border: 0; background: none; text-align: left; font-size: 12px; padding: 2px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap } .found:hover, .found:focus { background: var(--surface-2) } .moved .n { text-align: right; font-variant-numeric: tabular-nums }
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
    const search = frame.number === undefined ? [] : [el("input.pickb", {type: "search", placeholder: "or find B by its text", value: frame.search || "", "aria-label": "text of example B", onchange: event => send({find: event.target.value})}),
      ...(frame.search ? [el("p.dim.sm", {role: "status"}, frame.n_matches ? `${frame.matches.length} of ${count(frame.n_matches)} examples` : `no example contains \u201C${frame.search}\u201D`)] : []),
      ...(frame.matches || []).map(([value, text]) => el("button.found", {"data-match": value, title: text, dir: "auto", onclick: () => send({b: value})}, text))];
    const scope = frame.scopes ? el("select.pickb", {"aria-label": "pairs that rank the heads", onchange: event => send({pairs: event.target.value})}, frame.scopes.map(([value, text]) => el("option", {value}, text))) : "";
    if (scope) scope.value = frame.pairs;
    const span = h => h.low === undefined ? "" : el("u", {style: `left:${100 * h.low / most}%;width:${Math.min(100, 100 * h.high / most) - 100 * h.low / most}%`});
    body.replaceChildren(el("p.sect", null, "Compare"), el("div.seg", {role: "group", "aria-label": "kind of comparison"}, KINDS.map(([value, text]) => el("button", {"aria-pressed": String(frame.compare === value), "data-compare": value, onclick: () => send({compare: value})}, text))),
      el("div.side", null, el("b.a", null, "A"), el("span", {dir: "auto"}, frame.a), el("b.b", null, "B"), el("span", {dir: "auto"}, frame.b)), choose, field, ...search,
      frame.compare === "models" || !frame.a ? "" : el("div.row", {style: "margin-top:8px"}, el("button.btn", {onclick: () => send({swap: true})}, "Swap A and B")),
      ...(frame.heads.length ? [el("hr"), el("p.sect", null, frame.list, el("span.r", {title: "half the absolute difference of a row, averaged over rows"}, "row change")), scope, frame.about ? el("p.dim.sm", null, `${frame.about}; line: 95 % interval`) : "", ...frame.heads.map(h => el("button.moved", {"data-head": h.head, "data-value": h.value.toFixed(6), "aria-pressed": String(h.head === frame.head), onclick: () => send({head: h.head})},
        el("b", null, h.head), el("div.bar", null, el("i", {style: `width:${100 * h.value / most}%`}), span(h)), el("span.n", null, number(h.value))))] : [el("hr"), scope, el("p.dim.sm", {role: "status"}, frame.why || "")]));
    table.set(["Head", "Value"], frame.heads.map(h => [h.head, number(h.value, 3)]), frame.heads.map(h => ({head: h.head, value: h.value.toFixed(6), ...(h.low === undefined ? {} : {low: h.low.toFixed(6), high: h.high.toFixed(6)})})));
  }
  model.on("frame", draw);
  draw();
}
