import { el } from "../_js/dom.js";
// Completion in the expression box: fields after `query.`, values after `field ==`, elsewhere patterns of the library
// and words of the language. Arrows select an item, Tab or Enter inserts it, Escape closes the list.

export const COMPLETION_CSS = `
.complete { position: absolute; z-index: 30; top: 40px; left: 8px; min-width: 220px; max-width: 420px; max-height: 232px; overflow: auto; background: var(--surface); border: 1px solid var(--line-2); border-radius: 6px; box-shadow: var(--shadow); padding: 4px; font: 12.5px var(--mono) }
.complete > div { display: flex; gap: 14px; padding: 3px 8px; border-radius: 4px; cursor: pointer } .complete > div[aria-selected=true] { background: var(--accent-soft); color: var(--accent-ink) } .complete .what { margin-left: auto; color: var(--ink-3); font-size: 11px }
`;
const WORDS = ["and", "or", "not", "in", "matches", "true", "false"];

// Completions at `caret`: {from, items: [[text, kind]]}, the best first. `from` is the offset of the text to replace.
export function proposals(text, caret, frame) {
  const before = text.slice(0, caret), starts = (list, part) => [...list.filter(([t]) => t.startsWith(part)), ...list.filter(([t]) => !t.startsWith(part) && t.includes(part))];
  const valueMatch = /\b(?:query|key)\.(?:previous\.|next\.)?([a-z_]\w*)\s*(?:==|!=|in\s*\{(?:[^}]*,)?)\s*("?)([^"{},]*)$/.exec(before);
  if (valueMatch && frame.values[valueMatch[1]] && (valueMatch[2] || !valueMatch[3])) {
    const from = caret - valueMatch[3].length - valueMatch[2].length;
    return {from, items: starts(frame.values[valueMatch[1]].map(([v, n]) => [v, n.toLocaleString("en-US")]), valueMatch[3]).map(([v, n]) => [JSON.stringify(v), n])};
  }
  if ((before.match(/"/g) || []).length % 2) return {from: caret, items: []};
  const field = /\b(query|key|example)\.(?:previous\.|next\.)?(\w*)$/.exec(before);
  if (field) return {from: caret - field[2].length, items: starts(frame.fields[field[1]].map(name => [name, ""]), field[2])};
  const [word] = /[a-z_]*$/.exec(before);
  const names = [...["query.", "key.", "example."].map(name => [name, "token"]), ...WORDS.map(name => [name, ""]), ...frame.library.map(item => [item.name, item.label])];
  return word ? {from: caret - word.length, items: starts(names, word).filter(([name]) => name !== word)} : {from: caret, items: []};
}

// The list of completions below `input`. `changed` runs after an insertion. `key(event)` of the result is true if the
// list handled the key.
export function completion(input, host, frameOf, changed) {
  const list = el("div.complete", {role: "listbox", "aria-label": "completions", hidden: true});
  host.append(list);
  let completions = {from: 0, items: []}, selected = -1;
  const close = () => { list.hidden = true; list.style.display = "none"; selected = -1; };
  function draw() {
    list.hidden = !completions.items.length; list.style.display = completions.items.length ? "" : "none";
    list.replaceChildren(...completions.items.map(([text, kind], i) => el("div", {role: "option", "aria-selected": String(i === selected), "data-completion": text, onmousedown: event => { event.preventDefault(); take(i); }}, text, el("span.what", null, kind))));
    list.style.left = `${Math.min(12 + completions.from * 8.1, Math.max(8, host.clientWidth - 430))}px`;
    list.children[selected]?.scrollIntoView({block: "nearest"});
  }
  function open() { completions = proposals(input.value, input.selectionStart, frameOf()); selected = -1; draw(); }
  function take(i) {
    const [text] = completions.items[i], caret = input.selectionStart;
    input.setRangeText(text, completions.from, caret, "end");
    close(); changed();
    if (text.endsWith(".")) open();
  }
  function key(event) {
    if (list.hidden) return false;
    const n = completions.items.length, step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (step) { selected = (selected + step + n + (selected < 0 && step < 0 ? 1 : 0)) % n; draw(); }
    else if (event.key === "Tab" || (event.key === "Enter" && selected >= 0)) take(Math.max(0, selected));
    else if (event.key === "Escape") close();
    else return false;
    event.preventDefault();
    return true;
  }
  input.addEventListener("blur", close);
  close();
  return {open, key, close};
}
