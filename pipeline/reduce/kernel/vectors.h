// Queries or keys from where the model left them to their places in a segment, in the type they are kept in. Included
// once for each instruction set, inside its namespace.
//
// A model's heads lie beside each other in every token; the store wants each head's tokens together. So a few tokens are
// read at a time, all heads of them, and each head's rows go where that head is: both ends stay in the cache.

typedef uint16_t LooseHalves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

constexpr int64_t TOKENS_AT_A_TIME = 16;

// The upper half of each float, rounded to even.
INLINE LooseHalves brain_floats(Ints bits) {
  const Ints rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(rounded & 0xFFFF, LooseHalves);
}

template <int CODEC>
INLINE void store_kept(void *to, int64_t at, Floats from) {
  if (CODEC == KEPT_FLOAT32) store((float *)to + at, from);
  if (CODEC == KEPT_FLOAT16) store_halves((uint16_t *)to + at, from);
  if (CODEC == KEPT_BFLOAT16) *(LooseHalves *)((uint16_t *)to + at) = brain_floats((Ints)from);
}

// Tokens first ... stop - 1 of one example; the largest absolute value as bits, which order as the values do, with
// infinity and NaN above every number.
template <int CODEC>
static int32_t store_tokens(const Vectors &call, int64_t example, int64_t first, int64_t stop) {
  constexpr int64_t BYTES = CODEC == KEPT_FLOAT32 ? 4 : 2;
  const int64_t d = call.d_head, whole = d / LANES * LANES;
  Ints top = {};
  for (int64_t tile = first; tile < stop; tile += TOKENS_AT_A_TIME) {
    const int64_t end = tile + TOKENS_AT_A_TIME < stop ? tile + TOKENS_AT_A_TIME : stop;
    for (int64_t head = 0; head < call.n_heads; ++head) {
      const float *from = call.from + example * call.from_stride[0] + head * call.from_stride[1];
      const int64_t rows = head * call.to_stride[0] + call.start[example] * call.to_stride[1];
      for (int64_t token = tile; token < end; ++token) {
        const float *row = from + token * call.from_stride[2];
        uint8_t *to = (uint8_t *)call.to + (rows + token * call.to_stride[1]) * BYTES;
        for (int64_t i = 0; i < whole; i += LANES) {
          const Floats x = load(row + i);
          const Ints size = (Ints)x & 0x7FFFFFFF;
          top = size > top ? size : top;
          store_kept<CODEC>(to, i, x);
        }
        if (whole < d) {
          float rest[LANES] = {};
          uint8_t kept[LANES * BYTES];
          memcpy(rest, row + whole, (size_t)(d - whole) * sizeof(float));
          const Floats x = load(rest);
          const Ints size = (Ints)x & 0x7FFFFFFF;
          top = size > top ? size : top;
          store_kept<CODEC>(kept, 0, x);
          memcpy(to + whole * BYTES, kept, (size_t)((d - whole) * BYTES));
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
