// One number of one head over all examples: a histogram with the median, the middle half and the mean of the corpus.
import { count, number } from "../_js/paint.js";
import { pointerIn, el, fit, write } from "../_js/dom.js";
import { component, link } from "../_js/shell.js";

const EDGE = {left: 46, right: 16, top: 28, bottom: 22};

// frame: {title, unit, counts: [n], high, quartiles: [q1, median, q3], corpus, n, n_all, query, patch}
export function render({model, el: host}) {
  component(model, host, ".plot { position: relative; height: 100% }", ui => {
    const canvas = el("canvas", {role: "img"}), box = el("div.plot", null, canvas), head = el("header");
    ui.root.append(el("section.card", {"data-picture": "distribution", "data-figure": "", "aria-label": "over examples"}, head, el("div.body", {style: "padding:4px 12px 8px;overflow:hidden"}, box)));
    let frame = null;
    function draw() {
      if (!frame || !box.clientWidth || box.clientHeight < 40) return;
      const p = ui.paint(), w = box.clientWidth, h = box.clientHeight, g = fit(canvas, w, h), most = Math.max(1, ...frame.counts);
      const x = v => EDGE.left + v / frame.high * (w - EDGE.left - EDGE.right), y = n => h - EDGE.bottom - n / most * (h - EDGE.top - EDGE.bottom);
      for (const n of [0, most / 2, most]) {
        g.fillStyle = p.line; g.fillRect(EDGE.left, Math.round(y(n)), w - EDGE.left - EDGE.right, 1);
        write(g, count(Math.round(n)), EDGE.left - 6, y(n), {color: p["ink-3"], align: "right"});
      }
      const step = (w - EDGE.left - EDGE.right) / frame.counts.length;
      g.fillStyle = p.accent; g.globalAlpha = .85;
      const bar = Math.min(24, Math.max(1, step - 1));
      canvas.dataset.bar = bar;
      frame.counts.forEach((n, i) => n && g.fillRect(EDGE.left + (i + .5) * step - bar / 2, y(n), bar, y(0) - y(n)));
      g.globalAlpha = 1;
      for (let i = 0; i <= 5; i++) write(g, number(frame.high * i / 5).replace(/\.?0+$/, "") || "0", x(frame.high * i / 5), h - 9, {color: p["ink-3"], align: "center"});
      if (!frame.n) return;
      const [low, median, upper] = frame.quartiles;
      g.fillStyle = p["ink-2"]; g.fillRect(x(low), 5, Math.max(2, x(upper) - x(low)), 3);
      g.beginPath(); g.arc(x(median), 6.5, 4, 0, 7); g.fillStyle = p.surface; g.fill(); g.lineWidth = 1.5; g.strokeStyle = p.ink; g.stroke();
      g.fillStyle = p.ink; g.fillRect(x(frame.corpus) - .75, EDGE.top - 16, 1.5, h - EDGE.top - EDGE.bottom + 16);
      write(g, `corpus ${number(frame.corpus)}`, x(frame.corpus) + (x(frame.corpus) > w - 110 ? -6 : 6), EDGE.top - 10, {color: p.ink, align: x(frame.corpus) > w - 110 ? "right" : "left"});
    }
    canvas.onmousemove = event => {
      if (!frame) return;
      const [x] = pointerIn(event, canvas), i = Math.floor((x - EDGE.left) / (canvas.clientWidth - EDGE.left - EDGE.right) * frame.counts.length);
      if (i < 0 || i >= frame.counts.length) { ui.tip.hide(); return; }
      const width = frame.high / frame.counts.length;
      ui.tip.show(event, `${number(i * width, 3)} \u2013 ${number((i + 1) * width, 3)}`, [["Examples", count(frame.counts[i]), "", true]]);
    };
    canvas.onmouseleave = ui.tip.hide;
    new ResizeObserver(draw).observe(box);
    return next => {
      frame = next;
      const [low, median, upper] = frame.quartiles;
      head.replaceChildren(el("h2", {style: "flex:none"}, "Over examples"), el("span.sub.ell", {title: frame.title}, frame.title), el("span.grow"),
        el("span.xs.dim2.num.ell", null, el("b.strong", null, `median ${number(median)}`), `  middle half ${number(low)}\u2013${number(upper)}${frame.unit ? ` ${frame.unit}` : ""}  \u00B7  ${count(frame.n)} of ${count(frame.n_all)} examples`),
        link(ui, ".btn", frame.query, frame.patch, null, "List them"));
      canvas.setAttribute("aria-label", `${frame.title} over ${count(frame.n)} examples: median ${number(median, 3)}, middle half ${number(low, 3)} to ${number(upper, 3)}, mean over the corpus ${number(frame.corpus, 3)}`);
      draw();
    };
  });
}
