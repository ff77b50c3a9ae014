// Heads ranked by a search: mass as a bar beside its baselines (the tick: uniform attention).
import { count, number } from "../_js/paint.js";
import { el, mirror } from "../_js/dom.js";
import { component, segmented, walk } from "../_js/shell.js";

const CSS = `
.hr { display: grid; grid-template-columns: 24px 48px 1fr 40px 40px 48px 56px; gap: 9px; align-items: center; height: 23px; width: 100%; font-size: 12px !important; padding: 0 12px; border: 0; background: none; text-align: left }
.hr:hover, .hr:focus { background: var(--surface-2) } .hr.on { background: var(--accent-soft) } .hr .n { text-align: right; font-variant-numeric: tabular-nums }
.th { color: var(--ink-3); font-size: 11px !important } .th:hover { background: none }
.axis { display: flex; justify-content: space-between }
.mass { position: relative; height: 22px; background: linear-gradient(90deg, var(--line) 1px, transparent 1px) 0/25% 100% } .mass > i { position: absolute }
.mass .b { left: 0; top: 6px; height: 10px; border-radius: 2px; background: var(--accent); opacity: .88; min-width: 2px } .below .mass .b { background: var(--line-2); opacity: 1 }
.mass .best { top: 2px; width: 2px; height: 18px; margin-left: -1px; background: var(--ink); box-shadow: 0 0 0 1px var(--surface) }
.hr .st { font-style: normal; font-size: 10px; color: var(--warn); margin-left: 3px } .hr .st[data-star=false] { color: var(--ink-3) } .below .d { color: var(--ink-3) }
.foot { padding: 6px 12px 4px; border-top: 1px solid var(--line); font-size: 11px; color: var(--ink-3) }
.key i { display: inline-block; background: var(--ink); width: 2px; height: 14px }
`;
const MEASURES = [["mass", "Mass"], ["hit_rate", "Hit rate"], ["lift", "Lift"]];

// frame: {rows: [{head, layer, index, rank, mass, hit_rate, baseline, lift, rows, on}], high, measure, n_heads, stale}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const head = el("header"), titles = el("div.hr.th", {style: "height:22px"}), list = el("div", {style: "flex:1;overflow:hidden auto;min-height:0"}), foot = el("div.row.foot");
    const card = el("section.card", {"data-picture": "ranked heads", "aria-label": "ranked heads"}, head, el("div.body", {style: "padding:4px 0;overflow:hidden;display:flex;flex-direction:column"}, titles, list, foot));
    ui.root.append(card);
    walk(list, () => [...list.querySelectorAll(".hr")]);
    const table = mirror(card, "ranked heads");
    return frame => {
      const at = v => `${100 * Math.max(0, Math.min(1, v / (frame.high || 1)))}%`, scroll = list.scrollTop;
      card.classList.toggle("stale", !!frame.stale);
      head.replaceChildren(el("h2", null, "Heads"), el("span.grow"),
        el("span.legend.key", null, el("i"), "uniform attention"), segmented(MEASURES, frame.measure, "rank by", v => ui.go({measure: v})));
      titles.replaceChildren(el("span.n", null, "#"), el("span", null, "head"), el("span.axis", null, [0, .25, .5, .75, 1].map(x => el("span", null, x ? number(x * frame.high).replace(/\.00$/, "") : "0"))),
        ...["mass", "hit", "lift", "rows"].map(t => el("span.n", null, t)));
      list.replaceChildren(...frame.rows.map(row => {
        const tip = event => ui.tip.show(event, `Head ${row.head}`, [["Mass", number(row.mass, 3), "", true], ["Hit rate", number(row.hit_rate, 3)],
          ["Uniform attention", number(row.baseline, 3)], ["Lift", `${row.lift.toFixed(2)}\u00D7`], ["Query rows", count(row.rows)], ...(row.note?.note ? [[row.note.note.slice(0, 120), ""]] : [])], "click: its examples");
        return el(`button.hr${row.on ? ".on" : ""}${row.lift < 1 ? ".below" : ""}`, {"data-head": row.head, "data-mass": row.mass.toFixed(6), "aria-pressed": String(row.on), onclick: () => ui.go({layer: row.layer, head: row.index}), onmousemove: tip, onmouseleave: ui.tip.hide},
          el("span.n.dim", null, row.rank), el("b", {title: row.note?.note || null}, row.head, row.note ? el("i.st", {"data-star": String(row.note.star)}, row.note.star ? "\u2605" : "\u270e") : null),
          el("span.mass", null, el("i.b", {style: `width:${at(row.mass)}`}), el("i.best", {style: `left:${at(row.baseline)}`})),
          el("span.n.strong", null, number(row.mass)), el("span.n", null, number(row.hit_rate)), el("span.n", null, Number.isFinite(row.lift) ? `${row.lift.toFixed(1)}\u00D7` : "\u2013"), el("span.n.d", null, count(row.rows)));
      }));
      list.scrollTop = scroll;
      table.set(["Rank", "Head", "Mass", "Hit", "Baseline", "Lift", "Rows"], frame.rows.map(row => [row.rank, row.head, number(row.mass, 3), number(row.hit_rate, 3), number(row.baseline, 3), number(row.lift, 3), row.rows]),
        frame.rows.map(row => ({head: row.head, mass: row.mass.toFixed(6), hit: row.hit_rate.toFixed(6), baseline: row.baseline.toFixed(6), lift: row.lift.toFixed(6)})));
      foot.replaceChildren(el("span", null, frame.rows.length < frame.n_heads ? `${count(frame.rows.length)} of ${count(frame.n_heads)} heads` : `${count(frame.n_heads)} heads`), el("span.grow"), el("span", null, "grey: below its baseline"));
    };
  });
}
