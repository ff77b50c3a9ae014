// The expression box: it colours the text while the reader types, and Enter runs it. An arrow marks an error above its
// message.
import { el } from "../_js/dom.js";
import { component, segmented, select, walk } from "../_js/shell.js";
import { completion, COMPLETION_CSS } from "../_js/completion.js";
import { arcEditor, ARCS_CSS } from "../_js/arcs.js";

const CSS = `
.query { padding: 10px 12px; gap: 8px; overflow: visible }
.editor { position: relative; border: 1px solid var(--line-2); border-radius: 6px; background: var(--surface); height: 38px; flex: none }
.editor:focus-within { border-color: var(--accent); box-shadow: 0 0 0 3px var(--accent-soft) } .editor.err { border-color: var(--bad); box-shadow: 0 0 0 3px var(--bad-soft) }
.editor input, .editor code, .arrow { font: 13.5px/36px var(--mono) !important; white-space: pre; letter-spacing: 0 }
.editor input { position: absolute; inset: 0 96px 0 0; padding: 0 0 0 12px; border: 0; outline: 0 !important; background: transparent; color: transparent !important; caret-color: var(--ink) }
.editor .view { position: absolute; inset: 0 96px 0 12px; overflow: hidden; pointer-events: none }
.editor code { display: block; position: relative } .editor .run { position: absolute; right: 4px; top: 4px; height: 28px; padding: 0 12px }
.bar.going { height: 3px; margin-top: -4px } .modes { width: 150px }
.c-a { color: var(--accent-ink); font-weight: 400 } .c-s { color: var(--neg) } .c-k { color: var(--ink-3) } .c-e { text-decoration: underline wavy var(--bad); text-underline-offset: 3px }
.problem { color: var(--bad); padding: 0 0 0 13px; font-size: 12px; min-height: 26px; overflow-wrap: anywhere; white-space: pre-wrap } .arrow { line-height: 12px !important; height: 12px; font-weight: 700 !important; overflow: hidden }
.about { max-height: 34px; overflow: auto; overflow-wrap: anywhere }
.lib { flex: none; display: flex; gap: 6px; overflow: hidden; flex-wrap: wrap; height: 26px }
.chip { display: inline-flex; align-items: center; height: 24px; padding: 0 9px; border: 1px solid var(--line-2); border-radius: 12px; background: var(--surface); font: 11.5px var(--mono) !important; color: var(--ink-2); white-space: nowrap }
.chip:hover { border-color: var(--ink-3); color: var(--ink) } .chip[aria-pressed=true] { background: var(--accent-soft); border-color: var(--accent); color: var(--accent-ink); font-weight: 600 !important }
`;
const TOKEN = /("(?:[^"\\]|\\.)*"?)|\b(and|or|not|in|true|false)\b|\b(query|key)\b|[^"a-zA-Z_]+|[a-zA-Z_]\w*/g;

