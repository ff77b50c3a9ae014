// The two matrix products of a tile, and their memory layouts. Included once for each instruction set.
//
// A model stores the heads of a token next to each other, so the rows of one head are far apart and the hardware
// prefetcher does not load them. Packing a head therefore prefetches the rows of the next head.
//
// Keys are packed in panels of PANEL keys, each [dimension][key], so that a score product loads vectors of keys and
// broadcasts the query. Values are packed [key][dimension], padded to full vectors. Both are padded with zeros.
constexpr int GROUP = 6;            // rows of a product that fit in registers
constexpr int TILE = 2 * GROUP;     // rows of scores in memory at a time
constexpr int PANEL = PANEL_VECTORS * LANES;

INLINE int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));

// Transposes 4 x 4 numbers: to[column][row] = from[row][column].
INLINE void transpose_four(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
  typedef float V __attribute__((vector_size(16)));
  const V a = *(const Four *)from, b = *(const Four *)(from + from_stride);
  const V c = *(const Four *)(from + 2 * from_stride), d = *(const Four *)(from + 3 * from_stride);
  const V ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const V cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  *(Four *)to = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
  *(Four *)(to + to_stride) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  *(Four *)(to + 2 * to_stride) = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
  *(Four *)(to + 3 * to_stride) = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
}

INLINE void fetch_ahead(const float *row, const int64_t stride[4], int64_t d) {
  for (int64_t i = 0; i < d; i += 16) __builtin_prefetch(row + stride[1] + i);
}

static void pack_keys(const float *key, const int64_t stride[4], int64_t n_keys, int64_t d, float *packed) {
  for (int64_t first = 0; first < n_keys; first += PANEL, packed += PANEL * d) {
    const int64_t n = n_keys - first < PANEL ? n_keys - first : PANEL;
    const float *from = key + first * stride[2];
    for (int64_t j = 0; j < n; ++j) fetch_ahead(from + j * stride[2], stride, d);
    int64_t j = 0;
    if (stride[3] == 1)
      for (; j + 4 <= n; j += 4) {
        int64_t i = 0;
        for (; i + 4 <= d; i += 4) transpose_four(from + j * stride[2] + i, stride[2], packed + i * PANEL + j, PANEL);
        for (; i < d; ++i)
          for (int64_t row = j; row < j + 4; ++row) packed[i * PANEL + row] = from[row * stride[2] + i];
      }
    for (; j < n; ++j)
      for (int64_t i = 0; i < d; ++i) packed[i * PANEL + j] = from[j * stride[2] + i * stride[3]];
    for (; j < rounded_up(n, LANES); ++j)
      for (int64_t i = 0; i < d; ++i) packed[i * PANEL + j] = 0;
  }
}

// to[i] = factor * from[i * step]
INLINE void copy_scaled(const float *from, int64_t step, int64_t n, float factor, float *to) {
  int64_t i = 0;
  if (step == 1)
    for (; i + LANES <= n; i += LANES) store(to + i, load(from + i) * factor);
  for (; i < n; ++i) to[i] = from[i * step] * factor;
}

static void pack_values(const float *value, const int64_t stride[4], int64_t n_keys, int64_t d, float *packed) {
  const int64_t width = rounded_up(d, LANES);
  for (int64_t k = 0; k < n_keys; ++k, packed += width) {
    fetch_ahead(value + k * stride[2], stride, d);
    copy_scaled(value + k * stride[2], stride[3], d, 1.0f, packed);
    for (int64_t i = d; i < width; ++i) packed[i] = 0;
  }
}

static void pack_queries(const float *query, const int64_t stride[4], int n_rows, int64_t d, float factor,
                         float *packed) {
  for (int r = 0; r < n_rows; ++r) {
    fetch_ahead(query + r * stride[2], stride, d);
    copy_scaled(query + r * stride[2], stride[3], d, factor, packed + r * d);
  }
}

