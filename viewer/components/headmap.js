// Layers x heads of any model as one canvas: a cell is a head, its colour is one number of the head. Layer 0 is on top.
// Arrows move the selection, Enter opens an example, a click selects. The text mirror holds every number.
import { count, number } from "../_js/paint.js";
import { pointerIn, el, fit, mirror, write } from "../_js/dom.js";
import { component, select } from "../_js/shell.js";

const CSS = `
.maphead .sel { min-width: 64px; max-width: 148px } .maphead .legend { flex: none } .maphead .scale { width: 56px }
.map { position: relative; height: 100% } .map canvas { cursor: pointer; border-radius: 4px }
.little .downloads { top: auto; bottom: 4px; right: 4px } .little .downloads > div { top: auto; bottom: 28px }
.scale { width: 80px; height: 8px; border-radius: 2px; border: 1px solid var(--line-2) }
`;

// frame: {layers: [numbers], n_heads, values: float32 [layer * head], high, title, unit,
//         options: [[value, label]], choice, others: [{label, values}], small: bool, note}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const canvas = el("canvas", {tabindex: 0, role: "img"}), box = el("div.map", null, canvas), live = el("span.sr", {"aria-live": "polite"});
    const head = el("header.maphead"), card = el("section.card", {"data-picture": "head map", "data-figure": ""});
    let table = null, frame = null, selected = [0, 0], geometry = null, hovered = null, ranks = null, top = null;

    // "5.8" <-> [row, column]; a row is -1 if the map has no such layer
    const nameOf = (l, h) => `${frame.layers[l]}.${h}`, cellOf = text => { const [l, h] = text.split(".").map(Number); return [frame.layers.indexOf(l), h < frame.n_heads ? h : -1]; };
    function cornerOf(layer, h) { return {x: geometry.left + h * geometry.across, y: geometry.top + layer * geometry.down}; }
    function measure() {
      const {n_heads: heads, small} = frame, layers = frame.layers.length, left = small ? 20 : 28, above = small ? 16 : 32, right = small ? 2 : 80;
      // cells fill the card, and are at most three times as wide as they are high
      const most = small ? 26 : 96, least = small ? 1 : 4, fitted = (room, n) => { const cell = Math.max(least, Math.min(most, room / n)); return cell >= 8 ? Math.floor(cell) : cell; };
      let across = fitted(box.clientWidth - left - right, heads), down = fitted((box.clientHeight || box.clientWidth) - above - 2, layers);
      across = Math.min(across, 3 * down); down = Math.min(down, 3 * across);
      const cell = Math.min(across, down);
      geometry = {left, top: above, across, down, cell, gap: cell >= 20 ? 2 : cell >= 9 ? 1 : 0, width: left + heads * across + right, height: above + layers * down + 3};
      Object.assign(canvas.dataset, {cell, across, down, left, top: above});
    }
    const value = (layer, h) => frame.values[layer * frame.n_heads + h];
    const share = v => Number.isNaN(v) ? 0 : Math.max(0, Math.min(1, v / (frame.high || 1)));

    function draw() {
      if (!frame || !box.clientWidth) return;
      measure();
      const {n_heads: heads, small} = frame, layers = frame.layers.length, {left, top: above, across, down, cell, gap, width, height} = geometry;
      const p = ui.paint(), g = fit(canvas, width, height), stride = room => room >= 15 ? 1 : room >= 7 ? 4 : room >= 3 ? 8 : 16, size = small ? 10 : 11;
      const round = cell > 20 ? 3 : cell > 9 ? 2 : 0, side = cell - gap, wide = across - gap, high = down - gap;
      const rectangle = (x, y, w, h, r) => { g.beginPath(); g.roundRect(x, y, w, h, r); };
      if (!small) write(g, "head \u2192", left, 9, {color: p["ink-3"]});
      for (let h = 0; h < heads; h += stride(across)) write(g, String(h), left + h * across + wide / 2, above - 8, {color: p["ink-3"], size, align: "center"});
      for (let l = 0; l < layers; l += stride(down)) write(g, String(frame.layers[l]), left - 6, above + l * down + high / 2, {color: p["ink-3"], size, align: "right"});
      for (let l = 0; l < layers; l++) for (let h = 0; h < heads; h++) {
        const {x, y} = cornerOf(l, h), v = value(l, h), s = share(v);
        g.fillStyle = p.seq(s * .97 + (s > 0 ? .03 : 0));
        rectangle(x, y, wide, high, round); g.fill();
        if (s < .12 && gap) { g.strokeStyle = p.line; g.lineWidth = 1; rectangle(x + .5, y + .5, wide - 1, high - 1, round); g.stroke(); }
        if (Number.isNaN(v)) { g.strokeStyle = p["line-2"]; g.beginPath(); g.moveTo(x + 2, y + high - 2); g.lineTo(x + wide - 2, y + 2); g.stroke(); }
        if (across >= 26 && down >= 14 && !(frame.roles?.[nameOf(l, h)] >= 0) && top.has(l * heads + h)) write(g, number(v), x + wide / 2, y + high / 2 + .5, {color: p.on(s), weight: 500, align: "center", size: cell < 30 ? 10 : 11});
      }
      for (const [name, role] of Object.entries(frame.roles || {})) {   // a dot in the colour of the head's main role
        const [l, h] = cellOf(name), {x, y} = cornerOf(l, h);
        if (l < 0 || h < 0) continue;
        const sink = role < 0, size = Math.max(1.2, Math.min(sink ? 2 : 5, cell * (sink ? .14 : .3)));   // sinks, which most heads of a causal model are, stay small and grey
        g.fillStyle = sink ? p["ink-3"] : p.head(role); g.strokeStyle = p.surface; g.lineWidth = 1; g.beginPath(); g.arc(x + wide / 2, y + high / 2, size, 0, 7); g.fill(); if (cell > 8 && !sink) g.stroke();
      }
      for (const [name, {star}] of Object.entries(frame.bookmarks || {})) {   // a dot in the corner marks a star or a note
        const [l, h] = cellOf(name), {x, y} = cornerOf(l, h);
        if (l < 0 || h < 0) continue;
        g.fillStyle = star ? p.warn : p["ink-3"]; g.beginPath(); g.arc(x + wide - Math.min(4, side / 4), y + Math.min(4, side / 4), cell >= 15 ? 3 : 2, 0, 7); g.fill();
        g.strokeStyle = p.surface; g.lineWidth = 1; g.stroke();
      }
      const also = (frame.also || []).map((name, i) => [cellOf(name), p.head(i + 1)]);   // further selected heads
      for (const [spot, color] of [...also, [selected, also.length ? p.head(0) : p.ink], [hovered, p["ink-2"]]]) {
        if (!spot || spot[0] < 0 || spot[1] < 0) continue;
        const {x, y} = cornerOf(...spot), grow = gap ? 2 : 1;
        g.lineWidth = 2; g.strokeStyle = p.surface; rectangle(x - grow, y - grow, wide + 2 * grow, high + 2 * grow, round + 1); g.stroke();
        g.strokeStyle = color; rectangle(x - grow / 2, y - grow / 2, wide + grow, high + grow, round + 1); g.stroke();
      }
      if (!small) means(g, p);
    }
    function means(g, p) {
      const {left, top: above, across, down, gap} = geometry, x = left + frame.n_heads * across + 8, bar = Math.min(8, Math.max(3, down * .6));
      write(g, "layer mean", x, above - 8, {color: p["ink-3"]});
      for (let l = 0; l < frame.layers.length; l++) {
        const row = Array.from(frame.values.subarray(l * frame.n_heads, (l + 1) * frame.n_heads)).filter(v => !Number.isNaN(v));
        const mean = row.length ? row.reduce((a, b) => a + b, 0) / row.length : 0, y = above + l * down + (down - gap - bar) / 2;
        g.fillStyle = p["surface-3"]; g.fillRect(x, y, 52, bar);
        g.fillStyle = p.accent; g.fillRect(x, y, 52 * share(mean), bar);
      }
    }
    const spotAt = event => {
      if (!geometry) return null;
      const [x, y] = pointerIn(event, canvas), h = Math.floor((x - geometry.left) / geometry.across), l = Math.floor((y - geometry.top) / geometry.down);
      return l >= 0 && h >= 0 && l < frame.layers.length && h < frame.n_heads ? [l, h] : null;
    };
    const sentence = ([l, h]) => `Head ${nameOf(l, h)}: ${frame.title} ${number(value(l, h), 3)}, rank ${ranks[l * frame.n_heads + h]} of ${count(frame.values.length)}`;
    const mark = spot => {
      if (!frame) return;
      selected = spot;
      canvas.setAttribute("aria-label", `${frame.title}, layers by heads. ${sentence(selected)}`);
      canvas.dataset.selected = nameOf(...selected);
      draw();
    };
    const fromModel = () => { if (frame) { const spot = cellOf(model.selected); mark(spot.includes(-1) ? [0, 0] : spot); } };
    model.on("selected", fromModel);
    const choose = (spot, open) => { mark(spot); ui.go(frame.other ? {other_head: nameOf(...spot)} : {layer: frame.layers[spot[0]], head: spot[1], ...(open ? {page: "examples"} : {})}); live.textContent = sentence(spot); };
    canvas.onmousemove = event => {
      const spot = spotAt(event);
      if (String(spot) !== String(hovered)) { hovered = spot; draw(); }
      if (!spot) { ui.tip.hide(); return; }
      const i = spot[0] * frame.n_heads + spot[1];
      ui.tip.show(event, `Head ${nameOf(...spot)}`, [[frame.title, number(frame.values[i], 3), `#${ranks[i]}`, true],
        ...frame.others.map(o => [o.label, number(o.values[i], 3), ""]), ...noteOf(spot)],
        `rank of ${count(frame.values.length)} \u00B7 click to select`);
    };
    const noteOf = spot => { const bookmark = frame.bookmarks?.[nameOf(...spot)]; return bookmark ? [[`${bookmark.star ? "\u2605 " : ""}${bookmark.note.slice(0, 120)}`, "", ""]] : []; };
    canvas.onmouseleave = () => { hovered = null; draw(); ui.tip.hide(); };
    canvas.onclick = event => { const spot = spotAt(event); if (spot) choose(spot, event.detail > 1); };
    canvas.onkeydown = event => {
      const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
      if (move) {
        event.preventDefault();
        choose([Math.max(0, Math.min(frame.layers.length - 1, selected[0] + move[0])), Math.max(0, Math.min(frame.n_heads - 1, selected[1] + move[1]))]);
      } else if (event.key === "Enter") choose(selected, true);
      else if (event.key === "n") table.toggle();
    };
    new ResizeObserver(draw).observe(box);

    return next => {
      const fresh = !frame || frame.values !== next.values;
      frame = next;
      if (!table) {
        if (frame.small) ui.root.append(el("section.card.little", {style: "padding:8px;overflow:visible", "data-picture": "small head map", "data-figure": "", "aria-label": "head map"}, box), live);
        else { card.append(head, el("div.body", {style: "padding:10px 12px;overflow:hidden"}, box)); ui.root.append(card, live); }
        table = mirror(box, `numbers of the ${frame.other ? "other " : frame.small ? "small " : ""}head map`);
        ui.offer();
      }
      if (fresh) {
        const order = Array.from(frame.values.keys()).sort((a, b) => (frame.values[b] || 0) - (frame.values[a] || 0) || a - b);
        ranks = new Int32Array(order.length);
        order.forEach((cell, i) => { ranks[cell] = i && frame.values[cell] === frame.values[order[i - 1]] ? ranks[order[i - 1]] : i + 1; });
        top = new Set(order.slice(0, 8));
        const nameAt = i => nameOf(Math.floor(i / frame.n_heads), i % frame.n_heads), bookmark = i => frame.bookmarks?.[nameAt(i)];
        table.set(["head", frame.title, "rank", "star", "note"], order.map(i => [nameAt(i), number(frame.values[i], 3), ranks[i], bookmark(i)?.star ? "\u2605" : "", bookmark(i)?.note ?? ""]),
          order.map(i => ({head: nameAt(i), value: frame.values[i].toFixed(6)})));
      }
      canvas.dataset.choice = frame.choice || ""; canvas.dataset.roles = Object.keys(frame.roles || {}).length;
      if (!frame.small) head.replaceChildren(...(frame.stores?.length ? [] : [el("h2.ell", null, frame.other || "Layers \u00D7 heads")]), ...(frame.other ? [el("span.sub.ell", null, frame.about), el("span.grow"), el("button.btn", {onclick: () => ui.go({page: "views", view: "compare", compare: "models"})}, "Compare heads"), el("button.btn.quiet", {"aria-label": "close the other model", onclick: () => ui.go({other_store: ""})}, "\u2715")]
        : [select(frame.options, frame.choice, "statistic", v => ui.go({statistic: v})), ...(frame.stores?.length ? [select([["", "beside\u2026"], ...frame.stores.map(name => [name, name])], frame.beside, "another store beside", v => ui.go({other_store: v}))] : []), el("span.grow"), legend()]));
      fromModel();
    };
    function legend() {
      const p = ui.paint(), stops = Array.from({length: 9}, (_, i) => p.seq(i / 8)).join(",");
      return el("span.legend", null, "0", el("span.scale", {role: "img", "aria-label": "colour scale", style: `background:linear-gradient(90deg,${stops})`}),
        number(frame.high).replace(/\.00$/, ""), frame.unit);
    }
  });
}
