// Reduction of one query head of one example, from packed keys and values to every destination. Included once for each
// instruction set, inside its namespace.
//
// An unnormalized weight is 4**t with t = score * log2(e) / 2 minus the largest of the row. The code computes h = 2**t.
// The weight is h * h, and its square root for the sqrt8 code is h: code = floor(255 * h / sqrt(Z) + .5). The largest
// weight of a row is 1/Z (or less if a sink is larger). Only TILE rows of scores are in memory at a time. Each pass
// over a tile processes one row after the other, so that the processor can overlap neighboring rows.

constexpr double LN2 = 0.69314718055994530942;
constexpr double HALF_LOG2E = 0.72134752044448170368;

struct Scratch {
  float *keys, *values, *queries, *scores;
  int32_t *candidate;
  int32_t *special;
};

struct Head {
  const Call &call;
  int64_t example, head, n_queries, n_keys, width;  // width: row stride of `scratch.scores`, in floats
  const Scratch &scratch;
  int64_t n_special;
  double total[N_STATISTICS];
  bool valid;

  int64_t start(int64_t q) const { return q > call.before ? q - call.before : 0; }
  int64_t stop(int64_t q) const { return call.after >= n_keys - 1 - q ? n_keys : q + call.after + 1; }
  // Range of the keys whose codes are stored.
  int64_t kept_start(int64_t q) const { return q > call.kept_before ? q - call.kept_before : 0; }
  int64_t kept_stop(int64_t q) const { return call.kept_after >= n_keys - 1 - q ? n_keys : q + call.kept_after + 1; }
  // Number of codes in the rows before q.
  int64_t codes_before(int64_t q) const {
    const int64_t cut = n_keys - 1 - call.kept_after, rising = cut < 0 ? 0 : cut < q ? cut : q;
    const int64_t stops = rising * (rising - 1) / 2 + rising * (call.kept_after + 1) + (q - rising) * n_keys;
    const int64_t last = kept_start(q > 0 ? q - 1 : 0);  // rows start at the keys 0 ... 0, 1, 2 ... last
    return stops - last * (last + 1) / 2;
  }
};

#include "statistics.h"

INLINE void add_bias(const float *bias, int64_t start, int64_t stop, float *row) {
  const float by = (float)HALF_LOG2E;
  const Floats nothing = fill(-__builtin_inff());
  int64_t k = start;
  for (; k + LANES <= stop; k += LANES) {
    const Floats b = load(bias + k);
    store(row + k, b < HIDDEN ? nothing : multiply_add(b, fill(by), load(row + k)));
  }
  for (; k < stop; ++k) row[k] = bias[k] < HIDDEN ? -__builtin_inff() : row[k] + bias[k] * by;
}

