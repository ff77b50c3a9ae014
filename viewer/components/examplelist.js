// A page of examples: id, text, annotations, tokens, one statistic of the selected head. Filter and order apply to all
// examples.
import { count, number } from "../_js/paint.js";
import { el, fit, middle, mirror, write } from "../_js/dom.js";
import { component, debounced, link, segmented, select, walk } from "../_js/shell.js";

const CSS = `
.page { display: grid; grid-template-columns: 264px minmax(0,1fr); gap: 12px; height: 100% }
.page input[type=search] { width: 100%; height: 30px; border: 1px solid var(--line-2); border-radius: 6px; background: var(--bg); padding: 0 10px; font-size: 12px }
.er { display: grid; gap: 14px; align-items: center; padding: 0 14px; min-height: 29px; font-size: 12px; border-bottom: 1px solid var(--line) } a.er:hover, .er:focus { background: var(--surface-2) } .er.on { background: var(--accent-soft) }
@media (max-width: 959px) { .page { grid-template-columns: 184px minmax(0,1fr) !important; gap: 8px } .er { gap: 8px !important; padding: 0 8px !important; grid-template-columns: 84px minmax(0,1fr) 40px 80px !important } .er .extra { display: none } .facet { grid-template-columns: minmax(0,1fr) 24px 32px !important } }
.star { font-style: normal; color: var(--warn) }
.er.h { color: var(--ink-3); font-size: 11px; height: 32px } .er .n { text-align: right; font-variant-numeric: tabular-nums } .er .tx { font-size: 13px; white-space: pre } .er > span { unicode-bidi: isolate }
.w { display: grid; grid-template-columns: 1fr 34px; gap: 6px; align-items: center }
.span { display: flex; gap: 6px; align-items: center; margin-top: 4px; font-size: 12px; color: var(--ink-3) } .span input { width: 100%; min-width: 0; height: 24px; border: 1px solid var(--line-2); border-radius: 6px; background: var(--bg); padding: 0 6px; font-size: 12px } .page .seg button { padding: 0 6px } .brush { max-width: 100%; cursor: ew-resize; touch-action: none; border-radius: 4px }
.foot { padding: 6px 14px; border-top: 1px solid var(--line); font-size: 12px; color: var(--ink-2) }
.facet { width: 100%; border: 0; background: none; text-align: left; padding: 0; border-radius: 4px } .facet:hover { background: var(--surface-2) } .facet[aria-pressed=true] { background: var(--accent-soft) }
.facet { display: grid; grid-template-columns: 112px 1fr 40px; gap: 8px; align-items: center; height: 22px; font-size: 12px } .facet .n { text-align: right; color: var(--ink-3); font-variant-numeric: tabular-nums }
`;

