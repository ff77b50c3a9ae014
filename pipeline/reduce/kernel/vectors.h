// Copy of queries or keys from the model's tensor to the rows of a segment, in the stored type. Included once for each
// instruction set, inside its namespace.
//
// A model stores the heads of a token next to each other, the store has the tokens of a head next to each other. The
// code reads all heads of a block of tokens and writes each head's rows, so that both sides stay in the cache.

typedef uint16_t LooseHalves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

constexpr int64_t BLOCK_TOKENS = 16;

// Converts floats to bfloat16, rounded to nearest even.
INLINE LooseHalves to_bfloat16(Ints bits) {
  const Ints rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(rounded & 0xFFFF, LooseHalves);
}

template <int CODEC>
INLINE void store_encoded(void *to, int64_t offset, Floats from) {
  if (CODEC == KEPT_FLOAT32) store((float *)to + offset, from);
  if (CODEC == KEPT_FLOAT16) store_halves((uint16_t *)to + offset, from);
  if (CODEC == KEPT_BFLOAT16) *(LooseHalves *)((uint16_t *)to + offset) = to_bfloat16((Ints)from);
}

// Stores tokens first ... stop - 1 of one example. Returns the largest absolute value as bits. The bits have the order
// of the values, with infinity and NaN above every number.
template <int CODEC>
static int32_t store_tokens(const Vectors &call, int64_t example, int64_t first, int64_t stop) {
  constexpr int64_t BYTES = CODEC == KEPT_FLOAT32 ? 4 : 2;
  const int64_t d = call.d_head, n_vectorized = d / LANES * LANES;
  Ints top = {};
  for (int64_t tile = first; tile < stop; tile += BLOCK_TOKENS) {
    const int64_t end = tile + BLOCK_TOKENS < stop ? tile + BLOCK_TOKENS : stop;
    for (int64_t head = 0; head < call.n_heads; ++head) {
      const float *from = call.source + example * call.source_stride[0] + head * call.source_stride[1];
      const int64_t rows = head * call.to_stride[0] + call.start[example] * call.to_stride[1];
      for (int64_t token = tile; token < end; ++token) {
        const float *row = from + token * call.source_stride[2];
        uint8_t *to = (uint8_t *)call.to + (rows + token * call.to_stride[1]) * BYTES;
        for (int64_t i = 0; i < n_vectorized; i += LANES) {
          const Floats x = load(row + i);
          const Ints size = (Ints)x & 0x7FFFFFFF;
          top = size > top ? size : top;
          store_encoded<CODEC>(to, i, x);
        }
        if (n_vectorized < d) {
          float last[LANES] = {};
          uint8_t encoded[LANES * BYTES];
          memcpy(last, row + n_vectorized, (size_t)(d - n_vectorized) * sizeof(float));
          const Floats x = load(last);
          const Ints size = (Ints)x & 0x7FFFFFFF;
          top = size > top ? size : top;
          store_encoded<CODEC>(encoded, 0, x);
          memcpy(to + n_vectorized * BYTES, encoded, (size_t)((d - n_vectorized) * BYTES));
        }
      }
    }
  }
  int32_t largest = 0;
  for (int i = 0; i < LANES; ++i) largest = largest > top[i] ? largest : top[i];
  return largest;
}

static int32_t store_block(const Vectors &call, int64_t example, int64_t first, int64_t stop) {
  if (call.codec == KEPT_FLOAT16) return store_tokens<KEPT_FLOAT16>(call, example, first, stop);
  if (call.codec == KEPT_BFLOAT16) return store_tokens<KEPT_BFLOAT16>(call, example, first, stop);
  return store_tokens<KEPT_FLOAT32>(call, example, first, stop);
}