static void compute_scores(const Head &head, int64_t first, int n_rows) {
  const Call &call = head.call;
  const int64_t d = call.d_head, width = head.width;
  const double scaling = call.softcap > 0 ? call.scaling / call.softcap * 4 * HALF_LOG2E : call.scaling * HALF_LOG2E;
  const float *query = call.query + head.example * call.query_stride[0] + head.head * call.query_stride[1] +
                       first * call.query_stride[2];
  pack_queries(query, call.query_stride, n_rows, d, (float)scaling, head.scratch.queries);
  const int64_t tile_stop = head.stop(first + n_rows - 1);
  for (int64_t panel = head.start(first) / PANEL; panel * PANEL < tile_stop; ++panel)
    for (int row = 0; row < n_rows; row += GROUP) {
      const int rows = n_rows - row < GROUP ? n_rows - row : GROUP;
      const int64_t start = head.start(first + row), stop = head.stop(first + row + rows - 1);
      if (panel < start / PANEL || panel * PANEL >= stop) continue;
      const int64_t n_remaining = rounded_up(stop - panel * PANEL, LANES) / LANES;
      score_panel(rows, (int)(n_remaining < PANEL_VECTORS ? n_remaining : PANEL_VECTORS),
                  head.scratch.queries + row * d, d, head.scratch.keys + panel * PANEL * d,
                  head.scratch.scores + row * width + panel * PANEL, width);
    }
  if (call.softcap > 0) {  // here scores are 2 log2(e) s / cap, and tanh(u) = 1 - 2 / (exp(2 u) + 1)
    const float cap = (float)(call.softcap * HALF_LOG2E);
    for (int r = 0; r < n_rows; ++r) {
      float *row = head.scratch.scores + r * width;
      for (int64_t k = floor_lanes(head.start(first + r)); k < head.stop(first + r); k += LANES) {
        Floats u = load(row + k);  // NaN must stay NaN
        u = larger(fill(-60.0f), u);
        u = -larger(fill(-60.0f), -u);
        store(row + k, cap * (1.0f - 2.0f / (exp2_near(u) + 1.0f)));
      }
    }
  }
  for (int i = 0; i < 2; ++i)
    if (call.bias[i])
      for (int r = 0; r < n_rows; ++r)
        add_bias(call.bias[i] + head.example * call.bias_stride[i][0] + head.head * call.bias_stride[i][1] +
                     (first + r) * call.bias_stride[i][2],
                 head.start(first + r), head.stop(first + r), head.scratch.scores + r * width);
}

// Hides the keys outside start ... stop - 1, and returns the largest score. `lanes` receives the maximum of the scores
// with each of the 16 remainders of key / 16.
INLINE float mask_and_maximum(float *row, int64_t start, int64_t stop, float *lanes) {
  const Floats hidden = fill(-__builtin_inff());
  const int64_t first = floor_lanes(start), last = floor_lanes(stop - 1);
  if (start > first) {
    const Ints lane = lane_numbers() + (int32_t)first;
    store(row + first, lane < (int32_t)start ? hidden : load(row + first));
  }
  if (stop < last + LANES) {
    const Ints lane = lane_numbers() + (int32_t)last;
    store(row + last, lane >= (int32_t)stop ? hidden : load(row + last));
  }
  constexpr int PARTS = 16 / LANES;
  Floats top[PARTS];
  for (int part = 0; part < PARTS; ++part) top[part] = hidden;
  int64_t k = first;
  for (; k + 16 <= last + LANES; k += 16)
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; ++part) top[part] = larger(load(row + k + part * LANES), top[part]);
#pragma GCC unroll 4
  for (int part = 0; part < PARTS - 1; ++part)
    if (k <= last) {
      top[part] = larger(load(row + k), top[part]);
      k += LANES;
    }
  for (int part = 0; part < PARTS; ++part) store(lanes + part * LANES, top[part]);
  Floats all = top[0];
  for (int part = 1; part < PARTS; ++part) all = larger(all, top[part]);
  return largest(all);
}

struct Moments {
  float total;              // Z
  Floats entropy, distance;  // sums of weight * t and weight * |query - key|, by lane
};

// Replaces scores by h, or by h * h if SQUARED. Processes one row, so that only Z is summed over lanes.
template <bool MOMENTS, bool SQUARED>
INLINE Moments exponentials(float *row, int64_t query_pos, int64_t start, int64_t stop, float maximum) {
  Floats total = {}, entropy = {}, distance = {};
  const Floats top = fill(maximum);
  Floats offset = __builtin_convertvector(lane_numbers() + (int32_t)(floor_lanes(start) - query_pos), Floats);
  for (int64_t k = floor_lanes(start); k < stop; k += LANES) {
    const Floats t = larger(fill(DEEPEST), load(row + k) - top);
    const Floats h = exp2_or_zero(t), weight = h * h;
    total += weight;
    if (MOMENTS) {
      entropy = multiply_add(weight, t, entropy);
      distance = multiply_add(weight, (Floats)((Ints)offset & 0x7FFFFFFF), distance);
      offset += (float)LANES;
    }
    store(row + k, SQUARED ? weight : h);
  }
  return {sum(total), entropy, distance};
}

