// The arguments of one call: the C twin of `c_structures.Call` in Python. Every pointer and stride was checked there;
// nothing is checked here. Strides count elements, never bytes. A null destination is not computed.
#pragma once
#include <cstdint>

#include "statistics.h"

namespace headatlas {

struct Call {
  int64_t call_bytes;  // sizeof(Call) as the caller knows it

  // query [example, head, query_pos, d_head], key and value [example, kv_head, key_pos, d], right padded.
  int64_t n_examples, n_heads, n_kv_heads, n_queries, n_keys, d_head, d_value;
  const float *query, *key, *value;
  int64_t query_stride[4], key_stride[4], value_stride[4];
  const int64_t *query_length, *key_length;  // [example]

  // Query q sees the keys q - before ... q + after. Its codes are those of q - kept_before ... q + kept_after, which hold
  // all that it sees: the lower triangle, a band, or every key.
  int64_t before, after, kept_before, kept_after;
  double scaling, softcap;  // softcap 0: none
  // Added to the scores after the soft cap, [example, head, query_pos, key_pos] without gaps along key_pos; a stride may be
  // 0. Below `HIDDEN` it hides the key. A sink takes a part of every row of its head and is not stored.
  const float *bias[2];
  int64_t bias_stride[2][3];
  const float *sinks;  // [head]
  // Whether queries and keys are the same tokens; if not, self, previous and next do not exist.
  int64_t same_tokens;
  const uint8_t *special;  // [example, key_pos], not zero: a special token
  int64_t special_stride;

  // Destinations of one layer: each example has its own place on the pair, row and column axes.
  const int64_t *pair_offset, *row_offset, *column;  // [example]
  float *output;  // [example, query_pos, head, d_value]
  int64_t output_stride[3];
  void *codes;  // [head, pair], of the type that `codes_kind` says
  int64_t codes_stride, codes_kind;
  double codes_steps;
  float *logsumexp;  // [head, row]
  int64_t logsumexp_stride;
  void *edge_key;         // [head, row, edge], uint8, uint16 or uint32
  uint16_t *edge_weight;  // [head, row, edge], float16
  int64_t edge_key_bytes, n_edges, edge_key_stride, edge_weight_stride;
  float *statistics;  // [statistic, head, column]
  int64_t statistics_stride[3];
  int64_t statistic_row[N_STATISTICS];  // row of each statistic in `statistics`; -1: not computed
  uint8_t *valid;  // [example, head], 1 if every row's scores were finite
  int64_t valid_stride;
};

// Type of kept vectors: the position in `VECTOR_CODECS` of c_structures.py.
enum { KEPT_FLOAT32, KEPT_FLOAT16, KEPT_BFLOAT16 };

// The C twin of `c_structures.Vectors`: queries or keys of one layer, and where they are kept.
struct Vectors {
  int64_t call_bytes;  // sizeof(Vectors) as the caller knows it
  int64_t n_examples, n_heads, d_head;
  const float *from;  // [example, head, position, d_head], d_head without gaps
  int64_t from_stride[3];
  const int64_t *length, *start;  // [example]: positions to keep, and the row of the first
  void *to;                       // [head, row, d_head], d_head without gaps
  int64_t to_stride[2];
  int64_t codec;
  int32_t *largest;  // [example], zero before: the largest absolute value, as the bits of a float
};

// What `codes` are: the position in `CODE_KINDS` of c_structures.py. Bytes count steps of the weight's square root, or
// of itself.
enum { CODES_ROOT, CODES_LINEAR, CODES_FLOAT16, CODES_FLOAT32 };

constexpr float HIDDEN = -1e37f;
constexpr int64_t MAX_EDGES = 16;

}  // namespace headatlas
