// Arguments of one call, the C twin of `c_structures.Call` in Python. Python checks every pointer and stride, C checks
// nothing. Strides count elements, never bytes. A result with a null destination is not computed.
#pragma once
#include <cstdint>

#include "statistics.h"

namespace headatlas {

struct Call {
  int64_t call_bytes;  // sizeof(Call) of the caller

  // query [example, head, query_pos, d_head], key and value [example, kv_head, key_pos, d], right-padded.
  int64_t n_examples, n_heads, n_kv_heads, n_queries, n_keys, d_head, d_value;
  const float *query, *key, *value;
  int64_t query_stride[4], key_stride[4], value_stride[4];
  const int64_t *query_length, *key_length;  // [example]

  // Query q sees the keys q - before ... q + after. Codes are stored for the keys q - kept_before ... q + kept_after,
  // which include all visible keys: the lower triangle, a band, or every key.
  int64_t before, after, kept_before, kept_after;
  double scaling, softcap;  // softcap 0: none
  // Biases are added to the scores after the soft cap, [example, head, query_pos, key_pos], contiguous along key_pos. A
  // stride may be 0. A bias below `HIDDEN` hides the key. A sink takes a share of every row of its head and is not
  // stored.
  const float *bias[2];
  int64_t bias_stride[2][3];
  const float *sinks;  // [head]
  // 1 if queries and keys are the same tokens. If not, the statistics self, previous and next are undefined.
  int64_t same_tokens;
  const uint8_t *special;  // [example, key_pos], nonzero for special tokens
  int64_t special_stride;

  // Destinations of one layer. Each example has a range of its own on the pair, row and column axes.
  const int64_t *pair_offset, *row_offset, *column;  // [example]
  float *output;  // [example, query_pos, head, d_value]
  int64_t output_stride[3];
  void *codes;  // [head, pair], of the type of `codes_kind`
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
  uint8_t *valid;  // [example, head], 1 if all scores of all rows are finite
  int64_t valid_stride;
};

// Type of stored vectors: the index in `VECTOR_CODECS` of c_structures.py.
enum { KEPT_FLOAT32, KEPT_FLOAT16, KEPT_BFLOAT16 };

// Queries or keys of one layer and their destination, the C twin of `c_structures.Vectors`.
struct Vectors {
  int64_t call_bytes;  // sizeof(Vectors) of the caller
  int64_t n_examples, n_heads, d_head;
  const float *source;  // [example, head, position, d_head], contiguous along d_head
  int64_t source_stride[3];
  const int64_t *length, *start;  // [example]: number of positions, and the row of the first one
  void *to;                       // [head, row, d_head], contiguous along d_head
  int64_t to_stride[2];
  int64_t codec;
  int32_t *largest;  // [example], initially 0: the largest absolute value as float bits
};

// Kind of codes: the index in `CODE_KINDS` of c_structures.py. ROOT and LINEAR are bytes that count steps of the
// weight's square root or of the weight.
enum { CODES_ROOT, CODES_LINEAR, CODES_FLOAT16, CODES_FLOAT32 };

constexpr float HIDDEN = -1e37f;
constexpr int64_t MAX_EDGES = 16;

}  // namespace headatlas