// Stores LANES codes of one kind from h. `by` is the row's share (ROOT: its square root), times the steps of a byte
// code.
template <int KIND>
INLINE void store_codes(void *to, Floats h, Floats by) {
  if (KIND == CODES_ROOT) store_bytes((uint8_t *)to, multiply_add(h, by, fill(0.5f)));
  if (KIND == CODES_LINEAR) store_bytes((uint8_t *)to, multiply_add(h * h, by, fill(0.5f)));
  if (KIND == CODES_FLOAT16) store_halves((uint16_t *)to, h * h * by);
  if (KIND == CODES_FLOAT32) store((float *)to, h * h * by);
}

// Replaces h by h * h, and writes the codes of the keys `from` ... `to` - 1 to `codes`. The example has `n_remaining`
// codes from there on.
template <int KIND>
INLINE void write_codes(float *row, int64_t start, int64_t stop, int64_t from, int64_t to, float factor, uint8_t *codes,
                        int64_t n_remaining) {
  constexpr int64_t SIZE = KIND == CODES_FLOAT32 ? 4 : KIND == CODES_FLOAT16 ? 2 : 1;
  const Floats by = fill(factor);
  const int64_t first = floor_lanes(start);
  if (first > from) memset(codes, 0, (size_t)((first - from) * SIZE));
  for (int64_t k = first; k < stop; k += LANES) {
    const Floats h = load(row + k);
    store(row + k, h * h);
    const int64_t offset = k - from;
    if (offset >= 0 && n_remaining - offset >= LANES) {  // may overwrite the next row, which is written later
      store_codes<KIND>(codes + offset * SIZE, h, by);
    } else {
      uint8_t last[LANES * SIZE];
      store_codes<KIND>(last, h, by);
      const int64_t skip = offset < 0 ? -offset : 0, end = to - k < LANES ? to - k : LANES;
      memcpy(codes + (offset + skip) * SIZE, last + skip * SIZE, (size_t)((end - skip) * SIZE));
    }
  }
  if (to > stop) memset(codes + (stop - from) * SIZE, 0, (size_t)((to - stop) * SIZE));
}

// Writes the codes of a tile's rows.
template <int KIND>
static void write_tile_codes(const Head &head, int64_t first, int n_rows, const float *share) {
  constexpr int64_t SIZE = KIND == CODES_FLOAT32 ? 4 : KIND == CODES_FLOAT16 ? 2 : 1;
  const Call &call = head.call;
  uint8_t *const codes =
      (uint8_t *)call.codes + (head.head * call.codes_stride + call.pair_offset[head.example]) * SIZE;
  const int64_t n_pairs = head.codes_before(head.n_queries);
  const float steps = (float)call.codes_steps;
  for (int r = 0; r < n_rows; ++r) {
    const int64_t q = first + r, offset = head.codes_before(q);
    const float by = KIND == CODES_ROOT     ? steps * __builtin_sqrtf(share[r])
                     : KIND == CODES_LINEAR ? steps * share[r]
                                            : share[r];
    write_codes<KIND>(head.scratch.scores + r * head.width, head.start(q), head.stop(q),
                      head.kept_start(q), head.kept_stop(q), by, codes + offset * SIZE, n_pairs - offset);
  }
}

