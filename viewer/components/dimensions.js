import { number } from "../_js/paint.js";
import { el, onceAFrame } from "../_js/dom.js";

// Side of the neuron view: dimensions by their part, each with a factor from 0 to 2, and the resulting row.
export const DIMENSIONS_CSS = `
.dim { display: grid; grid-template-columns: 40px 34px minmax(0, 1fr) 44px 40px; gap: 8px; align-items: center; height: 28px; font-size: 12px; margin: 0 -5px; padding: 0 5px; border-radius: 4px }
.dim.on { background: var(--accent-soft) } .dim.th { height: 18px; color: var(--ink-3); font-size: 11px } .dim .pt { display: flex; justify-content: flex-end } .dim .pt i { height: 8px; border-radius: 1px }
.dim b { border: 0; background: none; padding: 0; text-align: left; font-weight: 600; cursor: pointer } .dim .v { text-align: right; font-variant-numeric: tabular-nums } .dim .btn { padding: 0 4px; justify-content: center }
.wl { display: grid; grid-template-columns: 90px minmax(0, 1fr) 36px; gap: 8px; align-items: center; min-height: 24px; font-size: 12px } .wl .n { text-align: right; font-variant-numeric: tabular-nums } .wl .p { color: var(--ink-3); font-size: 11px; margin-left: 5px }
.wl .tr { position: relative; height: 7px; border-radius: 2px; background: var(--surface-3) } .wl .tr i { position: absolute; left: 0; top: 0; bottom: 0; border-radius: 2px; background: var(--accent); min-width: 1.5px } .wl .tr u { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--ink) }
@media (max-width: 1100px) { .dim:not(.wl) { grid-template-columns: 30px 22px minmax(0, 1fr) 34px 36px; gap: 4px } }
.cmd { display: flex; gap: 6px; align-items: flex-start; margin-top: 6px } .cmd code { flex: 1; font-size: 11px; color: var(--ink-2); overflow-wrap: anywhere; user-select: all } .cmd .btn { flex: none; height: 22px }
.note { font-size: 12px; color: var(--ink-2); margin-top: 6px }
`;

const SHOWN = 9;

// `view`: {parts, groups: [[dimensions scaled together]], scale: Map, dim, setDim, rescale, rows: [{label, k, now, before}],
// hidden, edited, paint, pairs, canScale, commands: {name: text}}
export function dimensionList(host, view) {
  const {groups, scale, paint: p} = view, parts = groups.map(dims => dims.reduce((sum, d) => sum + view.parts[d], 0)), byPair = groups.some(dims => dims.length > 1);
  const ranked = [...groups.keys()].sort((a, b) => Math.abs(parts[b]) - Math.abs(parts[a]) || a - b), groupOf = d => groups.findIndex(dims => dims.includes(d));
  const shown = [...new Set([...ranked.slice(0, SHOWN), ...[...scale.keys()].map(groupOf), ...(view.dim === null ? [] : [groupOf(view.dim)])])], most = Math.abs(parts[ranked[0]]) || 1;
  const pairTitle = d => { const pair = view.pairs.findIndex(members => members.includes(d)); return pair < 0 ? "" : `rotary pair ${pair}: dimensions ${view.pairs[pair].join(" and ")}`; };
  const send = onceAFrame((dims, value) => view.rescale(dims, value));
  const row = i => {
    const dims = groups[i], d = dims[0], factor = scale.has(d) ? scale.get(d) : 1, zero = dims.every(member => scale.get(member) === 0), name = dims.length > 1 ? `rotary pair ${i}` : `dimension ${d}`;
    const input = el("input", {type: "range", min: 0, max: 2, step: .05, "aria-label": `factor of ${name}`, "data-factor": d, disabled: !view.canScale, style: `--p:${factor * 50}%`});
    input.value = factor;
    input.addEventListener("input", () => { input.style.setProperty("--p", `${input.value * 50}%`); send(dims, +input.value); });
    const choose = () => view.setDim(d);
    return el(`div.dim${dims.includes(view.dim) ? ".on" : ""}`, {"data-dim": d, "data-dims": dims.join(","), "data-part": parts[i].toFixed(6)},
      el("span.pt", null, el("i", {style: `width:${Math.max(1, 38 * Math.abs(parts[i]) / most)}px;background:${parts[i] < 0 ? p.neg : p.pos}`})),
      el("b.num", {role: "button", tabindex: 0, title: pairTitle(d), onclick: choose, onkeydown: event => { if (event.key === "Enter") choose(); }}, dims.length > 1 ? `p${i}` : d), input,
      el("span.v", null, factor === 1 ? number(parts[i]) : `\u00D7${number(factor)}`), el("button.btn.quiet", {"data-zero": d, disabled: !view.canScale, onclick: () => view.rescale(dims, zero ? 1 : 0)}, zero ? "back" : "zero"));
  };
  const bar = ({label, k, now, before}) => el("div.wl", {"data-key": k, "data-now": now.toFixed(6)}, el("span.ell", null, el("bdi", null, label), el("span.p", null, k)),
    el("div.tr", null, el("i", {style: `width:${Math.min(1, now) * 100}%`}), view.edited ? el("u", {style: `left:calc(${Math.min(1, before) * 100}% - 1px)`}) : null), el("span.n", null, number(now)));
  const command = (name, text) => {
    const label = el("span", null, "Copy");
    const copy = async () => {
      try { await navigator.clipboard.writeText(text); label.textContent = "Copied"; }
      catch { label.textContent = "Select it"; }   // without https a browser has no clipboard for pages
      setTimeout(() => { label.textContent = "Copy"; }, 1500);
    };
    return el("div.cmd", null, el("code", {"data-command": name}, text), el("button.btn.quiet", {"data-copy": name, title: `copy as command: headatlas ${name}`, onclick: copy}, label));
  };
  const changed = groups.filter(dims => dims.some(d => (scale.get(d) ?? 1) !== 1)).length, focus = host.getRootNode().activeElement?.dataset?.factor;
  host.replaceChildren(el("p.sect", null, byPair ? "Rotary pairs" : "Dimensions", el("span.r", null, "by their part in the score")),
    el("div.dim.th", null, el("span"), el("span", null, byPair ? "pair" : "dim"), el("span", null, "factor"), el("span.v", null, "part"), el("span")), ...shown.map(row),
    el("div.row", {style: "margin-top:8px"}, el(`span.tag${changed ? ".accent" : ""}`, null, changed ? `${changed} changed` : "no changes"), el("span.grow"), el("button.btn", {"data-reset": "", onclick: () => view.rescale(null)}, "Reset")),
    ...Object.entries(view.commands).map(([name, text]) => command(name, text)),
    el("hr"), el("p.sect", null, "Attention of this row", el("span.r", null, view.edited ? "tick: before" : "")), ...view.rows.map(bar),
    view.hidden === null ? "" : el("div.wl.dim", {style: "display:grid;margin:0;padding:0"}, el("span", null, "special, hidden"), el("div.tr", null, el("i", {style: `width:${view.hidden * 100}%;opacity:.4`})), el("span.n", null, number(view.hidden))),
    el("hr"), el("p.sect", null, "Score"), el("p.note", null, view.note));
  if (focus !== undefined) host.querySelector(`[data-factor="${focus}"]`)?.focus();
}
