// All stars and notes of the store in a dialog, with a filter and a report. The star of the top bar or the key b opens it.
import { count, plain } from "../_js/paint.js";
import { el, middle } from "../_js/dom.js";
import { save } from "../_js/picture.js";
import { component, global, link, walk } from "../_js/shell.js";

const CSS = `
.marks { position: fixed; inset: 0; margin: auto; width: 720px; max-width: 92vw; height: fit-content; max-height: 84vh; border: 1px solid var(--line-2); border-radius: 8px; background: var(--surface); color: var(--ink); box-shadow: var(--shadow); padding: 14px 16px } .marks::backdrop { background: #0006 }
.marks h2 { font-size: 15px; font-weight: 600 } .marks input { width: 100%; height: 30px; margin: 10px 0 8px; border: 1px solid var(--line-2); border-radius: 6px; background: var(--bg); padding: 0 10px; font-size: 12px }
.mark-rows { overflow: hidden auto; max-height: 56vh } .mk { display: grid; grid-template-columns: 18px 64px minmax(0,170px) minmax(0,1fr); gap: 8px; align-items: center; min-height: 32px; padding: 2px 6px; border-top: 1px solid var(--line); font-size: 12px } .mk:hover, .mk:focus { background: var(--surface-2) } .mk i { font-style: normal; color: var(--warn) }
`;

// frame: {rows: [{kind: "head"|"example", name, star, note, text, query, patch}], n_left_out, writable}
export function render({model, el: host}) {
  component(model, host, CSS, ui => {
    const filter = el("input", {type: "search", "aria-label": "filter of stars and notes", placeholder: "name, note or text contains\u2026", maxlength: 200}), rows = el("div.mark-rows"), foot = el("p.xs.dim", {style: "margin-top:8px"});
    const report = (format, label) => el("button.btn", {"data-report": format, onclick: () => { foot.textContent = "Making the report\u2026"; model.send_msg({download: format}); }}, label);
    const dialog = el("dialog.marks", {"aria-label": "stars and notes"}, el("div.row", null, el("h2", null, "Stars and notes"), el("span.grow"), report("html", "Report as HTML"), report("md", "as Markdown"), el("button.btn", {onclick: () => dialog.close()}, "Close")), filter, rows, foot);
    ui.root.append(dialog);
    walk(rows, () => [...rows.querySelectorAll("a.mk")]);
    let frame = null;
    const open = () => { if (!dialog.open) { draw(); dialog.showModal(); } };
    const key = event => { if (event.key === "b" && global(event)) open(); };
    document.addEventListener("headatlas-bookmarks", open);
    document.addEventListener("keydown", key);
    model.on("remove", () => { document.removeEventListener("headatlas-bookmarks", open); document.removeEventListener("keydown", key); });
    let pieces = [];
    model.on("msg:custom", data => {
      const {of, page, more, error} = plain(data);
      if (error !== undefined) { pieces = []; foot.textContent = error; }
      if (page === undefined) return;
      pieces.push(page);
      if (!more) { save(`headatlas-report.${of}`, new Blob(pieces, {type: of === "md" ? "text/markdown" : "text/html"}), "text/html"); pieces = []; draw(); }
    });
    function draw() {
      if (!frame) return;
      const words = filter.value.toLowerCase(), shown = frame.rows.filter(row => `${row.kind} ${row.name} ${row.note} ${row.text}`.toLowerCase().includes(words));
      rows.replaceChildren(...shown.map(row => {
        const entry = link(ui, ".mk", row.query, row.patch, {"data-bookmark": `${row.kind} ${row.name}`}, el("i", null, row.star ? "\u2605" : "\u270e"), el("span.dim", null, row.kind), middle(row.name, "b"), el("span.ell", {dir: "auto", title: row.note || row.text}, row.note || row.text));
        entry.addEventListener("click", () => dialog.close());
        return entry;
      }));
      if (!shown.length) rows.append(el("p.dim", null, frame.rows.length ? "No star or note contains these words." : "Nothing is starred yet. Star a head on the corpus page, or an example beside its tabs (key s)."));
      foot.textContent = `${count(shown.length)} of ${count(frame.rows.length)}${frame.n_left_out ? `; ${count(frame.n_left_out)} of examples or heads that this store does not have` : ""}. ${frame.writable ? "They are kept in a file beside the store." : "They cannot be written: start the viewer with --bookmarks PATH."}`;
      for (const button of dialog.querySelectorAll("[data-report]")) button.disabled = !frame.rows.length;
    }
    filter.addEventListener("input", draw);
    return next => { frame = next; draw(); };
  });
}
