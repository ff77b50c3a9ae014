// The strongest keys of a row. Included once for each instruction set, after products.h.
//
// The n-th largest of the maxima of 16 interleaved parts of the row is a lower bound of the row's n-th largest number.
// Therefore only a few keys (about 10 to 16 of 512) are candidates. Candidates are ranked by comparing each with all
// others in SIMD lanes. The lower key wins a tie.
constexpr int FEW = 32;  // largest number of candidates that are ranked by comparing each with all
constexpr float LOWEST = -3.4028234e38f;

INLINE int64_t floor_lanes(int64_t n) { return n / LANES * LANES; }

// Counts the numbers of value[0 : n] that are larger than each of value[0 : vectors * LANES].
INLINE void count_larger(const float *value, int n, int vectors, int32_t *count) {
  for (int v = 0; v < vectors; ++v) {
    const Floats own = load(value + v * LANES);
    Ints larger_ones = {};
    for (int j = 0; j < n; ++j) larger_ones -= fill(value[j]) > own;
    *(LooseInts *)(count + v * LANES) = larger_ones;
  }
}

// Finds the keys that can be among the row's n strongest: those that reach the n-th largest of the 16 lane maxima.
INLINE int find_candidates(const float *row, int64_t start, int64_t stop, int64_t n, const float *lanes,
                           int32_t *candidate) {
  alignas(64) int32_t larger_lanes[16];
  count_larger(lanes, 16, 16 / LANES, larger_lanes);
  Floats bound = fill(__builtin_inff());  // the smallest maximum that has fewer than n larger ones
  for (int i = 0; i < 16; i += LANES) {
    const Ints n_larger = *(const LooseInts *)(larger_lanes + i);
    const Floats value = n_larger < (int32_t)n ? load(lanes + i) : fill(__builtin_inff());
    bound = -larger(-bound, -value);
  }
  float threshold = -largest(-bound);
  threshold = threshold > LOWEST ? threshold : LOWEST;  // hidden keys are never candidates
  const Floats least = fill(threshold);
  Ints key = lane_numbers() + (int32_t)floor_lanes(start);
  int n_candidates = 0;
  for (int64_t k = floor_lanes(start); k < stop; k += LANES, key += LANES)
    n_candidates = append(candidate, n_candidates, key, at_least(load(row + k), least));
  return n_candidates;
}

// Destination of a row's edges, and the conversion of a row's numbers (h, or h * h if `squared`) to weights.
template <typename Key>
struct Edges {
  Key *key;
  uint16_t *weight;
  int n_edges;
  bool squared;
  float share;

  Floats weights(Floats values) const { return (squared ? values : values * values) * share; }
};

// Writes the strongest of `n` <= FEW candidates, which are in ascending key order. If `candidate` is null they are all
// keys from `first_key` on. Branches do not depend on the numbers. The code avoids loading a vector right after storing
// its single elements, which would stall on store forwarding.
template <typename Key>
INLINE void write_few(const Edges<Key> &edges, const float *row, const int32_t *candidate, int64_t first_key, int n) {
  alignas(64) float gathered[FEW];
  alignas(64) int32_t rank[FEW];
  alignas(64) uint16_t half[FEW];
  alignas(64) uint8_t ties[FEW] = {};
  const float *value = row + first_key;  // few keys are ranked in place; numbers after them are ranked but not written
  if (candidate) {
    for (int i = 0; i < n; ++i) gathered[i] = row[candidate[i]];
    value = gathered;
  }
  const int vectors = (n + LANES - 1) / LANES;
  count_larger(value, n, vectors, rank);
  for (int v = 0; v < vectors; ++v) store_halves(half + v * LANES, edges.weights(load(value + v * LANES)));
  alignas(64) Key sorted_keys[FEW];
  alignas(64) uint16_t sorted_halves[FEW];
  for (int i = n; i < edges.n_edges; ++i) {
    sorted_keys[i] = (Key)-1;
    sorted_halves[i] = 0;
  }
  for (int i = 0; i < n; ++i) {  // rank + ties < n for any numbers, including NaN
    const int slot = rank[i] + ties[rank[i]]++;
    sorted_keys[slot] = (Key)(candidate ? candidate[i] : first_key + i);
    sorted_halves[slot] = half[i];
  }
  if (edges.n_edges == 8) {  // the default number, copied in one move
    memcpy(edges.key, sorted_keys, 8 * sizeof(Key));
    memcpy(edges.weight, sorted_halves, 16);
  } else {
    memcpy(edges.key, sorted_keys, (size_t)edges.n_edges * sizeof(Key));
    memcpy(edges.weight, sorted_halves, (size_t)edges.n_edges * 2);
  }
}

// Writes the strongest of any number of candidates by insertion sort.
template <typename Key>
static void write_many(const Edges<Key> &edges, const float *row, const int32_t *candidate, int n) {
  alignas(64) float values[MAX_EDGES] = {};
  alignas(64) uint16_t half[MAX_EDGES];
  int n_edges_so_far = 0;
  for (int i = 0; i < n; ++i) {
    const float x = row[candidate[i]];
    if (n_edges_so_far == edges.n_edges && !(x > values[n_edges_so_far - 1])) continue;
    int slot = n_edges_so_far < edges.n_edges ? n_edges_so_far++ : n_edges_so_far - 1;
    for (; slot > 0 && x > values[slot - 1]; --slot) {
      values[slot] = values[slot - 1];
      edges.key[slot] = edges.key[slot - 1];
    }
    values[slot] = x;
    edges.key[slot] = (Key)candidate[i];
  }
  for (int i = 0; i < MAX_EDGES; i += LANES) store_halves(half + i, edges.weights(load(values + i)));
  memcpy(edges.weight, half, (size_t)edges.n_edges * 2);
}

template <typename Key>
INLINE void write_edges(const Call &call, int64_t head, int64_t row_index, const float *row, const int32_t *candidate,
                        int64_t first_key, int n, bool squared, float share) {
  const int n_edges = (int)call.n_edges;
  const Edges<Key> edges{(Key *)call.edge_key + head * call.edge_key_stride + row_index * n_edges,
                         call.edge_weight + head * call.edge_weight_stride + row_index * n_edges, n_edges, squared,
                         share};
  if (n <= FEW)
    write_few(edges, row, candidate, first_key, n);
  else
    write_many(edges, row, candidate, n);
}
