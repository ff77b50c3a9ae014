import { plain, count, clamp } from "../_js/paint.js";
import { el, mount, fit, write, tooltip, pointerIn, onWidth, onceAFrame, mirror, keyboard } from "../_js/dom.js";
import { within } from "../_js/lasso.js";
import { CSS } from "../_js/style.js";

// Queries lie near the keys that they attend to. Queries are rings, keys are filled dots.
const OWN = `
.two { display: grid; grid-template-columns: minmax(0,1fr) 300px; gap: 12px; height: 100% } .plot { position: relative; height: 100%; outline-offset: -3px; cursor: crosshair; touch-action: none } .body.flush { padding: 0; overflow: hidden }
.tools { display: flex; gap: 8px; align-items: center; margin-left: auto } .pickc { height: 24px; border: 1px solid var(--line-2); border-radius: 6px; background: var(--surface); font-size: 12px !important } .tools .seg button { height: 22px; padding: 0 9px } .tools .seg button:disabled { color: var(--ink-3); opacity: .7; cursor: help }
.key { display: flex; flex-wrap: wrap; gap: 4px 12px; padding: 6px 12px; border-top: 1px solid var(--line); font-size: 11px; color: var(--ink-2) } .key span { display: inline-flex; gap: 5px; align-items: center } .key i { width: 9px; height: 9px; border-radius: 50%; display: inline-block; box-sizing: border-box }
.hit { display: grid; grid-template-columns: 18px minmax(0,1fr) auto; gap: 6px; width: 100%; height: 24px; align-items: center; border: 0; background: none; text-align: left; font-size: 12px; padding: 0 2px } .hit:hover { background: var(--surface-2) } .hit .n { color: var(--ink-3); font-variant-numeric: tabular-nums } bdi { unicode-bidi: isolate }
`;
const EDGE = 18, LISTED = 120;

