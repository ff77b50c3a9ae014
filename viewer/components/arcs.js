import { count } from "../_js/paint.js";
import { el, fit } from "../_js/dom.js";
// Arcs on a sentence. A click on one token and then on another draws an arc from query to key. The server answers with
// expressions that match all arcs.

export const ARCS_CSS = `
.draw { position: relative; overflow: auto; max-height: 34vh; padding-top: 30px; line-height: 40px } .draw canvas { position: absolute; left: 0; top: 0; pointer-events: none } .draw .w { display: inline-block; line-height: 20px; vertical-align: bottom; padding: 1px 5px; margin: 0 1px; border: 0; border-radius: 3px; background: var(--surface-2); font-size: 12.5px !important; unicode-bidi: isolate }
.draw .w:hover { background: var(--surface-3) } .draw .w.from { box-shadow: inset 0 0 0 1.5px var(--accent) } .draw .keys { margin-top: 14px; display: block } .draw .side { color: var(--ink-3); font-size: 11px; margin-right: 6px } .draw .w.hid { color: var(--ink-3) }
.means { display: flex; gap: 6px; flex-wrap: wrap; align-items: center; font-size: 12px; min-height: 26px; overflow: auto; max-height: 64px }
`;

export function arcEditor(ui, send) {
  const canvas = el("canvas", {"aria-hidden": "true"}), row = el("span"), second = el("span.keys"), tokens = el("div.draw", {role: "group", "aria-label": "draw arcs: click the query token, then its key"}, canvas, row, second);
  const means = el("div.means", {"aria-live": "polite"}), box = el("div", null, tokens, means);
  let drawn = null, from = null;
  const nodes = side => [...(side === "k" && drawn.keys ? second : row).children];
  function click(side, index) {
    if (from === null) { if (side === "q") from = index; }
    else if (drawn.keys && side === "q") from = index;
    else {
      const same = arc => arc[0] === from && arc[1] === index, arcs = drawn.arcs.some(same) ? drawn.arcs.filter(arc => !same(arc)) : [...drawn.arcs, [from, index]];
      from = null;
      drawn = {...drawn, arcs};   // the reader can draw the next arc before the answer arrives
      send(arcs);
    }
    paint();
  }
  function paint() {
    if (!drawn) return;
    canvas.style.width = canvas.style.height = "0";   // else the canvas itself would set the size that is measured
    const p = ui.paint(), g = fit(canvas, tokens.clientWidth, Math.max(tokens.scrollHeight, 60)), middle = node => node.offsetLeft + node.offsetWidth / 2;
    nodes("q").forEach((node, i) => node.classList.toggle("from", i === from));
    g.lineWidth = 1.6; g.strokeStyle = p.accent; g.fillStyle = p.accent;
    for (const [q, k] of drawn.arcs) {
      const a = nodes("q")[q], b = nodes("k")[k];
      if (!a || !b) continue;
      const x1 = middle(a), x2 = middle(b), below = !!drawn.keys, y1 = below ? a.offsetTop + a.offsetHeight : a.offsetTop, y2 = b.offsetTop, height = below ? -12 : Math.min(26, 10 + Math.abs(x2 - x1) * .12);
      g.beginPath(); g.moveTo(x1, y1); g.bezierCurveTo(x1, y1 - height, x2, y2 - Math.abs(height), x2, y2); g.stroke();
      g.beginPath(); g.arc(x2, y2 - 1, 3, 0, 7); g.fill();
    }
  }
  const word = (side, label, i, dim) => el(`button.w${dim ? ".hid" : ""}`, {"data-side": side, "data-index": i, dir: "auto", onclick: () => click(side, i)}, label);
  return {
    box,
    show(next) {
      const fresh = !drawn || drawn.id !== next.id;
      drawn = next;
      if (fresh) { from = null; row.replaceChildren(...next.queries.map((label, i) => word("q", label, i, next.dim[0].includes(i)))); second.style.display = next.keys ? "" : "none"; second.replaceChildren(...(next.keys || []).map((label, i) => word("k", label, i, next.dim[1].includes(i)))); }
      means.replaceChildren(...(next.arcs.length ? [el("span.dim", null, "may mean"), ...(next.guesses.length ? next.guesses.map(([expression, n]) => el("button.chip", {"data-guess": expression, title: `${count(n)} pairs of this example`, onclick: () => ui.send({run: expression})}, expression, el("span.dim", {style: "margin-left:6px"}, count(n)))) : [el("span.dim", null, "nothing that all arcs have in common")]),
        el("button.btn.quiet", {onclick: () => send([])}, "Clear")] : [el("span.dim", null, `Click a token of ${next.id} that attends, then the token it attends to. Several arcs narrow it down.`)]));
      requestAnimationFrame(paint);
    },
  };
}
