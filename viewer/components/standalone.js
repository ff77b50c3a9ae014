import { MAX_WINDOW } from "../_js/constants.js";
import { parseHeads, parsePin } from "../_js/paint.js";
import { el, mount } from "../_js/dom.js";
import { CSS } from "../_js/style.js";
import { keysOf, partNames, cellsOf, cutTokens, headFrame, modelFrame, detailFrame, pickerFrame, strongestFrame, pinnedFrame, neuronFrame } from "../_js/listing.js";

// A view in a standalone document. The components are the same; their models have no server. A choice in one component
// changes the others here. export.py writes `data`.
const BAR = `
.bar-row { display: flex; align-items: center; gap: 12px; height: 32px; padding: 0 4px } .bar-row h1 { margin: 0; font-size: 13px; font-weight: 600; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; unicode-bidi: isolate }
.bar-row label { display: flex; align-items: center; gap: 6px; font-size: 12px; color: var(--ink-2); white-space: nowrap } .bar-row select { height: 26px; border: 1px solid var(--line-2); border-radius: 6px; background: var(--surface); padding: 0 6px }
`;

// The part of a Panel model that a component uses: properties that notify of changes, `on`, `send_msg`
function makeModel(values, constants) {
  const now = {label: "", ...values}, listeners = new Map(), model = {esm_constants: constants, alone: true};
  const tell = names => { for (const callback of new Set(names.flatMap(name => listeners.get(name) || []))) callback(); };
  for (const name of Object.keys(now)) Object.defineProperty(model, name, {get: () => now[name], set: value => { if (value !== now[name]) { now[name] = value; tell([name]); } }});
  model.on = (names, callback) => { for (const name of [names].flat()) listeners.set(name, [...(listeners.get(name) || []), callback]); };
  model.update = patch => { const changed = Object.keys(patch).filter(name => now[name] !== patch[name]); Object.assign(now, patch); tell(changed); };
  model.send_msg = data => { for (const callback of listeners.get("msg") || []) callback(data); };
  return model;
}

// {"$array": "f4", "data": base64} -> typed array
const TYPES = {u1: Uint8Array, i4: Int32Array, f4: Float32Array};
function decode(value) {
  if (Array.isArray(value)) return value.map(decode);
  if (value === null || typeof value !== "object") return value;
  if (value.$array) { const text = atob(value.data), bytes = Uint8Array.from({length: text.length}, (_, i) => text.charCodeAt(i)); return new TYPES[value.$array](bytes.buffer); }
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, decode(item)]));
}