export function render({model, el: host}) {
  const {root, paint} = mount(model, host, CSS + OWN, () => draw());
  const tip = tooltip(root), sub = el("span.sub.ell"), tools = el("div.tools"), canvas = el("canvas", {role: "img"}), legend = el("div.key");
  const plot = el("div.plot", {tabindex: 0, role: "group", "aria-label": "queries and keys in one plane; drag to draw a lasso, Escape clears it"}, canvas), body = el("div.body.flush", null, plot);
  const card = el("section.card", {"data-picture": "query-key space", "data-figure": ""}, el("header", null, el("h2", null, "Query\u2013key space"), sub, tools), body, legend);
  const count_ = el("span.r"), list = el("div"), side = el("section.card", {"data-picture": "chosen tokens"}, el("div.body", null, el("p.sect", {style: "padding-right:30px"}, "Chosen tokens", count_), list));
  root.append(el("div.two", null, card, side));
  const table = mirror(card, "query-key space"), chosenTable = mirror(side, "chosen tokens");
  let frame = {}, size = [0, 0], dots = null, hover = null, lasso = null, selection = [];
  const n = () => frame.labels.length, point = i => i < n() ? [frame.query[2 * i], frame.query[2 * i + 1]] : [frame.key[2 * (i - n())], frame.key[2 * (i - n()) + 1]];
  const token = i => i % n(), isQuery = i => i < n();

  function take() {
    frame = plain(model.frame);
    body.querySelector(".message")?.remove();
    const shown = !!frame.query;
    plot.hidden = !shown; selection = []; lasso = null; dots = null;
    sub.textContent = shown ? `head ${frame.head} \u00B7 ${frame.facts}` : "";
    if (!shown) { if (frame.message) body.append(el("div.message", null, el("b", null, frame.message.title), frame.message.text)); legend.replaceChildren(); table.set(["Side", "Token", "x", "y"], []); return choose([]); }
    const rows = [];
    for (let i = 0; i < Math.min(2 * n(), 400); i++) rows.push(i);
    table.set(["Side", "Token", "x", "y"], rows.map(i => [isQuery(i) ? "query" : "key", frame.labels[token(i)], point(i)[0].toFixed(3), point(i)[1].toFixed(3)]), rows.map(i => ({side: isQuery(i) ? "query" : "key", example: frame.example[token(i)], position: frame.position[token(i)], x: point(i)[0].toFixed(5), y: point(i)[1].toFixed(5)})));
    head(); choose([]); draw();
  }
  function head() {
    const select = el("select.pickc", {"aria-label": "colour by", onchange: event => { model.shade = event.target.value; }}, frame.options.map(([value, text]) => el("option", {value}, text)));
    select.value = frame.shade;
    tools.replaceChildren(el("span.dim.sm", null, "colour"), select, el("div.seg", {role: "group", "aria-label": "method"}, [["pca", "PCA"], ["umap", "UMAP"]].map(([value, text]) => el("button", {"aria-pressed": String(model.method === value), "data-method": value, disabled: value === "umap" && !frame.umap, title: value === "umap" && !frame.umap ? "UMAP is not installed: pip install 'headatlas[umap]'" : null, onclick: () => { model.method = value; }}, text))));
  }
  const color = (i, p) => {
    const group = frame.group_of[token(i)];
    if (frame.shade === "side") return isQuery(i) ? p.neg : p.pos;
    if (frame.shade === "position") return p.seq(.2 + .8 * group / 255);
    return group < 0 ? p["line-2"] : p.head(group);
  };
  function layOut() {
    let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < 2 * n(); i++) { const [x, y] = point(i); x0 = Math.min(x0, x); x1 = Math.max(x1, x); y0 = Math.min(y0, y); y1 = Math.max(y1, y); }
    const scale = Math.min((size[0] - 2 * EDGE) / Math.max(1e-9, x1 - x0), (size[1] - 2 * EDGE) / Math.max(1e-9, y1 - y0)), cx = (x0 + x1) / 2, cy = (y0 + y1) / 2;   // both axes have the same scale
    dots = new Float32Array(4 * n());
    for (let i = 0; i < 2 * n(); i++) { const [x, y] = point(i); dots[2 * i] = size[0] / 2 + (x - cx) * scale; dots[2 * i + 1] = size[1] / 2 - (y - cy) * scale; }
  }
  function draw() {
    if (!frame.query || !size[0]) return;
    if (!dots) layOut();
    const p = paint(), g = fit(canvas, ...size), selectedDots = new Set(selection), r = n() > 700 ? 2.6 : 3.4;
    for (let i = 2 * n() - 1; i >= 0; i--) {
      const x = dots[2 * i], y = dots[2 * i + 1];
      g.globalAlpha = selectedDots.size && !selectedDots.has(i) ? .16 : frame.special[token(i)] ? .35 : .85;
      g.beginPath(); g.arc(x, y, r, 0, 7);
      if (isQuery(i)) { g.strokeStyle = color(i, p); g.lineWidth = 1.4; g.stroke(); } else { g.fillStyle = color(i, p); g.fill(); }
    }
    g.globalAlpha = 1;
    if (hover !== null) {   // a line to the other vector of the token
      const other = isQuery(hover) ? hover + n() : hover - n();
      g.strokeStyle = p.ink; g.lineWidth = 1.5;
      g.beginPath(); g.moveTo(dots[2 * hover], dots[2 * hover + 1]); g.lineTo(dots[2 * other], dots[2 * other + 1]); g.globalAlpha = .4; g.stroke(); g.globalAlpha = 1;
      g.beginPath(); g.arc(dots[2 * hover], dots[2 * hover + 1], r + 3, 0, 7); g.stroke();
      write(g, frame.labels[token(hover)], dots[2 * hover] + 9, dots[2 * hover + 1], {color: p.ink, weight: 600});
    }
    if (lasso) { g.strokeStyle = p.accent; g.lineWidth = 1.5; g.beginPath(); lasso.forEach(([x, y], i) => i ? g.lineTo(x, y) : g.moveTo(x, y)); g.stroke(); }
    const ring = c => `border:1.5px solid ${c}`, fill = c => `background:${c}`, items = [["query", ring(frame.shade === "side" ? p.neg : p["ink-3"])], ["key", fill(frame.shade === "side" ? p.pos : p["ink-3"])]];
    if (frame.shade === "position") items.push([`position ${frame.groups[0]}`, fill(p.seq(.2))], [frame.groups[1], fill(p.seq(1))]);
    else frame.groups.forEach((name, i) => items.push([name, fill(p.head(i))]));
    legend.replaceChildren(...items.map(([name, style]) => el("span", null, el("i", {style}), el("bdi", null, name))), ...(frame.groups.length >= 12 ? [el("span", null, el("i", {style: fill(p["line-2"])}), "others")] : []));
    canvas.setAttribute("aria-label", `${count(n())} queries and keys of head ${frame.head}, coloured by ${frame.shade}`);
    Object.assign(canvas.dataset, {shade: frame.shade, tokens: n()});
  }
  function choose(next) {
    selection = next;
    const open = i => model.send_msg({open: [frame.example[token(i)], frame.position[token(i)], isQuery(i) ? "q" : "k"]});
    count_.textContent = selection.length ? count(selection.length) : "";
    list.replaceChildren(...(selection.length ? selection.slice(0, LISTED).map(i => el("button.hit", {"data-example": frame.example[token(i)], "data-position": frame.position[token(i)], "data-side": isQuery(i) ? "q" : "k", onclick: () => open(i)},
      el("span.n", null, isQuery(i) ? "q" : "k"), el("bdi.ell", null, frame.labels[token(i)]), el("span.n", null, `${frame.example[token(i)]} : ${frame.position[token(i)]}`))) : [el("p.dim.sm", null, "Draw around dots to list their tokens; a click opens the example.")]));
    chosenTable.set(["Side", "Token"], selection.slice(0, 1000).map(i => [isQuery(i) ? "query" : "key", frame.labels[token(i)]]), selection.slice(0, 1000).map(i => ({example: frame.example[token(i)], position: frame.position[token(i)], side: isQuery(i) ? "q" : "k"})));
  }
  function nearest(x, y) {
    let best = null, least = 100;
    for (let i = 0; i < 2 * n(); i++) { const d = (dots[2 * i] - x) ** 2 + (dots[2 * i + 1] - y) ** 2; if (d < least) { least = d; best = i; } }
    return best;
  }
  const soon = onceAFrame(() => draw());
  plot.addEventListener("pointerdown", event => { if (dots && !event.button) { lasso = [pointerIn(event, plot)]; plot.setPointerCapture(event.pointerId); } });
  plot.addEventListener("pointermove", event => {
    if (!dots) return;
    const [x, y] = pointerIn(event, plot).map((v, i) => clamp(v, 0, size[i]));
    if (lasso && event.buttons) { lasso.push([x, y]); tip.hide(); return soon(); }
    hover = nearest(x, y); soon();
    if (hover === null) return tip.hide();
    const group = frame.group_of[token(hover)], note = frame.shade !== "side" && frame.shade !== "position" && frame.shade !== "token" && group >= 0 ? [[frame.shade, frame.groups[group]]] : [];
    tip.show(event, `${isQuery(hover) ? "query" : "key"} of ${frame.labels[token(hover)]}`, [["Example", String(frame.example[token(hover)])], ["Position", String(frame.position[token(hover)])], ...note], "click opens it \u00B7 drag draws a lasso");
  });
  plot.addEventListener("pointerup", event => {
    const path = lasso;
    if (!path) return;
    if (path.length < 4) { lasso = null; const i = nearest(...pointerIn(event, plot)); if (i !== null) choose([i]); return soon(); }
    const inside = [];
    for (let i = 0; i < 2 * n(); i++) if (within(path, dots[2 * i], dots[2 * i + 1])) inside.push(i);
    choose(inside);
    lasso = null; soon();
  });
  plot.addEventListener("pointerleave", () => { hover = null; tip.hide(); soon(); });
  keyboard(model, plot, {n: () => table.toggle(), Escape: () => { choose([]); soon(); }});
  model.on("frame", take);
  model.on(["shade", "method"], () => { if (frame.query) head(); });
  model.on("remove", onWidth(body, () => { size = [body.clientWidth, body.clientHeight]; dots = null; draw(); }));
  take();
}