static void reduce_tile(Head &head, int64_t first, int n_rows, Floats &entropy, Floats &distance) {
  const Call &call = head.call;
  const bool moments = call.statistics && (call.statistic_row[ENTROPY] >= 0 || call.statistic_row[DISTANCE] >= 0);
  const bool squared = !call.codes;
  float *const scores = head.scratch.scores;
  float maximum[TILE], share[TILE], strongest[TILE];  // strongest: the largest weight divided by the share
  alignas(64) float lanes[TILE][16];
  compute_scores(head, first, n_rows);
  for (int r = 0; r < n_rows; ++r)
    maximum[r] = mask_and_maximum(scores + r * head.width, head.start(first + r), head.stop(first + r), lanes[r]);

  const int64_t row_index = call.row_offset ? call.row_offset[head.example] + first : 0;
  for (int r = 0; r < n_rows; ++r) {
    float *const row = scores + r * head.width;
    const int64_t q = first + r, start = head.start(q), stop = head.stop(q);
    const bool few = stop - start <= FEW;
    int n_candidates = (int)(stop - start);
    if (call.edge_key && !few)
      n_candidates = find_candidates(row, start, stop, call.n_edges, lanes[r], head.scratch.candidate);
    strongest[r] = 1.0f;
    float sink_weight = 0;
    if (call.sinks) {  // t is relative to the larger of the row's largest score and the sink
      const float sink = call.sinks[head.head] * (float)HALF_LOG2E;
      const float top = maximum[r] > sink ? maximum[r] : sink;  // the sink if the row has NaN; see below
      head.valid &= maximum[r] > HIDDEN;
      sink_weight = exp2f(2 * (sink - top));
      strongest[r] = exp2f(2 * (maximum[r] - top));
      maximum[r] = top;
    }
    Moments sums = moments ? squared ? exponentials<true, true>(row, q, start, stop, maximum[r])
                                           : exponentials<true, false>(row, q, start, stop, maximum[r])
                         : squared ? exponentials<false, true>(row, q, start, stop, maximum[r])
                                   : exponentials<false, false>(row, q, start, stop, maximum[r]);
    float mass = 1.0f;  // sum of the row's weights without the sink
    if (sink_weight > 0) {
      mass = sums.total / (sums.total + sink_weight);
      sums.total += sink_weight;
    }
    share[r] = 1.0f / sums.total;
    head.valid &= share[r] > 0.0f;  // false if Z is NaN; else Z is in 1 ... number of keys
    if (moments) {
      entropy = multiply_add(sums.entropy, fill(share[r]), entropy);
      distance = multiply_add(sums.distance, fill(share[r]), distance);
    }
    if (moments || call.logsumexp) {
      const float log_total = logf(sums.total);
      head.total[ENTROPY] += log_total * mass;
      if (call.logsumexp)
        call.logsumexp[head.head * call.logsumexp_stride + row_index + r] =
            (float)(2 * LN2 * (double)maximum[r] + (double)log_total);
    }
    if (!call.edge_key) continue;
    const int32_t *const candidate = few ? nullptr : head.scratch.candidate;
    if (call.edge_key_bytes == 1)
      write_edges<uint8_t>(call, head.head, row_index + r, row, candidate, start, n_candidates, squared, share[r]);
    else if (call.edge_key_bytes == 2)
      write_edges<uint16_t>(call, head.head, row_index + r, row, candidate, start, n_candidates, squared, share[r]);
    else
      write_edges<uint32_t>(call, head.head, row_index + r, row, candidate, start, n_candidates, squared, share[r]);
  }

  if (call.codes) switch (call.codes_kind) {
      case CODES_ROOT: write_tile_codes<CODES_ROOT>(head, first, n_rows, share); break;
      case CODES_LINEAR: write_tile_codes<CODES_LINEAR>(head, first, n_rows, share); break;
      case CODES_FLOAT16: write_tile_codes<CODES_FLOAT16>(head, first, n_rows, share); break;
      default: write_tile_codes<CODES_FLOAT32>(head, first, n_rows, share);
    }

  if (call.statistics)
    for (int r = 0; r < n_rows; ++r) {
      const float *const row = scores + r * head.width;
      const int64_t q = first + r, start = head.start(q), stop = head.stop(q);
      add_statistics(head, row, q, start, stop, share[r], strongest[r]);
    }

  if (!call.output) return;
  for (int row = 0; row < n_rows; row += GROUP) {
    const int rows = n_rows - row < GROUP ? n_rows - row : GROUP;
    const int64_t start = head.start(first + row), stop = head.stop(first + row + rows - 1);
    for (int r = row; r < row + rows; ++r) {
      float *const weights = scores + r * head.width;
      const int64_t from = floor_lanes(head.start(first + r)), to = rounded_up(head.stop(first + r), LANES);
      for (int64_t k = start; k < from; ++k) weights[k] = 0;
      for (int64_t k = to; k < stop; ++k) weights[k] = 0;
    }
    output_group(rows, scores + row * head.width, head.width, start, stop, head.scratch.values, call.d_value,
                 share + row,
                 call.output + head.example * call.output_stride[0] + (first + row) * call.output_stride[1] +
                     head.head * call.output_stride[2],
                 call.output_stride[1]);
  }
}

