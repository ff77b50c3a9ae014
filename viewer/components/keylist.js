import { plain, number, formatPin } from "../_js/paint.js";
import { el, mount } from "../_js/dom.js";
import { CSS } from "../_js/style.js";

const OWN = `
.wl { display: grid; grid-template-columns: 82px minmax(0, 1fr) 36px; gap: 8px; align-items: center; min-height: 24px; font-size: 12px; padding: 2px 0; width: 100%; border: 0; background: none; text-align: left }
.wl.narrow { grid-template-columns: 48px minmax(0, 1fr) 36px } .wl.wide { grid-template-columns: minmax(0, 1fr) 84px 36px }
@media (max-width: 1100px) { .wl { grid-template-columns: minmax(56px, 1fr) minmax(24px, 1fr) 30px } .wl.wide { grid-template-columns: minmax(0, 1fr) 30px 30px } }
button.wl:hover { background: var(--surface-2) } .wl .n { text-align: right; font-variant-numeric: tabular-nums; line-height: 14px } .wl .p { color: var(--ink-3); font-size: 11px; margin-left: 5px }
.wl .b i { display: block; border-radius: 2px; min-width: 1px; margin: 1px 0 } .wl.narrow .b, .wl.wide .b, .wl.back .b { background: var(--surface-3); border-radius: 3px; overflow: hidden } .wl.narrow .b i, .wl.wide .b i, .wl.back .b i { margin: 0; height: 6px !important }
.wl.on { background: var(--accent-soft); border-radius: 4px } .wl.dim { color: var(--ink-3) } .wl.dim .b i { opacity: .4 }
.pinned { display: flex; align-items: center; gap: 8px; margin-bottom: 8px } .pinned .tok { font-size: 15px; font-weight: 600; border-radius: 3px; padding: 1px 6px; unicode-bidi: isolate; max-width: 170px }
.pinned .tok.q { box-shadow: inset 0 0 0 1.5px var(--accent) } .pinned .tok.k { background: var(--accent); color: var(--on-accent) }
.x { margin-left: auto; width: 26px; height: 26px; border: 0; background: none; border-radius: 6px; color: var(--ink-2) } .x:hover { background: var(--surface-2) }
bdi { unicode-bidi: isolate }
`;

export function render({model, el: host}) {
  const {root, paint} = mount(model, host, CSS + OWN, () => draw());
  const body = el("div.body");
  root.append(el("section.card", null, body));
  const name = label => el("bdi", null, label);

  // a labelled row with one bar per head
  function row(label, position, weights, colors, {dim = false, on = false, onclick = null, kind = "", data = {}} = {}) {
    if (weights.length > 12) { const best = weights.indexOf(Math.max(...weights)); data = {...data, weights: data.weights ?? weights.join(" ")}; colors = [colors[best]]; weights = [weights[best]]; }   // with many heads only the strongest gets a bar
    const height = weights.length > 1 ? Math.max(2, Math.min(7, 24 / weights.length)) : 8, many = weights.length > 4;
    const shown = many ? [Math.max(...weights)] : weights;
    return el(`${onclick ? "button" : "div"}.wl${kind}${dim ? ".dim" : ""}${on ? ".on" : ""}`, {onclick, ...Object.fromEntries(Object.entries(data).map(([k, v]) => [`data-${k}`, v]))},
      el("span.ell", null, label, position === null ? null : el("span.p.num", null, position)),
      el("div.b", null, weights.map((w, i) => el("i", {style: `height:${height}px;width:${Math.max(0, Math.min(1, w)) * 100}%;background:${colors[i]}`}))),
      el("div.n", null, shown.map(w => el("div", null, number(w)))));
  }
  function draw() {
    const frame = plain(model.frame), p = paint();
    if (frame.message) return body.replaceChildren(el("p.dim", null, frame.message.text));
    if (!frame.heads) return body.replaceChildren();
    const colors = frame.heads.map((_, i) => p.head(i)), slot = head => frame.heads.indexOf(head);
    const note = frame.note ? el("p.dim", {"data-note": ""}, frame.note) : "";
    if (frame.edges) {
      return body.replaceChildren(el("p.sect", null, "Strongest edges", el("span.r", null, "click a token to pin it")), note,
        ...frame.edges.map(e => row([name(e.labels[0]), " \u2192 ", name(e.labels[1])], null, [e.weight], [colors[e.slot]],
          {kind: ".wide", onclick: () => { model.pin = `q${e.query}`; }, data: {query: e.query, key: e.key, weight: e.weight.toFixed(6), head: frame.heads[e.slot]}})));
    }
    const toQuery = frame.side === "q", other = toQuery ? "k" : "q";
    const turn = side => { model.pin = formatPin({side, index: frame.position}); };
    const parts = [el("div.pinned", null, el(`span.tok.ell.${frame.side}`, null, name(frame.label)), el("span.dim", {style: "font-size:12px"}, `${toQuery ? "query" : "key"} ${frame.position}`),
        el("button.x", {"aria-label": "release the pin", onclick: () => { model.pin = ""; }}, "\u2715"))];
    if (frame.turns) parts.push(el("div.seg", {role: "group"}, el("button", {"aria-pressed": String(toQuery), onclick: () => turn("q")}, "Attends to"),
      el("button", {"aria-pressed": String(!toQuery), onclick: () => turn("k")}, "Attended by")), el("div", {style: "height:8px"}));
    parts.push(note, ...frame.rows.map(r => row(name(r.label), r.position, r.weights, colors, {on: frame.partner === r.position, onclick: () => { model.pin = `${frame.side}${frame.position}${other}${r.position}`; },
      data: {row: r.position, weights: r.weights.map(w => w.toFixed(6)).join(" ")}})));
    if (frame.rest.length) parts.push(row(toQuery ? "other keys" : "other queries", null, frame.rest, colors, {dim: true, data: {row: "rest", weights: frame.rest.map(w => w.toFixed(6)).join(" ")}}));
    if (frame.hidden.length) parts.push(row("hidden", null, frame.hidden, colors, {dim: true, data: {row: "hidden", weights: frame.hidden.map(w => w.toFixed(6)).join(" ")}}));
    if (frame.edge.heads) parts.push(el("hr"), el("p.sect", null, "Heads with this edge", el("span.r", null, name(frame.edge.title[0]), " \u2192 ", name(frame.edge.title[1]))),
      ...frame.edge.heads.map(h => row(el("b", null, h.head), null, [h.weight], [slot(h.head) < 0 ? p["ink-3"] : colors[slot(h.head)]],
        {kind: ".narrow", onclick: () => model.send_msg({add: h.head}), data: {"edge-head": h.head, weight: h.weight.toFixed(6)}})));
    if (frame.back.length) parts.push(el("hr"), el("p.sect", null, toQuery ? "Attended by" : "Attends to", el("span.r", null, "strongest of the heads shown")),
      ...frame.back.map(r => row(name(r.label), r.position, r.weights, [p["ink-3"]], {kind: ".back", onclick: () => { model.pin = `${frame.side}${r.position}`; }, data: {back: r.position, weight: r.weights[0].toFixed(6)}})));
    if (!frame.alone) parts.push(el("hr"), el("div.row", null, el("button.btn", {onclick: () => model.send_msg({go: "neuron"})}, "Why: neuron view"), el("button.btn", {onclick: () => model.send_msg({go: "model"})}, "Model view")));
    body.replaceChildren(...parts);
  }
  draw();
  model.on("frame", draw);
}
