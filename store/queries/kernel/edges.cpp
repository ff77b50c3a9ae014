// The inner loops of a search: for every head of a layer, the mass of selected rows on keys whose bit is set, from
// stored edges or from stored codes of attention. One call processes one block of rows. The functions are plain C and
// are called through ctypes. They use neither Python nor threads.
//
// The bits of a row are whole words of 64 bits, so a row of at most 64 keys is one word, and two vector shifts look up
// eight edges. Weights (IEEE half) are converted exactly and added in double, example by example, in the order of the
// rows. The plain loop and the AVX2 loop differ only in the order of at most eight terms.

#include <algorithm>
#include <cstdint>
#include <cstring>

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define WITH_AVX2 1
#include <immintrin.h>
#endif

extern "C" {

struct Row {
    int32_t row;        // index in the arrays of edges
    int32_t first_word;  // first word of its bits
    int32_t n_keys;
    int32_t n_matches;  // number of set bits
    int32_t example;    // index of its sum; the rows of one example are consecutive
};

struct EdgeScan {
    const void *key;          // [head][row][k], uint8, uint16 or uint32
    const uint16_t *weight;   // [head][row][k], half precision
    int64_t key_bytes, k, n_heads;
    int64_t key_stride, weight_stride;  // stride between heads, in items
    const Row *rows;
    int64_t n_rows;
    const uint64_t *bits;
    double *mass;         // [head][example], added to
    int64_t mass_stride;
    int64_t *hits;        // [head], added to
    double *slack;        // [head], added to
};

struct CodeScan {
    const uint8_t *codes;  // [head][pair]
    int64_t code_stride, n_heads;
    const int64_t *pair;   // index of each match in the codes of a head; matches are in the order of rows
    const double *weight;  // weight of each of the 256 codes
    const Row *rows;
    int64_t n_rows;
    double *mass;  // [head][example], added to
    int64_t mass_stride;
    const void *strongest;  // strongest key of each row of each head, uint8, uint16 or uint32
    int64_t key_bytes, head_stride, row_stride;  // in items
    const uint64_t *bits;
    int64_t *hits;  // [head], added to
};

}  // extern "C"

namespace {

float widened(uint16_t half) {
    // 2^112 converts the exponent from half to single precision; exact, including subnormal numbers
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float value;
    if ((half & 0x7c00) == 0) {
        value = (float)(half & 0x3ff) * 5.9604644775390625e-08f;
    } else {
        bits += (uint32_t)(127 - 15) << ((half & 0x7c00) == 0x7c00 ? 24 : 23);  // infinity and NaN stay what they are
        std::memcpy(&value, &bits, 4);
    }
    return half & 0x8000 ? -value : value;
}

// Selected rows may be far apart in memory, so the data of a later row are prefetched.
template <class Key>
inline void prefetch(const EdgeScan &scan, int64_t r, const Key *keys, const uint16_t *weights) {
#ifdef __GNUC__
    if (r + 16 >= scan.n_rows) return;
    const int64_t offset = (int64_t)scan.rows[r + 16].row * scan.k;
    __builtin_prefetch(keys + offset);
    __builtin_prefetch(weights + offset);
#else
    (void)scan, (void)r, (void)keys, (void)weights;
#endif
}

// Upper bound of the mass on matches without an edge: each at most the weakest edge, together the rest of the row.
double missing(const uint16_t *weight, int64_t k, int n_without_edge) {
    double sum = 0;
    for (int64_t j = 0; j < k; ++j) sum += widened(weight[j]);
    return std::min((double)n_without_edge * widened(weight[k - 1]), std::max(0.0, 1.0 - sum));
}

template <class Key>
bool plain(const EdgeScan &scan, int64_t head) {
    const Key filling = (Key)~(Key)0;
    const Key *keys = (const Key *)scan.key + head * scan.key_stride;
    const uint16_t *weights = scan.weight + head * scan.weight_stride;
    double *mass = scan.mass + head * scan.mass_stride;
    int64_t hits = 0;
    double slack = 0;
    bool sound = true;
    for (int64_t r = 0; r < scan.n_rows; ++r) {
        const Row &row = scan.rows[r];
        prefetch(scan, r, keys, weights);
        const Key *key = keys + (int64_t)row.row * scan.k;
        const uint16_t *weight = weights + (int64_t)row.row * scan.k;
        const uint64_t *bits = scan.bits + row.first_word;
        int n_matched = 0;
        double sum = 0;
        for (int64_t j = 0; j < scan.k; ++j) {
            const uint32_t key_pos = key[j];
            if (key_pos < (uint32_t)row.n_keys) {
                if (bits[key_pos >> 6] >> (key_pos & 63) & 1) {
                    sum += widened(weight[j]);
                    ++n_matched;
                    hits += j == 0;
                }
            } else {
                sound &= key[j] == filling && j > 0;
            }
        }
        mass[row.example] += sum;
        if (n_matched < row.n_matches) slack += missing(weight, scan.k, row.n_matches - n_matched);
    }
    scan.hits[head] += hits;
    scan.slack[head] += slack;
    return sound;
}

#ifdef WITH_AVX2

template <class Key>
__attribute__((target("avx2"))) inline __m256i eight_keys(const Key *key);
template <>
__attribute__((target("avx2"))) inline __m256i eight_keys(const uint8_t *key) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)key));
}
template <>
__attribute__((target("avx2"))) inline __m256i eight_keys(const uint16_t *key) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)key));
}
template <>
__attribute__((target("avx2"))) inline __m256i eight_keys(const uint32_t *key) {
    return _mm256_loadu_si256((const __m256i *)key);
}

