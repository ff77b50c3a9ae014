// What wire.py packed: JSON beside a block of bytes, and how components are given it.
const TYPES = {float32: Float32Array, float64: Float64Array, uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array, uint32: Uint32Array, int32: Int32Array};

export function unpacked({text, bytes, mark}) {
  if (!mark) return JSON.parse(text);
  const block = bytes instanceof ArrayBuffer ? bytes : bytes.buffer, from = bytes.byteOffset || 0;
  return JSON.parse(text, (_, value) => {
    const found = value === null || typeof value !== "object" ? undefined : value[mark];
    if (found === undefined) return value;
    return typeof found === "string" ? Number(found) : new TYPES[found[0]](block, from + found[1], found[2]);
  });
}

// Set {model id: {property: value}} in a document as it would be by the server: nothing is sent back. All values are there
// before the first component hears of its own.
export function apply(document, changes) {
  const told = [];
  for (const [id, values] of Object.entries(changes)) {
    const model = document.get_model_by_id(id);
    if (!model) continue;
    model.data.setv(values, {silent: true});
    for (const name of Object.keys(values)) told.push(model.data.properties[name]);
  }
  for (const property of told) property.change.emit();
}
