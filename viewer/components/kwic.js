// Keyword in context: ranked examples, one per row, aligned on the query token. The weight shades the key.
import { number, SCALES } from "../_js/paint.js";
import { directionOf, el, middle, mirror } from "../_js/dom.js";
import { component, link, segmented, walk } from "../_js/shell.js";

const CSS = `
.kw { display: grid; grid-template-columns: 92px 1fr 74px; gap: 10px; align-items: center; height: 31px; padding: 0 12px; border-bottom: 1px solid var(--line); font-size: 13px } .kw:hover, .kw:focus { background: var(--surface-2) }
.words { display: grid; grid-template-columns: minmax(0,1fr) minmax(0,1fr); align-items: center; min-width: 0; white-space: pre }
.words .l { display: flex; justify-content: flex-end; overflow: hidden; -webkit-mask-image: linear-gradient(90deg,transparent,#000 36px); mask-image: linear-gradient(90deg,transparent,#000 36px) }
.words .l > span { flex: none; color: var(--ink-2); unicode-bidi: isolate } .words .l > .tok { color: inherit }
.words .q2 { display: flex; min-width: 0; align-items: center } .words .q2 > .tok { margin-left: 5px; flex: none }
.words .r { display: flex; flex: 1; min-width: 0; overflow: hidden; color: var(--ink-2); -webkit-mask-image: linear-gradient(270deg,transparent,#000 36px); mask-image: linear-gradient(270deg,transparent,#000 36px) } .words .r > span { flex: none; unicode-bidi: isolate }
.words[dir=rtl] .l { -webkit-mask-image: linear-gradient(270deg,transparent,#000 36px); mask-image: linear-gradient(270deg,transparent,#000 36px) } .words[dir=rtl] .r { -webkit-mask-image: linear-gradient(90deg,transparent,#000 36px); mask-image: linear-gradient(90deg,transparent,#000 36px) } .words[dir=rtl] .q2 > .tok { margin: 0 5px 0 0 }
.id { display: flex; gap: 4px; min-width: 0 } .id b { flex: none }
.w { display: grid; grid-template-columns: 1fr 28px; gap: 6px; align-items: center }
.foot { padding: 6px 12px; border-top: 1px solid var(--line); font-size: 11px; color: var(--ink-3) }
`;

// frame: {title, sub, sample, samples, description, n, rows: [{id, rank, score, weight, query, patch, before: [[text, kind,
//         weight]], token: text, self: bool, after: [...]}], stale, note}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const head = el("header"), list = el("div", {style: "flex:1;overflow:hidden auto;min-height:0"}), foot = el("div.row.foot");
    const card = el("section.card", {"data-picture": "ranked examples", "aria-label": "ranked examples"}, head, el("div.body", {style: "padding:0;overflow:hidden;display:flex;flex-direction:column"}, list, foot));
    ui.root.append(card);
    walk(list, () => [...list.querySelectorAll(".kw")], true);
    const table = mirror(card, "ranked examples"), joined = parts => parts.map(part => part[0]).join("");
    return frame => {
      const p = ui.paint(), shade = w => { const v = SCALES.sqrt(w) * .86; return `background:${p.seq(v)};color:${p.on(v)}`; };
      const part = ([text, kind, weight]) => kind === "key" ? el("span.tok.k", {dir: "auto", style: shade(weight), "data-key": text}, text) : el("span", {dir: "auto"}, text);
      card.classList.toggle("stale", !!frame.stale);
      head.replaceChildren(el("h2", null, frame.title), el("span.sub.ell", null, frame.sub), el("span.grow"),
        segmented(frame.samples.map(name => [name, name[0].toUpperCase() + name.slice(1)]), frame.sample, "which examples", sample => ui.go({sample})));
      list.replaceChildren(...frame.rows.map(row => link(ui, ".kw", row.query, row.patch, {"data-example": row.patch.example, "data-weight": row.weight.toFixed(4), "data-pin": row.patch.pin},
        el("span.xs.dim.num.id", {title: row.count > 1 ? `${row.count} examples have this quote; the first is ${row.id}` : row.id, dir: "auto"}, middle(row.id, "span"), row.count > 1 ? el("b.strong", {"data-count": row.count}, `\u00D7${row.count}`) : ""),
        el("span.words", {dir: directionOf(joined(row.before) + row.token + joined(row.after))}, el("span.l", null, row.before.map(part)),
          el("span.q2", null, el("span.tok.q", {dir: "auto", style: row.self ? shade(row.weight) : "", "data-query": row.token}, row.token), el("span.r", null, row.after.map(part)))),
        el("span.w", {title: `mass of the example ${number(row.score, 3)}, rank ${row.rank} of ${frame.n}; weight of this edge ${number(row.weight, 3)}`},
          el("span.bar", null, el("i", {style: `width:${100 * row.score}%`})), el("span.num.strong.sm", {style: "text-align:right"}, number(row.score))))));
      table.set(["Id", "Rank", "Mass", "Weight", "Before", "Query", "After", "Examples"], frame.rows.map(row => [row.id, row.rank, number(row.score, 3), number(row.weight, 3), joined(row.before), row.token, joined(row.after), row.count]),
        frame.rows.map(row => ({rank: row.rank, score: row.score.toFixed(6), weight: row.weight.toFixed(6)})));
      if (!frame.rows.length) list.append(el("div.message", null, frame.note || "No example."));
      foot.replaceChildren(el("span", null, frame.description), el("span.legend", null, el("span.tok.q", null, "query"), el("span.tok.k", {style: shade(.75)}, "key"), "depth = weight, bar = mass of the example"), el("span.grow"), el("span", null, el("kbd", null, "j"), " ", el("kbd", null, "k"), " move  ", el("kbd", null, "Enter"), " open"));
    };
  });
}