// frame: {expression, library: [{name, expression, description}], picked, description, error: {message, start, stop,
//         expression}|null, busy}
export function render({model, el: host}) {
  component(model, host, CSS + COMPLETION_CSS + ARCS_CSS, ui => {
    const input = el("input", {type: "text", spellcheck: "false", autocomplete: "off", "aria-label": "pattern", maxlength: 2000, placeholder: "key.position == query.position - 1"});
    const code = el("code", {"aria-hidden": "true"}), button = el("button.btn.primary.run", {onclick: () => now?.busy ? ui.send({cancel: true}) : run()}, "Run");
    const editor = el("div.editor", null, el("div.view", null, code), input, button);
    const problem = el("div.problem", {role: "alert", id: "problem"}), library = el("div.lib", {role: "group", "aria-label": "library"}), about = el("div.sm.dim2.about");
    const all = el("span"), modes = el("span.modes"), going = el("div.bar.going", {role: "progressbar"}, el("i")), arcs = arcEditor(ui, list => ui.send({arcs: list}));
    walk(library, () => [...library.children]);
    let error = null, shown = null, now = null;
    ui.root.append(el("section.card.query", {"aria-label": "pattern"}, el("div.row", null, el("h2.strong", {style: "white-space:nowrap"}, "Find heads and examples"), modes, el("span.xs.dim.ell", null, "a condition on a query token and a key token, a pattern's name, or a token"), el("span.grow"), all), editor, going, arcs.box, problem, library, about));
    const complete = completion(input, editor, () => now || {fields: {query: [], key: [], example: []}, values: {}, library: []}, () => colour());
    function run() { ui.send({run: input.value}); }
    const colour = () => {
      const text = input.value, mark = error && error.expression === text ? error : null, parts = [];
      let offset = 0;
      for (const [piece, string, word, side] of text.matchAll(TOKEN)) {
        const isWrong = mark && offset < mark.stop && offset + piece.length > mark.start;
        const kind = [string && "c-s", word && "c-k", side && "c-a", isWrong && "c-e"].filter(Boolean);
        parts.push(kind.length ? el(`span.${kind.join(".")}`, null, piece) : piece);
        offset += piece.length;
      }
      code.replaceChildren(...parts);
      code.style.transform = `translateX(${-input.scrollLeft}px)`;
      editor.classList.toggle("err", !!mark);
      input.setAttribute("aria-invalid", String(!!mark));
      problem.style.display = mark ? "" : "none";
      library.style.display = now?.drawn ? "none" : "";
      if (mark) problem.replaceChildren(el("div.arrow", {"aria-hidden": "true", "data-start": mark.start, "data-stop": mark.stop}, " ".repeat(mark.start) + "^".repeat(mark.stop - mark.start)), el("span", {"data-message": "1"}, mark.message));
    };
    input.addEventListener("input", () => { colour(); complete.open(); });
    input.addEventListener("scroll", colour);
    input.addEventListener("keydown", event => {
      if (complete.key(event)) return;
      if (event.key === "Enter") { complete.close(); run(); }
      if (event.key === "Escape") input.blur();
    });
    return frame => {
      error = frame.error; now = frame;
      modes.replaceChildren(segmented([["write", "Write"], ["draw", "Draw arcs"]], frame.drawn ? "draw" : "write", "input mode", mode => ui.send({arcs: mode === "draw" ? [] : null})));
      arcs.box.style.display = frame.drawn ? "" : "none"; editor.style.display = frame.drawn ? "none" : ""; about.style.display = frame.drawn ? "none" : "";
      if (frame.drawn) arcs.show(frame.drawn);
      const [done, of] = frame.progress || [0, 1];
      going.style.display = frame.busy ? "" : "none"; going.firstChild.style.width = `${100 * done / Math.max(1, of)}%`; going.setAttribute("aria-valuenow", String(Math.round(100 * done / Math.max(1, of))));
      if (frame.expression !== shown) { input.value = frame.expression; shown = frame.expression; }
      button.textContent = frame.busy ? "Cancel" : "Run";
      const chips = [...frame.library].sort((a, b) => (b.name === frame.picked) - (a.name === frame.picked));   // the selected pattern comes first, so that it is visible
      all.replaceChildren(select([["", `library: ${frame.library.length} patterns`], ...frame.library.map(item => [item.expression, `${item.name}: ${item.description}`])], frame.picked ? frame.expression : "", "library of patterns", expression => expression && ui.send({run: expression})));
      library.replaceChildren(...chips.map(item => el("button.chip", {"aria-pressed": String(item.name === frame.picked), title: `${item.label}: ${item.description}\n${item.expression}`, "data-pattern": item.name, onclick: () => ui.send({run: item.expression})}, item.name)));
      about.replaceChildren(...(frame.picked ? [el("b.strong", null, frame.picked), `  \u2014  ${frame.description}`] : [frame.description]));
      colour();
    };
  });
}
