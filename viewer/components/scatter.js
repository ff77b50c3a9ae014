// Every head as a dot by two statistics, shaded by layer. Arrows select the nearest head in their direction.
import { axisOf, count, number } from "../_js/paint.js";
import { pointerIn, el, fit, mirror, write } from "../_js/dom.js";
import { within } from "../_js/lasso.js";
import { component, select } from "../_js/shell.js";

const CSS = `
.plot { position: relative; height: 100% } .plot canvas { cursor: crosshair; touch-action: none } .under .btn { height: 20px; font-size: 11px !important }
.ramp { width: 80px; height: 8px; border-radius: 2px; border: 1px solid var(--line-2) }
.under { padding: 0 12px 8px; font-size: 11px; color: var(--ink-3) }
`;
const EDGE = {left: 46, right: 16, top: 12, bottom: 34};

// frame: {layers: [numbers], n_heads, x: {name, label, unit, high, values: float32}, y: ..., options: [[value, label]], note}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const canvas = el("canvas", {tabindex: 0, role: "img"}), box = el("div.plot", null, canvas), head = el("header"), under = el("div.row.under"), live = el("span.sr", {"aria-live": "polite"});
    ui.root.append(el("section.card", {"data-picture": "heads by two statistics", "data-figure": "", "aria-label": "heads by two statistics"}, head, el("div.body", {style: "padding:10px 11px 0;overflow:hidden"}, box), under), live);
    const table = mirror(box, "heads by two statistics");
    let frame = null, hovered = -1, size = [0, 0], lasso = null;
    const selection = () => frame ? model.selected.split(",").map(text => { const [l, h] = text.split(".").map(Number); return frame.layers.indexOf(l) * frame.n_heads + h; }) : [], selected = () => selection()[0] ?? -1;
    const layerOf = i => frame.layers[Math.floor(i / frame.n_heads)];
    const name = i => `${layerOf(i)}.${i % frame.n_heads}`;
    let axes = null;
    const share = (axis, v) => (v - axes[axis].low) / (axes[axis].high - axes[axis].low), along = s => EDGE.left + s * (size[0] - EDGE.left - EDGE.right), up = s => size[1] - EDGE.bottom - s * (size[1] - EDGE.top - EDGE.bottom);
    const spot = i => [along(share("x", frame.x.values[i])), up(share("y", frame.y.values[i]))];
    const there = i => !Number.isNaN(frame.x.values[i]) && !Number.isNaN(frame.y.values[i]);
    const label = axis => `${axis.label}${axis.unit ? ` (${axis.unit})` : ""}`;

    function draw() {
      if (!frame || !box.clientWidth || box.clientHeight < 60) return;
      size = [box.clientWidth, box.clientHeight];
      const p = ui.paint(), [w, h] = size, g = fit(canvas, w, h), n = frame.x.values.length, layers = n / frame.n_heads, radius = n > 300 ? 3 : 4.6;
      g.strokeStyle = p.line; g.lineWidth = 1;
      for (const v of axes.x.ticks) { const x = Math.round(along(share("x", v))) + .5; g.beginPath(); g.moveTo(x, EDGE.top); g.lineTo(x, h - EDGE.bottom); g.stroke(); write(g, axes.x.text(v), x, h - EDGE.bottom + 11, {color: p["ink-3"], align: "center"}); }
      for (const v of axes.y.ticks) { const y = Math.round(up(share("y", v))) + .5; g.beginPath(); g.moveTo(EDGE.left, y); g.lineTo(w - EDGE.right, y); g.stroke(); write(g, axes.y.text(v), EDGE.left - 6, y, {color: p["ink-3"], align: "right"}); }
      Object.assign(canvas.dataset, {x: `${axes.x.low} ${axes.x.high}`, y: `${axes.y.low} ${axes.y.high}`});
      write(g, label(frame.x), w - EDGE.right, h - 8, {color: p["ink-3"], align: "right"});
      g.save(); g.translate(9, EDGE.top); g.rotate(-Math.PI / 2); write(g, label(frame.y), 0, 0, {color: p["ink-3"], align: "right"}); g.restore();
      for (let i = 0; i < n; i++) {
        if (!there(i)) continue;
        const [x, y] = spot(i);
        g.beginPath(); g.arc(x, y, radius, 0, 7);
        g.fillStyle = p.seq(.3 + .65 * Math.floor(i / frame.n_heads) / Math.max(1, layers - 1)); g.fill();
        g.lineWidth = 1; g.strokeStyle = p.surface; g.stroke();
      }
      for (const [i, x, y, align] of labels(radius)) write(g, name(i), x, y, {color: p["ink-2"], align});
      const rings = selection();
      for (const [i, color] of [[hovered, p["ink-2"]], ...rings.map((i, n) => [i, rings.length > 1 ? p.head(n) : p.ink])]) {
        if (i < 0 || !there(i)) continue;
        const [x, y] = spot(i);
        g.lineWidth = 2; g.strokeStyle = color; g.beginPath(); g.arc(x, y, radius + 3, 0, 7); g.stroke();
      }
      if (lasso) { g.strokeStyle = p.accent; g.lineWidth = 1.5; g.beginPath(); lasso.forEach(([x, y], i) => i ? g.lineTo(x, y) : g.moveTo(x, y)); g.stroke(); }
    }
    // Select the heads inside a closed path. The selected head stays the first if it is among them.
    function selectInside(path) {
      const heads = Array.from(frame.x.values.keys()).filter(i => there(i) && within(path, ...spot(i))), first = heads.includes(selected()) ? selected() : heads[0];
      if (heads.length) ui.go({layer: layerOf(first), head: first % frame.n_heads, heads: heads.filter(i => i !== first).map(name).join(",")});
    }
    // labels of the selected head and of outlying heads, at a side of the dot where no dot and no other label is
    function labels(radius) {
      const boxes = [], out = [], far = i => Math.abs(share("x", frame.x.values[i]) - .5) + Math.abs(share("y", frame.y.values[i]) - .5);
      const order = Array.from(frame.x.values.keys()).filter(there).sort((a, b) => far(b) - far(a)), dots = order.map(spot);
      for (const i of [selected(), ...order.filter(i => i !== selected())]) {
        if (i < 0 || !there(i) || out.length > 14) continue;
        const [x, y] = spot(i), width = 7 * name(i).length, ring = i === selected() ? 4 : 0, gap = radius + ring + 4;
        const sides = [["left", x + gap, y], ["right", x - gap, y], ["center", x, y - gap - 5], ["center", x, y + gap + 5]].map(([align, a, b]) => {
          const from = align === "left" ? a : align === "right" ? a - width : a - width / 2;
          return {align, a, b, box: [from, b - 6, from + width, b + 6]};
        });
        const free = sides.find(({box: t}) => t[0] > EDGE.left && t[2] < size[0] && t[1] > 0 && t[3] < size[1] - EDGE.bottom && !boxes.some(o => o[0] < t[2] && t[0] < o[2] && o[1] < t[3] && t[1] < o[3])
          && !dots.some(([c, d]) => c > t[0] - radius && c < t[2] + radius && d > t[1] - radius && d < t[3] + radius));
        if (!free) continue;
        boxes.push(free.box);
        out.push([i, free.a, free.b, free.align]);
      }
      canvas.dataset.labels = out.map(([i]) => name(i)).join(" ");
      return out;
    }
    let foot = () => {};
    function nearest(x, y, reach) {
      let best = -1, least = reach * reach;
      for (let i = 0; i < frame.x.values.length; i++) {
        if (!there(i)) continue;
        const [a, b] = spot(i), d = (a - x) ** 2 + (b - y) ** 2;
        if (d < least) { least = d; best = i; }
      }
      return best;
    }
    const choose = i => { ui.go({layer: layerOf(i), head: i % frame.n_heads}); live.textContent = `Head ${name(i)}: ${frame.x.label} ${number(frame.x.values[i], 3)}, ${frame.y.label} ${number(frame.y.values[i], 3)}`; };
    canvas.onpointerdown = event => { if (frame && !event.button) { lasso = [pointerIn(event, canvas)]; canvas.setPointerCapture(event.pointerId); } };
    canvas.onpointerup = event => { const path = lasso; lasso = null; if (path && path.length > 3) { selectInside(path); drawn = event.timeStamp; } draw(); };
    let drawn = -1;
    canvas.onmousemove = event => {
      if (lasso && event.buttons) { lasso.push(pointerIn(event, canvas)); ui.tip.hide(); return void draw(); }
      const i = nearest(...pointerIn(event, canvas), 14);
      if (i !== hovered) { hovered = i; draw(); }
      if (i < 0) ui.tip.hide();
      else ui.tip.show(event, `Head ${name(i)}`, [[frame.x.label, number(frame.x.values[i], 3), "", true], [frame.y.label, number(frame.y.values[i], 3)]], "click to select \u00B7 drag draws a lasso");
    };
    canvas.onmouseleave = () => { hovered = -1; draw(); ui.tip.hide(); };
    canvas.onclick = event => { if (event.timeStamp - drawn < 50 && drawn >= 0) return; const i = nearest(...pointerIn(event, canvas), 20); if (i >= 0) choose(i); };
    canvas.onkeydown = event => {
      if (event.key === "n") { table.toggle(); return; }
      if (event.key === "Escape") { ui.go({heads: ""}); return; }
      const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key], now = selected();
      if (!way || now < 0 || !there(now)) return;
      event.preventDefault();
      const [x, y] = spot(now);
      let best = -1, least = Infinity;
      for (let i = 0; i < frame.x.values.length; i++) {
        if (i === now || !there(i)) continue;
        const [a, b] = spot(i), ahead = (a - x) * way[0] + (b - y) * way[1], beside = Math.abs((a - x) * way[1]) + Math.abs((b - y) * way[0]);
        if (ahead > .5 && ahead + 2 * beside < least) { least = ahead + 2 * beside; best = i; }
      }
      if (best >= 0) choose(best);
    };
    model.on("selected", () => { if (frame) { draw(); foot(); } });
    new ResizeObserver(draw).observe(box);
    return next => {
      frame = next;
      axes = {x: axisOf(frame.x.values, 5), y: axisOf(frame.y.values, 5)};
      const p = ui.paint(), stops = Array.from({length: 9}, (_, i) => p.seq(.3 + .65 * i / 8)).join(","), last = frame.layers[frame.layers.length - 1];
      head.replaceChildren(el("h2", null, "Heads by two statistics"), el("span.grow"), select(frame.options, frame.x.name, "across", x => ui.go({x})), el("span.dim", null, "\u00D7"), select(frame.options, frame.y.name, "up", y => ui.go({y})));
      foot = () => {
        const n = selection().length;
        under.replaceChildren(el("span.legend", null, `layer ${frame.layers[0]}`, el("span.ramp", {style: `background:linear-gradient(90deg,${stops})`}), String(last)), el("span.grow"), ...(n > 1 ? [el("b.strong", {"data-chosen": n}, `${count(n)} heads selected`),
          el("button.btn", {onclick: () => ui.go({page: "views", view: "head"})}, "Open"), el("button.btn", {onclick: () => ui.go({heads: ""})}, "Clear")] : [el("span", null, `${count(frame.x.values.length)} heads, ${frame.note}`)]));
      };
      foot();
      canvas.setAttribute("aria-label", `${count(frame.x.values.length)} heads: ${frame.x.label} across, ${frame.y.label} up`);
      table.set(["head", frame.x.label, frame.y.label], Array.from(frame.x.values.keys(), i => [name(i), number(frame.x.values[i], 3), number(frame.y.values[i], 3)]));
      draw();
    };
  });
}