__attribute__((target("avx2"))) inline double total(__m256d a) {
    __m128d half = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
}

// Requires k to be a multiple of 8.
template <class Key>
__attribute__((target("avx2,f16c"))) bool avx2(const EdgeScan &scan, int64_t head) {
    const __m256i filling = _mm256_set1_epi32((int)(Key)~(Key)0), one = _mm256_set1_epi32(1);
    const Key *keys = (const Key *)scan.key + head * scan.key_stride;
    const uint16_t *weights = scan.weight + head * scan.weight_stride;
    double *mass = scan.mass + head * scan.mass_stride;
    int64_t hits = 0;
    double slack = 0;
    __m256i unsound = _mm256_setzero_si256();
    __m256d low = _mm256_setzero_pd(), high = low;
    for (int64_t r = 0; r < scan.n_rows; ++r) {
        const Row &row = scan.rows[r];
        prefetch(scan, r, keys, weights);
        const Key *key = keys + (int64_t)row.row * scan.k;
        const uint16_t *weight = weights + (int64_t)row.row * scan.k;
        const uint64_t *bits = scan.bits + row.first_word;
        const __m256i last_key = _mm256_set1_epi32(row.n_keys - 1);
        __m256d sum = _mm256_setzero_pd();
        int n_matched = 0;
        for (int64_t j = 0; j < scan.k; j += 8) {
            const __m256i position = eight_keys(key + j);
            const __m256i inside = _mm256_cmpeq_epi32(_mm256_min_epu32(position, last_key), position);
            unsound = _mm256_or_si256(
                unsound, _mm256_andnot_si256(_mm256_or_si256(inside, _mm256_cmpeq_epi32(position, filling)), one));
            __m256i bit;
            if (row.n_keys <= 64) {  // a shift by 32 or more gives 0
                const __m256i first = _mm256_set1_epi32((int)bits[0]), second = _mm256_set1_epi32((int)(bits[0] >> 32));
                bit = _mm256_or_si256(_mm256_srlv_epi32(first, position),
                                      _mm256_srlv_epi32(second, _mm256_sub_epi32(position, _mm256_set1_epi32(32))));
            } else {
                const __m256i word = _mm256_and_si256(_mm256_srli_epi32(position, 5), inside);
                bit = _mm256_srlv_epi32(_mm256_i32gather_epi32((const int *)bits, word, 4),
                                        _mm256_and_si256(position, _mm256_set1_epi32(31)));
            }
            const __m256i match =
                _mm256_and_si256(inside, _mm256_cmpeq_epi32(_mm256_and_si256(bit, one), one));
            const int match_mask = _mm256_movemask_ps(_mm256_castsi256_ps(match));
            if (j == 0) {
                hits += match_mask & 1;
                if (!(_mm256_movemask_ps(_mm256_castsi256_ps(inside)) & 1)) unsound = one;
            }
            n_matched += __builtin_popcount((unsigned)match_mask);
            const __m256 all = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(weight + j)));
            const __m256 weight8 = _mm256_and_ps(all, _mm256_castsi256_ps(match));
            sum = _mm256_add_pd(sum, _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(all)),
                                                   _mm256_cvtps_pd(_mm256_extractf128_ps(all, 1))));
            low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(weight8)));
            high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(weight8, 1)));
        }
        // no branch, because half of the rows would take it; a row whose matches all have an edge adds 0
        slack += std::min(std::max(0, row.n_matches - n_matched) * (double)_cvtsh_ss(weight[scan.k - 1]),
                          std::max(0.0, 1.0 - total(sum)));
        if (r + 1 == scan.n_rows || scan.rows[r + 1].example != row.example) {
            mass[row.example] += total(_mm256_add_pd(low, high));
            low = high = _mm256_setzero_pd();
        }
    }
    scan.hits[head] += hits;
    scan.slack[head] += slack;
    return _mm256_testz_si256(unsound, unsound);
}

