// One head: value and rank of its statistics, its strongest examples, and heads with a similar profile.
import { count, number, plain, SCALES } from "../_js/paint.js";
import { directionOf, el, fit } from "../_js/dom.js";
import { component, link, walk } from "../_js/shell.js";

const CSS = `
.strip { display: grid; grid-template-columns: 118px 1fr 40px 40px; align-items: center; gap: 8px; height: 25px; width: calc(100% + 8px); font-size: 12px !important; border: 0; border-radius: 4px; margin: 0 -4px; padding: 0 4px; background: none; text-align: left }
.strip:hover { background: var(--surface-2) } .strip.on { background: var(--accent-soft) }
.strip .v { text-align: right; font-weight: 600; font-variant-numeric: tabular-nums } .strip .k { text-align: right; color: var(--ink-3); font-size: 11px; font-variant-numeric: tabular-nums }
.strip canvas { width: 100% }
.starred { border: 0; background: none; font-size: 17px; line-height: 1; padding: 2px 4px; color: var(--ink-3) } .starred[aria-pressed=true] { color: var(--warn) } .remark { width: 100%; min-height: 46px; resize: vertical; border: 1px solid var(--line-2); border-radius: 6px; background: var(--bg); color: var(--ink); padding: 6px 8px; font: inherit; font-size: 12px }
.exm { display: grid; grid-template-columns: 1fr 30px; gap: 8px; padding: 5px 0; border-top: 1px solid var(--line); font-size: 12px; align-items: center } .exm:hover { background: var(--surface-2) }
.exm .l { display: flex; overflow: hidden; white-space: pre } .exm .l > span { unicode-bidi: isolate }
.like { display: grid; grid-template-columns: 44px 1fr 30px; align-items: center; gap: 8px; height: 22px; width: 100%; font-size: 12px !important; border: 0; padding: 0; background: none; text-align: left }
`;

