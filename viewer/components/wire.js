// Decoder of the messages of wire.py (JSON with a block of bytes), and distribution of their values to the components.
const TYPES = {float32: Float32Array, float64: Float64Array, uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array, uint32: Uint32Array, int32: Int32Array};

export function decodeMessage({text, bytes, mark}) {
  if (!mark) return JSON.parse(text);
  const block = bytes instanceof ArrayBuffer ? bytes : bytes.buffer, from = bytes.byteOffset || 0;
  return JSON.parse(text, (_, value) => {
    const code = value === null || typeof value !== "object" ? undefined : value[mark];
    if (code === undefined) return value;
    return typeof code === "string" ? Number(code) : new TYPES[code[0]](block, from + code[1], code[2]);
  });
}

// Set {model id: {property: value}} in a document without sending anything back to the server. All values are set
// before the first component is notified.
export function apply(document, changes) {
  const properties = [];
  for (const [id, values] of Object.entries(changes)) {
    const model = document.get_model_by_id(id);
    if (!model) continue;
    model.data.setv(values, {silent: true});
    for (const name of Object.keys(values)) properties.push(model.data.properties[name]);
  }
  for (const property of properties) property.change.emit();
}
