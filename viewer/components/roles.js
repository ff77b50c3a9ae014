// Roles of heads: how many heads have each, and the best ones. A click colours the map by the role's mass and selects its
// best head.
import { count, number } from "../_js/paint.js";
import { el, mirror } from "../_js/dom.js";
import { component, link, walk } from "../_js/shell.js";

const CSS = `
.rlist { overflow: hidden auto; padding: 4px 0 } .role { display: grid; grid-template-columns: 12px minmax(104px, 1fr) 30px minmax(64px, 1.3fr) 62px 32px; gap: 8px; align-items: center; min-height: 23px; padding: 0 12px; font-size: 12px; cursor: pointer }
.role:hover { background: var(--surface-2) } .role.on { background: var(--accent-soft) } .role i { width: 9px; height: 9px; border-radius: 5px; justify-self: center }
.role.none { color: var(--ink-3) } .role.none i { opacity: .35 } .role .num { text-align: right } .role .tracks { position: relative; height: 8px; background: var(--surface-3); border-radius: 3px }
.role .tracks b { position: absolute; left: 0; top: 0; height: 8px; border-radius: 3px; background: var(--accent) } .role.none .tracks b { background: var(--ink-3) } .role .tracks u { position: absolute; top: -2px; width: 2px; height: 12px; background: var(--ink) }
.role.titles { cursor: default; color: var(--ink-3); font-size: 11px; min-height: 20px } .role.titles:hover { background: none }
.going { height: 3px }
`;

// frame: {rows: [{name, label, description, colour, n, heads, best, mass, expected, on, patch, query}], done, of,
//         busy, n_heads, note}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const sub = el("span.sub.ell"), going = el("div.bar.going", {role: "progressbar", "aria-label": "roles"}, el("i")), list = el("div.body.rlist");
    const card = el("section.card", {"data-picture": "roles", "aria-label": "roles of heads"}, el("header", null, el("h2", null, "Roles of heads"), sub), going, list);
    walk(list, () => [...list.querySelectorAll("a.role")]);
    ui.root.append(card);
    const table = mirror(card, "roles of heads");
    return frame => {
      const p = ui.paint();
      sub.textContent = frame.busy ? `${frame.done} of ${frame.of} roles searched` : `${count(frame.n_heads)} heads have one \u00B7 q < .05 against the null, mass \u2265 .3`;
      going.style.display = frame.busy ? "" : "none"; going.firstChild.style.width = `${100 * frame.done / Math.max(1, frame.of)}%`;
      card.dataset.done = String(!frame.busy);
      const node = row => link(ui, `.role${row.on ? ".on" : ""}${row.n ? "" : ".none"}`, row.query, row.patch, {"data-role": row.name, "data-n": row.n, "data-best": row.best, title: `${row.description}${row.n < 0 ? "" : `\nbest head ${row.best}: mass ${number(row.mass, 3)}, the null expects ${number(row.expected, 3)}${row.n ? `\nheads: ${row.heads.join(", ")}${row.n > row.heads.length ? " \u2026" : ""}` : ""}`}`},
        el("i", {style: `background:${row.colour < 0 ? p["ink-3"] : p.head(row.colour)}`}), el("span.ell", null, row.label), el("span.num.strong", null, row.n < 0 ? "\u2026" : count(row.n)), el("span.ell.dim", null, row.n > 0 ? row.heads.slice(0, 4).join(" \u00B7 ") : row.n < 0 ? "" : `none; best ${row.best}`),
        el("span.tracks", null, el("b", {style: `width:${100 * Math.min(1, row.mass)}%`}), row.n < 0 ? "" : el("u", {style: `left:calc(${100 * Math.min(1, row.expected)}% - 1px)`})), el("span.num", null, row.n < 0 ? "" : number(row.mass)));
      list.replaceChildren(...(frame.note ? [el("div.message", null, frame.note)] : [el("div.role.titles", null, el("span"), el("span", null, "role"), el("span.num", null, "heads"), el("span", null, "best heads"), el("span", null, "mass | null"), el("span"))]), ...frame.rows.map(node));
      table.set(["Role", "Heads", "Best", "Mass", "Expected"], frame.rows.map(r => [r.label, r.n < 0 ? "" : r.n, r.best, number(r.mass, 3), number(r.expected, 3)]), frame.rows.map(r => ({role: r.name, heads: r.heads.join(" ")})));
    };
  });
}