// scores[r][0 : VECTORS * LANES] = query[r] · panel
template <int ROWS, int VECTORS>
INLINE void score_block(const float *query, int64_t d, const float *panel, float *scores, int64_t width) {
  Floats sums[ROWS][VECTORS] = {};
  for (int64_t i = 0; i < d; ++i) {
    Floats keys[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) keys[v] = load(panel + i * PANEL + v * LANES);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) {
      const Floats q = fill(query[r * d + i]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = multiply_add(q, keys[v], sums[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(scores + r * width + v * LANES, sums[r][v]);
}

template <int VECTORS>
static void score_rows(int rows, const float *query, int64_t d, const float *panel, float *scores, int64_t width) {
  switch (rows) {
    case 6: return score_block<6, VECTORS>(query, d, panel, scores, width);
    case 5: return score_block<5, VECTORS>(query, d, panel, scores, width);
    case 4: return score_block<4, VECTORS>(query, d, panel, scores, width);
    case 3: return score_block<3, VECTORS>(query, d, panel, scores, width);
    case 2: return score_block<2, VECTORS>(query, d, panel, scores, width);
    default: return score_block<1, VECTORS>(query, d, panel, scores, width);
  }
}

static void score_panel(int rows, int vectors, const float *query, int64_t d, const float *panel, float *scores,
                        int64_t width) {
#if HEADATLAS_ISA == 2
  if (vectors == 4) return score_rows<4>(rows, query, d, panel, scores, width);
  if (vectors == 3) return score_rows<3>(rows, query, d, panel, scores, width);
#endif
  if (vectors == 2) return score_rows<2>(rows, query, d, panel, scores, width);
  score_rows<1>(rows, query, d, panel, scores, width);
}

// output[r][0 : n] = share[r] * sum over keys start ... stop of weight[r][key] * value[key][0 : n]
template <int ROWS, int VECTORS>
INLINE void output_block(const float *weight, int64_t width, int64_t start, int64_t stop, const float *value,
                         int64_t value_width, const float *share, float *output, int64_t output_stride, int64_t n) {
  Floats sums[ROWS][VECTORS] = {};
  for (int64_t k = start; k < stop; ++k) {
    Floats values[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) values[v] = load(value + k * value_width + v * LANES);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const Floats w = fill(weight[r * width + k]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = multiply_add(w, values[v], sums[r][v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    float *row = output + r * output_stride;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const Floats x = sums[r][v] * fill(share[r]);
      if (n >= (v + 1) * LANES) {
        store(row + v * LANES, x);
      } else {
        float last[LANES];
        store(last, x);
        for (int64_t i = v * LANES; i < n; ++i) row[i] = last[i - v * LANES];
      }
    }
  }
}

template <int VECTORS>
static void output_rows(int rows, const float *weight, int64_t width, int64_t start, int64_t stop, const float *value,
                        int64_t value_width, const float *share, float *output, int64_t output_stride, int64_t n) {
#define BLOCK(ROWS) \
  output_block<ROWS, VECTORS>(weight, width, start, stop, value, value_width, share, output, output_stride, n)
  switch (rows) {
    case 6: return BLOCK(6);
    case 5: return BLOCK(5);
    case 4: return BLOCK(4);
    case 3: return BLOCK(3);
    case 2: return BLOCK(2);
    default: return BLOCK(1);
  }
#undef BLOCK
}

static void output_group(int rows, const float *weight, int64_t width, int64_t start, int64_t stop, const float *value,
                         int64_t d, const float *share, float *output, int64_t output_stride) {
  const int64_t value_width = rounded_up(d, LANES);
  for (int64_t i = 0; i < d;) {
    const int64_t n_remaining = d - i, vectors = rounded_up(n_remaining, LANES) / LANES;
#define ROWS_OF(VECTORS)                                                                                        \
  output_rows<VECTORS>(rows, weight, width, start, stop, value + i, value_width, share, output + i, output_stride, \
                       n_remaining)
#if HEADATLAS_ISA == 2
    if (vectors >= 4) { ROWS_OF(4); i += 4 * LANES; continue; }
    if (vectors == 3) { ROWS_OF(3); i += 3 * LANES; continue; }
#endif
    if (vectors >= 2) { ROWS_OF(2); i += 2 * LANES; continue; }
    ROWS_OF(1);
    i += LANES;
#undef ROWS_OF
  }
}