#endif

bool has_avx2() {
#ifdef WITH_AVX2
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
#else
    return false;
#endif
}

template <class Key>
bool all_heads(const EdgeScan &scan, bool vectors) {
    bool sound = true;
    for (int64_t head = 0; head < scan.n_heads; ++head) {
#ifdef WITH_AVX2
        if (vectors) {
            sound &= avx2<Key>(scan, head);
            continue;
        }
#endif
        sound &= plain<Key>(scan, head);
    }
    return sound;
}

void add_codes(const CodeScan &scan, int64_t head) {
    const uint8_t *codes = scan.codes + head * scan.code_stride;
    double *mass = scan.mass + head * scan.mass_stride;
    const int64_t *pair = scan.pair;
    for (int64_t r = 0; r < scan.n_rows; ++r) {
        const Row &row = scan.rows[r];
        double sum = 0;
        for (const int64_t *end = pair + row.n_matches; pair < end; ++pair) sum += scan.weight[codes[*pair]];
        mass[row.example] += sum;
    }
}

template <class Key>
bool add_hits(const CodeScan &scan, int64_t head) {
    const Key *keys = (const Key *)scan.strongest + head * scan.head_stride;
    int64_t hits = 0;
    bool sound = true;
    for (int64_t r = 0; r < scan.n_rows; ++r) {
        const Row &row = scan.rows[r];
        const uint32_t key_pos = keys[row.row * scan.row_stride];
        if (key_pos < (uint32_t)row.n_keys) {
            hits += scan.bits[row.first_word + (key_pos >> 6)] >> (key_pos & 63) & 1;
        } else {
            sound = false;
        }
    }
    scan.hits[head] += hits;
    return sound;
}

}  // namespace

#if defined(_WIN32)
#define EXPORTED extern "C" __declspec(dllexport)
#else
#define EXPORTED extern "C" __attribute__((visibility("default")))
#endif

EXPORTED int64_t headatlas_edge_scan_bytes() { return sizeof(EdgeScan) + sizeof(CodeScan); }

// The version increases when the meaning of a call changes. Python does not use a library of another version.
EXPORTED int64_t headatlas_edge_scan_version() { return 4; }

EXPORTED int headatlas_has_avx2() { return has_avx2(); }

// Returns 0, or 1 if an edge names a key outside its row.
EXPORTED int headatlas_scan_edges(const EdgeScan *scan, int plain_only) {
    const bool vectors = !plain_only && scan->k % 8 == 0 && has_avx2();
    switch (scan->key_bytes) {
        case 1: return !all_heads<uint8_t>(*scan, vectors);
        case 2: return !all_heads<uint16_t>(*scan, vectors);
        default: return !all_heads<uint32_t>(*scan, vectors);
    }
}

// The same for codes.
EXPORTED int headatlas_scan_codes(const CodeScan *scan) {
    bool sound = true;
    for (int64_t head = 0; head < scan->n_heads; ++head) {
        add_codes(*scan, head);
        switch (scan->key_bytes) {
            case 1: sound &= add_hits<uint8_t>(*scan, head); break;
            case 2: sound &= add_hits<uint16_t>(*scan, head); break;
            default: sound &= add_hits<uint32_t>(*scan, head);
        }
    }
    return !sound;
}
