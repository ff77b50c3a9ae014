import { plain, parsePin, formatPin, number, SCALES } from "../_js/paint.js";
import { directionOf, el, middle, mount, tooltip } from "../_js/dom.js";
import { CSS } from "../_js/style.js";

// frame: {lines: [{parts: [[text, index], ...], side: "q"|"k"|"qk", special: uint8}], tags: [..]}
const OWN = `
.text { display: flex; gap: 16px; align-items: flex-start; padding: 8px 12px }
.lines { flex: 1; min-width: 0; font-size: 14px; line-height: 1.7; overflow-wrap: anywhere; max-height: 96px; overflow-y: auto; white-space: pre-wrap }
.tags { display: flex; gap: 6px; padding-top: 2px; justify-content: flex-end; flex: 0 1 auto; max-width: 40%; min-width: 0 } .tags .tag { min-width: 0; flex: 0 1 auto } .tags .tag:last-child { flex: none } @media (max-width: 1000px) { .tags { max-width: 32% } .tags .tag:not(:first-child) { display: none } }
.tok { border-radius: 3px; padding: 1px 0; cursor: pointer; unicode-bidi: isolate; background: none; border: 0; box-decoration-break: clone; -webkit-box-decoration-break: clone }
.tok:hover { box-shadow: inset 0 -2px 0 var(--line-2) }
.tok.q { box-shadow: inset 0 0 0 1.5px var(--accent); padding: 1px 4px; font-weight: 600 }
.tok.k { padding: 1px 3px } .tok.kpin { background: var(--accent); color: var(--on-accent); padding: 1px 4px; font-weight: 600 }
.tok.special { font: 11px var(--mono); color: var(--ink-3) }
`;

export function render({model, el: host}) {
  const {root, paint} = mount(model, host, CSS + OWN, () => shade());
  const tip = tooltip(root), card = el("section.card"), lines = el("div.lines", {role: "group", "aria-label": "text of the example"}), tags = el("div.tags");
  card.append(el("div.text", null, lines, tags));
  root.append(card);
  let spans = [];

  function build() {
    const frame = plain(model.frame);
    spans = [];
    lines.replaceChildren(...(frame.lines || []).map(line => el("div", {dir: directionOf(line.parts.map(part => part[0]).join(""))}, line.parts.map(([text, index]) => {
      if (index < 0) return text;
      const span = el(`span.tok${line.special[index] ? ".special" : ""}`, {role: "button", "data-token": index, "data-side": line.side, dir: "auto",
        onclick: event => pin(line, index, event.altKey), onmousemove: event => hover(event, line, index), onmouseleave: tip.hide}, text);
      spans.push({span, index, side: line.side, special: !!line.special[index]});
      return span;
    }))));
    tags.replaceChildren(...(frame.tags || []).map(tag => el("span.tag", null, middle(tag))));
    shade();
  }
  function pin(line, index, asKey) {
    const now = parsePin(model.pin), side = line.side === "qk" ? (asKey ? "k" : "q") : line.side;
    model.pin = now && now.index === index && line.side.includes(now.side) ? "" : formatPin({side, index});
  }
  function hover(event, line, index) {
    const weights = plain(model.weights), now = parsePin(model.pin);
    const other = now && (now.side === "q" ? "k" : "q"), w = other && line.side.includes(other) && weights[other] ? weights[other][index] : undefined;
    tip.show(event, event.currentTarget.textContent.trim() || "space", [["Position", String(index)], ...(w === undefined ? [] : [["Strongest weight", number(w, 3)]])],
      line.side === "qk" ? "click pins the query, Alt click the key" : "click to pin");
  }
  function shade() {
    const weights = plain(model.weights), now = parsePin(model.pin), p = paint(), high = weights.high || 1;
    for (const {span, index, side, special} of spans) {
      const pinned = now && side.includes(now.side) && now.index === index;
      const other = now && (now.side === "q" ? "k" : "q");
      const w = !pinned && other && side.includes(other) && weights[other] ? weights[other][index] || 0 : 0;
      const v = SCALES.sqrt(Math.min(1, w / high)) * .86, shaded = w > .03 * high;
      span.classList.toggle("q", !!pinned && now.side === "q");
      span.classList.toggle("kpin", !!pinned && now.side === "k");
      span.classList.toggle("k", shaded);
      span.style.background = shaded ? p.seq(v) : "";
      span.style.color = shaded ? p.on(v) : "";
      span.setAttribute("aria-pressed", String(!!pinned));
      span.dataset.weight = w.toFixed(4);
      if (pinned) reveal(span);
    }
  }
  // scroll the text to the pinned token; the page around it does not scroll
  function reveal(span) {
    const box = lines.getBoundingClientRect(), own = span.getBoundingClientRect();
    if (own.height && (own.top < box.top || own.bottom > box.bottom)) lines.scrollTop += own.top - box.top - box.height / 2;
  }
  build();
  model.on("frame", build);
  model.on(["pin", "weights"], shade);
}
