// Heads ranked by a search: a bar for the mass with its interval, and two ticks (short: uniform attention, long: the
// mass that the null expects of this head).
import { count, number } from "../_js/paint.js";
import { el, mirror } from "../_js/dom.js";
import { component, segmented, walk } from "../_js/shell.js";

const CSS = `
.hr { display: grid; grid-template-columns: 24px 48px 1fr 40px 40px 48px 52px; gap: 9px; align-items: center; height: 23px; width: 100%; font-size: 12px !important; padding: 0 12px; border: 0; background: none; text-align: left }
.hr:hover, .hr:focus { background: var(--surface-2) } .hr.on { background: var(--accent-soft) } .hr .n { text-align: right; font-variant-numeric: tabular-nums }
.th { color: var(--ink-3); font-size: 11px !important } .th:hover { background: none }
.axis { display: flex; justify-content: space-between }
.mass { position: relative; height: 22px; background: linear-gradient(90deg, var(--line) 1px, transparent 1px) 0/25% 100% } .mass > i { position: absolute }
.mass .b { left: 0; top: 6px; height: 10px; border-radius: 2px; background: var(--accent); opacity: .88; min-width: 2px } .below .mass .b { background: var(--line-2); opacity: 1 }
.mass .tick { top: 5px; width: 2px; height: 12px; margin-left: -1px; background: var(--ink); box-shadow: 0 0 0 1px var(--surface) } .mass .tick.long { top: 0; height: 22px; background: var(--warn) }
.mass .span { top: 9px; height: 4px; border: solid var(--ink-2); border-width: 0 1px; background: linear-gradient(var(--ink-2),var(--ink-2)) 0/100% 1px no-repeat; background-position: center }
.hr .st { font-style: normal; font-size: 10px; color: var(--warn); margin-left: 3px } .hr .st[data-star=false] { color: var(--ink-3) } .below .d { color: var(--ink-3) }
.foot { padding: 6px 12px 4px; border-top: 1px solid var(--line); font-size: 11px; color: var(--ink-3) }
.key i { display: inline-block; background: var(--ink); width: 2px; height: 10px } .key i.long { background: var(--warn); height: 16px }
`;
const MEASURES = [["mass", "Mass"], ["hit_rate", "Hit rate"], ["lift", "Lift"]];

