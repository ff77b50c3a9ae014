// The statistics of the kernel: their names, which rows count, and what a row of weights adds to each.
//
// The order is that of `STATISTIC_NAMES` in store/schema/capture_statistics.py: the loader compares the two. Included first
// for the list, then once for each instruction set, inside its namespace, for `add_statistics`.
#ifndef HEADATLAS_STATISTICS
#include <cstdint>

// Each is: constant, name, whether it needs queries and keys of one text, rows of an example that do not count.
#define HEADATLAS_STATISTICS(EACH)   \
  EACH(ENTROPY, "entropy", false, 0)   \
  EACH(DISTANCE, "distance", false, 0) \
  EACH(MAXIMUM, "maximum", false, 0)   \
  EACH(SELF, "self", true, 0)          \
  EACH(PREVIOUS, "previous", true, 1)  \
  EACH(NEXT, "next", true, 1)          \
  EACH(FIRST, "first", false, 0)       \
  EACH(SPECIAL, "special", false, 0)

namespace headatlas {

#define CONSTANT(constant, name, one_text, n_rows) constant,
enum Statistic { HEADATLAS_STATISTICS(CONSTANT) N_STATISTICS };
#undef CONSTANT

#define NAME(constant, name, one_text, n_rows) name " "
constexpr char STATISTIC_NAMES[] = HEADATLAS_STATISTICS(NAME);
#undef NAME

#define ONE_TEXT(constant, name, one_text, n_rows) one_text,
constexpr bool NEEDS_ONE_TEXT[N_STATISTICS] = {HEADATLAS_STATISTICS(ONE_TEXT)};
#undef ONE_TEXT

#define LEFT_OUT(constant, name, one_text, n_rows) n_rows,
constexpr int64_t ROWS_LEFT_OUT[N_STATISTICS] = {HEADATLAS_STATISTICS(LEFT_OUT)};
#undef LEFT_OUT

}  // namespace headatlas

#else

// Adds one row to the sums of its head. `row` holds weights times 1 / `share`, of the keys `start` ... `stop` - 1;
// `largest` is the largest of these numbers. Entropy and distance are summed where the exponentials are computed.
INLINE void add_statistics(Head &head, const float *row, int64_t q, int64_t start, int64_t stop, double share,
                           float largest) {
  head.total[MAXIMUM] += share * largest;
  if (start == 0) head.total[FIRST] += row[0] * share;
  if (head.call.same_tokens) {
    head.total[SELF] += row[q] * share;
    if (q > start) head.total[PREVIOUS] += row[q - 1] * share;
    if (q + 1 < stop) head.total[NEXT] += row[q + 1] * share;
  }
  float special = 0;
  for (int64_t i = 0; i < head.n_special && head.scratch.special[i] < stop; ++i)
    if (head.scratch.special[i] >= start) special += row[head.scratch.special[i]];
  head.total[SPECIAL] += special * share;
}

static void write_statistics(const Head &head) {
  const Call &call = head.call;
  for (int i = 0; i < N_STATISTICS; ++i) {
    if (call.statistic_row[i] < 0) continue;
    const int64_t n_rows = head.n_queries - ROWS_LEFT_OUT[i];
    const bool is_defined = n_rows > 0 && (call.same_tokens || !NEEDS_ONE_TEXT[i]);
    call.statistics[call.statistic_row[i] * call.statistics_stride[0] + head.head * call.statistics_stride[1] +
                    call.column[head.example] * call.statistics_stride[2]] =
        is_defined ? (float)(head.total[i] / (double)n_rows) : (float)__builtin_nan("");
  }
}

#endif