// Reduces `n_heads` query heads from `first_head` on, which share one key and value head.
static void reduce_heads(const Call &call, int64_t example, int64_t first_head, int64_t n_heads,
                         const Scratch &scratch) {
  const int64_t n_queries = call.query_length[example], n_keys = call.key_length[example];
  const int64_t kv_head = first_head / (call.n_heads / call.n_kv_heads);
  const float *key = call.key + example * call.key_stride[0] + kv_head * call.key_stride[1];
  const float *value = call.value + example * call.value_stride[0] + kv_head * call.value_stride[1];
  int64_t n_special = 0;
  if (n_queries > 0) {
    pack_keys(key, call.key_stride, n_keys, call.d_head, scratch.keys);
    if (call.output) pack_values(value, call.value_stride, n_keys, call.d_value, scratch.values);
    if (call.special && call.statistics && call.statistic_row[SPECIAL] >= 0)
      for (int64_t k = 0; k < n_keys; ++k)
        if (call.special[example * call.special_stride + k]) scratch.special[n_special++] = (int32_t)k;
  }
  for (int64_t i = first_head; i < first_head + n_heads; ++i) {
    Head head{call, example, i, n_queries, n_keys, rounded_up(n_keys, LANES) + LANES, scratch, n_special, {}, true};
    for (int64_t first = 0; first < n_queries; first += TILE) {
      Floats entropy = {}, distance = {};
      const int64_t n_remaining = n_queries - first;
      reduce_tile(head, first, (int)(n_remaining < TILE ? n_remaining : TILE), entropy, distance);
      head.total[ENTROPY] -= 2 * LN2 * (double)sum(entropy);
      head.total[DISTANCE] += (double)sum(distance);
    }
    if (call.statistics) write_statistics(head);
    if (call.valid) call.valid[example * call.valid_stride + i] = head.valid;
    if (call.output)
      for (int64_t q = n_queries; q < call.n_queries; ++q)
        memset(call.output + example * call.output_stride[0] + q * call.output_stride[1] + i * call.output_stride[2], 0,
               (size_t)call.d_value * sizeof(float));
  }
}

// Returns the number of floats of scratch memory that a thread needs. If `memory` is set, `scratch` receives its parts.
static int64_t lay_out(const Call &call, int64_t n_keys, float *memory, Scratch *scratch) {
  const int64_t padded = rounded_up(n_keys, PANEL), width = rounded_up(n_keys, LANES) + LANES;
  const int64_t sizes[] = {padded * call.d_head,
                           call.output ? n_keys * rounded_up(call.d_value, LANES) : 0,
                           TILE * call.d_head,
                           TILE * width + PANEL,
                           call.edge_key ? width + LANES : 0,
                           call.special ? n_keys : 0};
  float *part[6];
  int64_t total = 0;
  for (int i = 0; i < 6; ++i) {
    part[i] = memory ? memory + total : nullptr;
    total += rounded_up(sizes[i], 16);
  }
  if (scratch) *scratch = {part[0], part[1], part[2], part[3], (int32_t *)part[4], (int32_t *)part[5]};
  return total;
}