// frame: {rows: [{head, layer, index, rank, mass, low, high, hit_rate, baseline, lift, expected, above, q, rows,
//         on}], high, measure, n_heads, stale, null: its name, sentence, ranked: true if there are enough rows}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const head = el("header"), titles = el("div.hr.th", {style: "height:22px"}), list = el("div", {style: "flex:1;overflow:hidden auto;min-height:0"}), foot = el("div.row.foot");
    const card = el("section.card", {"data-picture": "ranked heads", "data-figure": "", "aria-label": "ranked heads"}, head, el("div.body", {style: "padding:4px 0;overflow:hidden;display:flex;flex-direction:column"}, titles, list, foot));
    ui.root.append(card);
    walk(list, () => [...list.querySelectorAll(".hr")]);
    const table = mirror(card, "ranked heads");
    return frame => {
      const times = (v, digits = 1) => Number.isFinite(v) ? `${v.toFixed(digits)}\u00D7` : "\u2013", interval = row => Number.isFinite(row.low) ? `${number(row.low, 3)}\u2013${number(row.high, 3)}` : "\u2013";
      const below = row => frame.ranked && Number.isFinite(row.q) && !(row.q < .05);
      const percentOf = v => `${100 * Math.max(0, Math.min(1, v / (frame.high || 1)))}%`, scroll = list.scrollTop;
      card.classList.toggle("stale", !!frame.stale);
      head.replaceChildren(el("h2", null, "Heads"), el("span.grow"),
        el("span.legend.key", null, el("i"), "uniform"), el("span.legend.key", {title: frame.sentence}, el("i.long"), frame.null), segmented(MEASURES, frame.measure, "rank by", v => ui.go({measure: v})));
      titles.replaceChildren(el("span.n", null, "#"), el("span", null, "head"), el("span.axis", null, [0, .25, .5, .75, 1].map(x => el("span", null, x ? number(x * frame.high).replace(/\.00$/, "") : "0"))),
        ...[["mass", "mean attention on matching keys"], ["hit", "share of rows whose strongest key matches"], ["lift", "mass over uniform attention"], ["/null", `mass over ${frame.null}`]].map(([t, title]) => el("span.n", {title}, t)));
      list.replaceChildren(...frame.rows.map(row => {
        const tip = event => ui.tip.show(event, `Head ${row.head}`, [["Mass", number(row.mass, 3), "", true], ["95 % interval", interval(row)], ["Hit rate", number(row.hit_rate, 3)],
          ["Uniform attention", number(row.baseline, 3), times(row.lift, 2)], [frame.null, number(row.expected, 3), times(row.above, 2)],
          ["False discovery", Number.isFinite(row.q) ? row.q < .001 ? "< .001" : number(row.q, 3) : frame.ranked ? "no comparison" : "too few rows"], ...(below(row) ? [[row.is_explained ? `Explained by ${frame.null}: at most` : `Undecided, too few data: up to`, times(row.above_high, 2)]] : []), ["Query rows", count(row.rows)], ...(row.bookmark?.note ? [[row.bookmark.note.slice(0, 120), ""]] : [])], "click to list its examples");
        return el(`button.hr${row.on ? ".on" : ""}${below(row) ? ".below" : ""}`, {"data-head": row.head, "data-mass": row.mass.toFixed(6), "aria-pressed": String(row.on), onclick: () => ui.go({layer: row.layer, head: row.index}), onmousemove: tip, onmouseleave: ui.tip.hide},
          el("span.n.dim", null, row.rank), el("b", {title: row.bookmark?.note || null}, row.head, row.bookmark ? el("i.st", {"data-star": String(row.bookmark.star)}, row.bookmark.star ? "\u2605" : "\u270e") : null),
          el("span.mass", null, el("i.b", {style: `width:${percentOf(row.mass)}`}), Number.isFinite(row.low) ? el("i.span", {"data-low": row.low.toFixed(6), "data-high": row.high.toFixed(6), style: `left:${percentOf(row.low)};width:calc(${percentOf(row.high)} - ${percentOf(row.low)})`}) : null,
            el("i.tick", {style: `left:${percentOf(row.baseline)}`}), Number.isFinite(row.expected) ? el("i.tick.long", {style: `left:${percentOf(row.expected)}`}) : null),
          el("span.n.strong", null, number(row.mass)), el("span.n", null, number(row.hit_rate)), el("span.n", null, times(row.lift)), el("span.n.d", null, times(row.above)));
      }));
      list.scrollTop = scroll;
      table.set(["Rank", "Head", "Mass", "95 % interval", "Hit", "Uniform", "Lift", "Null", "/Null", "False discovery", "Rows"],
        frame.rows.map(row => [row.rank, row.head, number(row.mass, 3), interval(row), number(row.hit_rate, 3), number(row.baseline, 3), number(row.lift, 3), number(row.expected, 3), number(row.above, 3), number(row.q, 3), row.rows]),
        frame.rows.map(row => ({head: row.head, mass: row.mass.toFixed(6), hit: row.hit_rate.toFixed(6), baseline: row.baseline.toFixed(6), lift: row.lift.toFixed(6),
          low: row.low.toFixed(6), high: row.high.toFixed(6), above: String(row.above), q: String(row.q)})));
      foot.replaceChildren(el("span", null, frame.rows.length < frame.n_heads ? `${count(frame.rows.length)} of ${count(frame.n_heads)} heads` : `${count(frame.n_heads)} heads`), el("span.grow"), el("span", null, frame.ranked ? `line: 95 % interval \u00B7 grey: not above ${frame.null}, explained by it or undecided` : "too few rows or sampling units to rank heads"));
    };
  });
}