function startPage(raw, COMPONENTS) {
  const data = decode(raw), state = {...data.state}, main = document.querySelector("main");
  const constants = {palette: data.palette}, model = values => makeModel({theme: data.theme, ...values}, constants);
  const show = (component, its) => { const host = el("div.host"); main.append(host); component.render({model: its, el: host.attachShadow({mode: "open"})}); };
  const part = () => data.parts[state.part], ranges = () => part().ranges, range = () => ranges()[state.range] || ranges()[0];
  const cells = () => cellsOf(part(), picker.selected), firstCell = () => cells()[0] || [0, 0], id = () => `${state.part}`;
  const picker = model({frame: {}, selected: state.selected || "", single: data.kind !== "head", lines: data.kind === "head", specials: true, share: state.share, keys: state.keys, hide_special: state.hide_special, hides_first: data.parts.some(p => p.query?.special?.includes(2)), choices: false, pairs: false, unit: "token", segments: "all", weights: "stored", layout: "columns", facts: data.facts || []});
  let changed = () => {};

  function bar() {
    const its = model({}), host = document.querySelector("header");
    const {root, paint} = mount(its, host.attachShadow({mode: "open"}), CSS + BAR, colour);
    function colour() { document.documentElement.style.background = paint().tokens.bg; document.documentElement.style.colorScheme = paint().theme; }
    const choice = (name, text, options, act) => {
      const select = el("select", {"data-control": name, "aria-label": text}, options.map((option, i) => el("option", {value: String(i), selected: state[name] === i}, option)));
      select.addEventListener("change", () => act(+select.value));
      return el("label", null, text, select);
    };
    const draw = () => root.replaceChildren(el("div.bar-row", null, el("h1", {dir: "auto"}, data.title), el("span.grow"),
      data.parts.length > 1 ? choice("part", "Attention", data.parts.map(p => p.label), value => { Object.assign(state, {part: value, range: 0}); picker.update({selected: valid(picker.selected)}); draw(); changed("part"); }) : "",
      data.kind !== "neuron" && ranges().length > 1 ? choice("range", "Sentences", ranges().map(r => r.label), value => { state.range = value; changed("range"); }) : ""));
    colour(); draw();
  }
  // the heads of a selection that this part has, otherwise its first head
  function valid(selected) {
    const names = partNames(part()), heads = parseHeads(selected).filter(name => names.cell(name).every(i => i >= 0));
    return (heads.length ? heads : [names.name(0, 0)]).join(",");
  }
  const hide = () => picker.hide_special;
  if (data.kind !== "page") bar(); else frozenBar();
  ({head: startHead, model: startModel, neuron: startNeuron, page: startFrozen})[data.kind]();

  // one component in its saved state: hover, tooltips and tables work; actions that need the store do nothing
  function frozenBar() {
    const its = model({}), {root, paint} = mount(its, document.querySelector("header").attachShadow({mode: "open"}), CSS + BAR, colour);
    function colour() { document.documentElement.style.background = paint().tokens.bg; document.documentElement.style.colorScheme = paint().theme; }
    colour(); root.append(el("div.bar-row", null, el("h1", {dir: "auto"}, data.title)));
  }
  function startFrozen() {
    for (const {component, values} of data.items) show(COMPONENTS[component], model(values));
  }

  function startHead() {
    const view = model({frame: {}, tokens: {}, pin: state.pin, share: state.share, keys: state.keys, hide_special: hide(), renormalised: false, high: 0, pooling: "maximum", layout: "columns", note: ""}), list = model({frame: {}, pin: state.pin});
    let mapsKey = "", tokensOf = null, pickerKey = "";
    const inside = ([start, stop], i) => Math.min(stop - 1, Math.max(start, i));
    // the window of a long text lies around the pin
    function cut() {
      const {name, q, k} = range(), pin = parsePin(view.pin), n = ([a, b]) => b - a;
      const around = ([a, b]) => { if (b - a <= MAX_WINDOW) return [a, b]; const start = pin ? Math.min(Math.max(a, pin.index - MAX_WINDOW / 2), b - MAX_WINDOW) : a; return [start, start + MAX_WINDOW]; };
      return {name: n(q) > MAX_WINDOW || n(k) > MAX_WINDOW ? "" : name, q: around(q), k: around(k)};
    }
    function maps() {
      const window = cut(), key = `${id()} ${picker.selected} ${window.name} ${window.q} ${window.k}`;
      if (key === mapsKey) return;
      mapsKey = key;
      const patch = {frame: headFrame(part(), cells(), window, id()), note: data.parts.length > 1 ? part().label : part().note || ""};
      if (tokensOf !== part()) { tokensOf = part(); patch.tokens = {query: part().query, key: part().key, id: id()}; }
      view.update(patch);
    }
    function text() {
      const pin = parsePin(view.pin);
      const key = `${id()} ${state.range} ${view.pin} ${hide()} ${view.pin && firstCell()}`;   // the inputs of the picker's frame
      if (key !== pickerKey) { pickerKey = key; picker.update({frame: pickerFrame(part(), pin, range(), hide(), firstCell())}); }
      list.update({frame: pin ? pinnedFrame(part(), cells(), pin, range(), hide()) : strongestFrame(part(), cells(), range(), hide()), pin: view.pin});
    }
    function pinned(value) {
      const pin = parsePin(value), allowed = pin && (pin.side === "q" ? range().q : range().k);
      const others = pin && (pin.side === "q" ? range().k : range().q), edge = pin?.other === null ? "" : `${pin?.side === "q" ? "k" : "q"}${inside(others || [0, 1], pin?.other ?? 0)}`;
      const next = pin ? `${pin.side}${inside(allowed, pin.index)}${edge}` : "";
      view.update({pin: next}); maps(); text();
    }
    changed = field => { if (field === "part") view.update({pin: ""}); maps(); pinned(view.pin); };
    picker.on("selected", () => { maps(); text(); });
    picker.on(["share", "keys", "hide_special"], () => { view.update({share: picker.share, keys: picker.keys, hide_special: hide()}); text(); });
    view.on("pin", () => pinned(view.pin));
    list.on("pin", () => pinned(list.pin));
    list.on("msg", ({add}) => { const names = parseHeads(picker.selected); if (add && !names.includes(add)) picker.selected = [...names, add].join(","); });
    maps(); text();
    show(COMPONENTS.HeadPicker, picker); show(COMPONENTS.HeadView, view); show(COMPONENTS.KeyList, list);
  }

  function startModel() {
    const name = () => partNames(part()).name(...firstCell());
    const view = model({frame: {}, tokens: {}, enlarged: name(), selected: "", hide_special: hide(), scale: "sqrt"}), detail = model({frame: {}, pin: "", hide_special: hide(), scale: "sqrt"});
    let pickerKey = "";
    function maps() {
      const key = `${id()} ${state.range}`, window = range();
      view.update({frame: modelFrame(part(), window, key), tokens: {query: cutTokens(part().query, window.q), key: cutTokens(keysOf(part()), window.k), id: key}});
      updateDetail();
    }
    function updateDetail() {
      detail.update({frame: detailFrame(part(), firstCell(), range(), hide()), hide_special: hide()});
      view.update({enlarged: name(), hide_special: hide()});
      const key = `${id()} ${state.range} ${hide()}`;
      if (key !== pickerKey) { pickerKey = key; picker.update({frame: pickerFrame(part(), null, range(), hide())}); }
    }
    changed = () => { detail.update({pin: ""}); maps(); };
    view.on("enlarged", () => { picker.selected = view.enlarged; });
    picker.on(["selected", "hide_special"], updateDetail);
    maps();
    show(COMPONENTS.HeadPicker, picker); show(COMPONENTS.ModelView, view); show(COMPONENTS.HeadDetail, detail);
  }

  function startNeuron() {
    const view = model({frame: {}, tokens: {}, pin: state.pin, order: "dimension", factors: "", dim: "", measured: "", hide_special: hide(), renormalised: false});
    function row() {
      const pin = parsePin(view.pin), special = part().query.special, first = special.findIndex(s => !s), query = pin ? Math.min(pin.index, special.length - 1) : Math.max(0, first);
      view.update({frame: neuronFrame(part(), firstCell(), query, id()), tokens: {query: part().query, key: part().key, id: id()}, hide_special: hide()});
      if (part().attention) picker.update({frame: pickerFrame(part(), {side: "q", index: query, other: null}, range(), hide(), firstCell())});
      else picker.update({frame: {...pickerFrame({...part(), attention: new Float32Array(part().shape.reduce((a, b) => a * b)), codec: "float32"}, null, range(), hide()), title: "attention is not stored"}});
    }
    changed = () => { view.update({pin: "", factors: "", dim: "", measured: ""}); row(); };
    view.on("pin", () => { view.measured = ""; row(); });
    picker.on("selected", () => { view.update({factors: "", dim: "", measured: ""}); row(); });
    picker.on("hide_special", row);
    row();
    show(COMPONENTS.HeadPicker, picker); show(COMPONENTS.NeuronView, view);
  }
}