// table: {statistic: float32 of every head}; frame: {head, layer, index, sub, tag, n, statistics: [{name, label, value,
//         rank, of, high, on}], examples: [{query, patch, parts: [[text, kind, weight]], score}], examples_of, like:
//         [{head, layer, index, score}], search: {query, patch}|null, open: {query, patch}|null, list: {query, patch}}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const head = el("header"), body = el("div.body", {style: "padding:10px 12px 8px"});
    ui.root.append(el("section.card", {"data-picture": "head", "aria-label": "head"}, head, body));
    const remark = el("textarea.remark", {"aria-label": "note on this head", placeholder: "A note on this head\u2026", maxlength: 2000, dir: "auto"});
    let savedNote = "", of = null;
    const keep = () => { if (of !== null && remark.value !== savedNote) { savedNote = remark.value; ui.send({bookmark: {head: of, note: remark.value}}); } };
    remark.addEventListener("change", keep);
    for (const kind of [".strip", ".exm", ".like"]) walk(body, () => [...body.querySelectorAll(kind)]);
    const strips = new Map();   // rows by statistic; the elements are reused for every head
    const makeStrip = s => {
      const strip = {now: s, canvas: el("canvas", {"aria-hidden": "true"}), label: el("span.ell"), value: el("span.v"), rank: el("span.k")};
      const tip = event => ui.tip.show(event, strip.now.label, [["This head", number(strip.now.value, 3), "", true], ["Rank", `${strip.now.rank} of ${count(strip.now.of)}`]], "ticks: all heads \u00B7 click colours the map");
      strip.node = el("button.strip", {"data-statistic": s.name, onclick: () => ui.go({statistic: s.name}), onmousemove: tip, onmouseleave: ui.tip.hide}, strip.label, strip.canvas, strip.value, strip.rank);
      strips.set(s.name, strip);
      return strip;
    };
    const write = (strip, s) => {
      strip.now = s;
      strip.node.classList.toggle("on", s.on);
      strip.node.setAttribute("aria-pressed", String(s.on));
      strip.label.textContent = s.label; strip.value.textContent = number(s.value); strip.rank.textContent = s.rank ? `#${s.rank}` : "\u2013";
    };
    return frame => {
      if (of !== frame.head) keep();   // a note that was begun belongs to the head that was shown
      if (of !== frame.head || ui.root.getRootNode().activeElement !== remark) { remark.value = savedNote = frame.bookmark?.note || ""; of = frame.head; }
      const p = ui.paint(), table = plain(model.table), shown = frame.statistics.map(s => strips.get(s.name) || makeStrip(s));
      head.replaceChildren(el("h2", {style: "font-size:15px"}, `Head ${frame.head}`), el("span.sub.ell", null, frame.sub));
      frame.statistics.forEach((s, i) => write(shown[i], s));
      body.replaceChildren(
        el("div.row", {style: "margin-bottom:10px"}, frame.tag ? el("span.tag.accent", null, frame.tag) : null,
          frame.bookmark ? el("button.starred", {"aria-label": "star this head", "aria-pressed": String(frame.bookmark.star), disabled: !frame.bookmark.writable, onclick: () => ui.send({bookmark: {head: frame.head, star: !frame.bookmark.star}})}, frame.bookmark.star ? "\u2605" : "\u2606") : null, el("span.grow"),
          link(ui, ".btn", frame.list.query, frame.list.patch, {"data-action": "examples"}, "Examples"),
          frame.open ? link(ui, ".btn.primary", frame.open.query, frame.open.patch, {"data-action": "open"}, "Open example") : null),
        frame.bookmark && (frame.bookmark.writable || frame.bookmark.note) ? remark : "",
        el("div.sect", {style: "margin-top:8px"}, "Statistics", el("span.r", null, `value, rank of ${count(frame.n)}`)), ...shown.map(strip => strip.node),
        ...(frame.examples.length ? [el("hr"), el("div.sect", null, "Strongest examples", el("span.r", null, frame.examples_of)),
          el("div", null, frame.examples.map(example => link(ui, ".exm", example.query, example.patch, {"data-example": example.patch.example},
            el("span.l", {dir: directionOf(example.parts.map(part => part[0]).join(""))}, example.parts.map(part => piece(part, p))), el("span.num.strong", {style: "text-align:right"}, number(example.score)))))] : []),
        ...(frame.like.length ? [el("hr", {style: "margin-top:6px"}), el("div.sect", null, "Similar heads", el("span.r", null, "by profile of statistics")),
          el("div", null, frame.like.map(other => el("button.like", {onclick: () => ui.go({layer: other.layer, head: other.index})}, el("b", null, other.head),
            el("div.bar", null, el("i", {style: `width:${100 * other.score}%`})), el("span.num", {style: "text-align:right"}, number(other.score)))))] : []));
      const width = shown.length ? Math.max(60, shown[0].node.clientWidth - 118 - 80 - 32) : 0;   // read once: reading after a change forces a layout
      for (const {canvas, now} of shown) paintStrip(canvas, width, now, table[now.name] || [], p);
    };
  });
}

export function piece([text, kind, weight], p) {
  if (kind === "query") return el("span.tok.q", {dir: "auto"}, text);
  if (kind !== "key") return el("span", {dir: "auto"}, text);
  const v = SCALES.sqrt(weight) * .86;
  return el("span.tok.k", {dir: "auto", style: `background:${p.seq(v)};color:${p.on(v)}`}, text);
}

function paintStrip(canvas, width, s, values, p) {
  const g = fit(canvas, width, 16);
  const x = v => 4 + Math.max(0, Math.min(1, v / (s.high || 1))) * (width - 8);
  g.fillStyle = p.line; g.fillRect(0, 8, width, 1);
  g.fillStyle = p["ink-3"]; g.globalAlpha = values.length > 300 ? .12 : .28;
  for (const v of values) if (!Number.isNaN(v)) g.fillRect(x(v) - .5, 4, 1, 9);
  g.globalAlpha = 1;
  if (Number.isNaN(s.value)) return;
  g.beginPath(); g.arc(x(s.value), 8.5, 4, 0, 7); g.fillStyle = p.accent; g.fill();
  g.lineWidth = 1.5; g.strokeStyle = p.surface; g.stroke();
}
