// The inner loop of similar heads: the Jensen-Shannon divergence of pairs of heads, summed over a block of cells.
// Called through ctypes like the loops of edges.cpp. Without AVX2 and FMA, numpy does the same.
//
// With m = (p + q) / 2 the divergence in bits is ½ Σ p log2 p + ½ Σ q log2 q - Σ m log2 m. All three sums come from one
// function, so equal rows have a divergence of exactly 0. The logarithm is a polynomial with an error of at most 3e-7.

#include <cstdint>
#include <cstring>

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define WITH_AVX2 1
#include <immintrin.h>
#endif

#if defined(_WIN32)
#define EXPORTED extern "C" __declspec(dllexport)
#else
#define EXPORTED extern "C" __attribute__((visibility("default")))
#endif

#ifdef WITH_AVX2
#define VECTORS __attribute__((target("avx2,fma")))

namespace {

// Returns sum + (p + q) log2 (p + q) of eight cells; adds 0 where both are 0. None may be negative, subnormal or infinite.
VECTORS inline __m256 add_x_log2_x(__m256 sum, const float *p, const float *q) {
    const __m256 x = _mm256_add_ps(_mm256_loadu_ps(p), _mm256_loadu_ps(q));
    // x = 2^e (1 + f), f between 2^-½ - 1 and 2^½ - 1
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i e = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f3504f3)), 23);
    const __m256i mantissa = _mm256_sub_epi32(bits, _mm256_slli_epi32(e, 23));
    const __m256 f = _mm256_sub_ps(_mm256_castsi256_ps(mantissa), _mm256_set1_ps(1.0f));
    // log2 (1 + f) / f: the polynomial with the smallest largest error of log2 (1 + f)
    __m256 y = _mm256_fmadd_ps(_mm256_set1_ps(0.170584410f), f, _mm256_set1_ps(-0.273204088f));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(0.297493190f));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(-0.358897111f));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(0.480435789f));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(-0.721378028f));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(1.44270062f));
    return _mm256_fmadd_ps(x, _mm256_fmadd_ps(y, f, _mm256_cvtepi32_ps(e)), sum);
}

VECTORS double sum_x_log2_x(const float *p, const float *q, int64_t n_cells) {
    __m256 sum = _mm256_setzero_ps(), odd = sum;
    int64_t cell = 0;
    for (; cell + 16 <= n_cells; cell += 16) {
        sum = add_x_log2_x(sum, p + cell, q + cell);
        odd = add_x_log2_x(odd, p + cell + 8, q + cell + 8);
    }
    float lanes[8], end[2][16] = {};
    std::memcpy(end[0], p + cell, (n_cells - cell) * sizeof(float));
    std::memcpy(end[1], q + cell, (n_cells - cell) * sizeof(float));
    sum = add_x_log2_x(sum, end[0], end[1]);
    odd = add_x_log2_x(odd, end[0] + 8, end[1] + 8);
    _mm256_storeu_ps(lanes, _mm256_add_ps(sum, odd));
    double total = 0;
    for (float lane : lanes) total += lane;
    return total;
}

}  // namespace
#endif

// Adds the divergence of each pair of heads to `result`, [head][other_head]; if `is_same`, of pairs with other_head > head
// only. `half` and `other_half`, [head][cell], are half of each weight. `entropy` is memory for n_heads + n_others
// numbers. Returns 1 if the processor has no AVX2 and FMA; nothing is added then.
EXPORTED int headatlas_add_divergence(const float *half, const float *other_half, int64_t n_heads, int64_t n_others,
                                      int64_t n_cells, int is_same, double *entropy, double *result) {
#ifdef WITH_AVX2
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
    double *other_entropy = is_same ? entropy : entropy + n_heads;
    for (int64_t i = 0; i < n_heads; ++i)
        entropy[i] = sum_x_log2_x(half + i * n_cells, half + i * n_cells, n_cells) / 2;
    for (int64_t j = 0; j < n_others && !is_same; ++j)
        other_entropy[j] = sum_x_log2_x(other_half + j * n_cells, other_half + j * n_cells, n_cells) / 2;
    for (int64_t i = 0; i < n_heads; ++i)
        for (int64_t j = is_same ? i + 1 : 0; j < n_others; ++j)
            result[i * n_others + j] += entropy[i] + other_entropy[j] -
                                        sum_x_log2_x(half + i * n_cells, other_half + j * n_cells, n_cells);
    return 0;
#else
    (void)half, (void)other_half, (void)n_heads, (void)n_others, (void)n_cells, (void)is_same, (void)entropy, (void)result;
    return 1;
#endif
}