// frame: {rows: [{id, text, columns: [text], tokens, value, on, star, remark, query, patch}], columns: [names], start, page_rows,
//         n_found, n_all, text, order, statistics: [[name, label]], statistic, label, high, head, lengths: {counts:
//         int32, first, last}, facets: [{name, values: [[value, n]]}], note}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const filter = el("input", {type: "search", "aria-label": "text filter", placeholder: "text or id contains\u2026", maxlength: 2000});
    const later = debounced(200, () => ui.go({text: filter.value, row: 0}));
    filter.addEventListener("input", later);
    const side = el("div"), lengths = brush("lengths", "fewest tokens", "most tokens", v => String(Math.round(v))), scores = brush("scores", "least value", "greatest value", v => (+v.toFixed(4)).toString()), head = el("header"), titles = el("div.er.h"), list = el("div", {style: "flex:1;overflow:hidden auto;min-height:0;display:grid;align-content:start"}), foot = el("div.row.foot");
    ui.root.append(el("div.page", null,
      el("section.card", {"aria-label": "filter"}, el("header", null, el("h2", null, "Filter"), el("span.grow"), el("button.btn.quiet", {onclick: () => { filter.value = ""; ui.go({text: "", where: "", lengths: "", scores: "", row: 0}); }}, "Clear all")),
        el("div.body", null, el("div.sect", null, "Text"), filter, el("hr"), side)),
      el("section.card", {"data-picture": "examples", "aria-label": "examples"}, head, el("div.body", {style: "padding:0;overflow:hidden;display:flex;flex-direction:column"}, titles, list, foot))));
    walk(list, () => [...list.querySelectorAll("a.er")], true);
    const table = mirror(list.parentElement, "examples");
    // Histogram with two fields below it. A drag over it fills the fields; their range ("5..40") goes into the address.
    function brush(field, least, most, write_) {
      const canvas = el("canvas.brush", {role: "img", "data-brush": field}), inputs = [least, most].map(name => el("input", {type: "text", inputmode: "decimal", "aria-label": name, placeholder: name.split(" ")[0]}));
      let spread = null, from = null;
      const tell = () => { const [a, b] = inputs.map(input => input.value.trim()); ui.go({[field]: a || b ? `${a}..${b}` : "", row: 0}); };
      const value = event => { const box = canvas.getBoundingClientRect(); return spread.first + Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) * (spread.last - spread.first); };
      inputs.forEach(input => input.addEventListener("change", tell));
      canvas.addEventListener("pointerdown", event => { if (spread && spread.last > spread.first) { from = value(event); canvas.setPointerCapture(event.pointerId); } });
      const fill = event => { const to = value(event); [Math.min(from, to), Math.max(from, to)].forEach((v, i) => { inputs[i].value = write_(v); }); };
      canvas.addEventListener("pointermove", event => { if (from !== null) fill(event); });
      canvas.addEventListener("pointerup", event => { if (from !== null) { fill(event); from = null; tell(); } });
      return {
        nodes: [canvas, el("div.span", null, inputs[0], "\u2013", inputs[1])],
        show(next, text, name, label) {
          spread = next;
          const [a, b] = text.split(".."), active = ui.root.getRootNode().activeElement;
          [a, b].forEach((v, i) => { if (inputs[i] !== active) inputs[i].value = v ?? ""; });
          histogram(canvas, spread, ui.paint(), name, label);
        },
      };
    }
    const listOf = buttons => { const box = el("div", null, buttons); walk(box, () => [...box.children]); return box; };
    // Toggle the filter by one value of an annotation
    function narrow(frame, name, value) {
      const filters = {...frame.where};
      if (filters[name] === value) delete filters[name]; else filters[name] = value;
      ui.go({where: Object.keys(filters).length ? JSON.stringify(filters) : "", row: 0});
    }
    let lastText = null;
    return frame => {
      if (frame.text !== lastText && ui.root.getRootNode().activeElement !== filter) filter.value = frame.text;
      lastText = frame.text;
      const grid = `grid-template-columns:92px minmax(0,1fr) ${frame.columns.map(() => "84px").join(" ")} 46px 132px`, style = {style: grid};
      side.replaceChildren(
        el("div.sect", null, "Tokens", el("span.r", null, frame.n_found ? `${frame.lengths.first} \u2013 ${frame.lengths.last}` : "")), ...lengths.nodes, el("hr"),
        el("div.sect", null, "Order", el("span.r", null, `head ${frame.head}`)), select(frame.statistics, frame.statistic, "statistic", v => ui.go({statistic: v, row: 0})), el("div", {style: "height:8px"}),
        segmented([["corpus", "Corpus"], ["strongest", "Highest"], ["weakest", "Lowest"]], frame.order, "order", v => ui.go({order: v, row: 0})), el("div", {style: "height:8px"}), ...scores.nodes,
        ...frame.facets.flatMap(facet => [el("hr"), el("div.sect", null, facet.name, el("span.r", null, "of these")), listOf(facet.values.map(([value, n]) =>
          el("button.facet", {"data-facet": facet.name, "data-value": value, "aria-pressed": String(frame.where[facet.name] === value), onclick: () => narrow(frame, facet.name, value)}, middle(value), el("div.bar", null, el("i", {style: `width:${100 * n / Math.max(1, frame.n_found)}%`})), el("span.n", null, count(n)))))]));
      lengths.show(frame.lengths, frame.spans.lengths, "token counts", String);
      scores.show(frame.spread, frame.spans.scores, frame.label, v => number(v));
      head.replaceChildren(el("h2", null, "Examples"), el("span.sub", {"data-found": frame.n_found}, frame.n_found === frame.n_all ? count(frame.n_all) : `${count(frame.n_found)} of ${count(frame.n_all)}`),
        ...Object.entries(frame.where).map(([name, value]) => el("button.tag.accent", {style: "border:0", "data-where": name, onclick: () => narrow(frame, name, value)}, `${name}: ${value} \u2715`)), ...["lengths", "scores"].filter(field => frame.spans[field]).map(field => el("button.tag.accent", {style: "border:0", "data-span": field, onclick: () => ui.go({[field]: "", row: 0})}, `${field === "lengths" ? "tokens" : frame.label} ${frame.spans[field].replace("..", " \u2013 ").trim()} \u2715`)), ...(frame.text ? [el("button.tag.accent", {style: "border:0", onclick: () => { filter.value = ""; ui.go({text: "", row: 0}); }}, `text \u201C${frame.text}\u201D \u2715`)] : []));
      titles.style.cssText = grid;
      titles.replaceChildren(el("span", null, "id"), el("span", null, "text"), ...frame.columns.map(name => el("span.ell.extra", null, name)), el("span.n", null, "tokens"), el("span.strong.ell", {style: "color:var(--ink-2)"}, `${frame.label}${{strongest: " \u2193", weakest: " \u2191"}[frame.order] || ""}`));
      list.style.gridTemplateRows = `repeat(${frame.rows.length}, minmax(29px, 44px))`;
      list.replaceChildren(...frame.rows.map(row => link(ui, `.er${row.on ? ".on" : ""}`, row.query, row.patch, {...style, "data-example": row.patch.example},
        middle(row.id, "span.dim.num"), el("span.tx.ell", {dir: "auto", title: row.remark || null, "data-star": String(row.star)}, row.star ? el("i.star", null, "\u2605 ") : row.remark ? el("i.star", null, "\u270e ") : null, row.text), ...row.columns.map(value => middle(value, "span.dim2.extra")), el("span.n", null, row.tokens),
        el("span.w", null, el("span.bar", null, el("i", {style: `width:${100 * Math.max(0, Math.min(1, (row.value || 0) / (frame.high || 1)))}%`})), el("span.n", null, number(row.value))))));
      table.set(["Id", "Text", ...frame.columns, "Tokens", "Value"], frame.rows.map(row => [row.id, row.text, ...row.columns, row.tokens, number(row.value, 3)]), frame.rows.map(row => ({value: Number.isFinite(row.value) ? row.value.toFixed(6) : ""})));
      if (!frame.rows.length) list.append(el("div.message", null, frame.note));
      const last = Math.min(frame.n_found, frame.start + frame.page_rows), pages = Math.max(1, Math.ceil(frame.n_found / frame.page_rows));
      const turn = (name, text, row) => el("button.btn", {"aria-label": name, disabled: row < 0 || row >= frame.n_found, onclick: () => ui.go({row})}, text);
      foot.replaceChildren(el("span", {"data-rows": "1"}, frame.n_found ? `rows ${count(frame.start + 1)}\u2013${count(last)} of ${count(frame.n_found)}` : "no rows"), el("span.grow"),
        turn("previous page", "\u2039", frame.start ? Math.max(0, frame.start - frame.page_rows) : -1), el("span.num", null, `page ${count(Math.floor(frame.start / frame.page_rows) + 1)} of ${count(pages)}`), turn("next page", "\u203A", frame.start + frame.page_rows));
    };
  });
}

function histogram(canvas, {counts, first, last}, p, name, label) {
  const width = 238, g = fit(canvas, width, 74), most = Math.max(1, ...counts), step = width / Math.max(1, counts.length);
  counts.forEach((n, i) => { g.fillStyle = p.accent; g.globalAlpha = .85; g.fillRect(i * step, 58 - 54 * n / most, Math.max(1, step - 1.3), 54 * n / most); });
  g.globalAlpha = 1;
  write(g, label(first), 0, 69, {color: p["ink-3"]});
  write(g, label(last), width, 69, {color: p["ink-3"], align: "right"});
  canvas.setAttribute("aria-label", `${name} from ${label(first)} to ${label(last)}: ${Array.from(counts).join(", ")}`);
}
