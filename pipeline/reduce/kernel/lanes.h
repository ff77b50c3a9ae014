// SIMD vector operations of one instruction set. The file is included once for each instruction set, inside its
// namespace, with HEADATLAS_ISA set to 2 (AVX-512), 1 (AVX2) or 0 (the compiler's baseline). It has no include guard on
// purpose.
//
// Plain arithmetic uses the compiler's vector types. Intrinsics are used only for operations that compilers translate
// poorly: maximum, reductions, comparison to bits, float to byte.

#if HEADATLAS_ISA == 2
constexpr int LANES = 16, PANEL_VECTORS = 4;
#elif HEADATLAS_ISA == 1
constexpr int LANES = 8, PANEL_VECTORS = 2;
#else
constexpr int LANES = 4, PANEL_VECTORS = 2;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));
typedef float LooseFloats __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t LooseInts __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint8_t LooseBytes __attribute__((vector_size(LANES), aligned(1), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE Floats load(const float *from) { return *(const LooseFloats *)from; }
INLINE void store(float *to, Floats x) { *(LooseFloats *)to = x; }
INLINE Floats fill(float x) { return x - Floats{}; }
INLINE Ints fill_int(int32_t x) { return x - Ints{}; }

INLINE Ints lane_numbers() {
  Ints lanes;
  for (int i = 0; i < LANES; ++i) lanes[i] = i;
  return lanes;
}

// Maximum of each lane; the second argument if either is NaN.
INLINE Floats larger(Floats a, Floats b) {
#if HEADATLAS_ISA == 2
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif HEADATLAS_ISA == 1
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// a * b + c as an explicit fused operation. Contraction is disabled for all other code, so that results do not depend
// on the compiler's optimization of the surrounding loop.
INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
#if HEADATLAS_ISA == 2
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif HEADATLAS_ISA == 1
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

INLINE float sum(Floats x) {
#if HEADATLAS_ISA == 2
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int i = 0; i < LANES / 2; ++i) x[i] += x[i + LANES / 2];
  for (int i = 0; i < LANES / 2; ++i) total += x[i];
  return total;
#endif
}

INLINE float largest(Floats x) {
#if HEADATLAS_ISA == 2
  return _mm512_reduce_max_ps((__m512)x);
#elif HEADATLAS_ISA == 1
  __m128 half = _mm_max_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
#else
  float top = x[0];
  for (int i = 1; i < LANES; ++i) top = top > x[i] ? top : x[i];
  return top;
#endif
}

// Bit i is set if a[i] >= b[i].
INLINE uint32_t at_least(Floats a, Floats b) {
#if HEADATLAS_ISA == 2
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
#elif HEADATLAS_ISA == 1
  return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ));
#else
  uint32_t bits = 0;
  for (int i = 0; i < LANES; ++i) bits |= (uint32_t)(a[i] >= b[i]) << i;
  return bits;
#endif
}

// Appends the lanes of `values` whose bit is set. It may write up to LANES elements past the last one.
INLINE int append(int32_t *to, int n, Ints values, uint32_t bits) {
#if HEADATLAS_ISA == 2
  *(LooseInts *)(to + n) = (Ints)_mm512_maskz_compress_epi32((__mmask16)bits, (__m512i)values);
  return n + __builtin_popcount(bits);
#else
  for (; bits; bits &= bits - 1) to[n++] = values[0] + __builtin_ctz(bits);  // lanes are consecutive numbers
  return n;
#endif
}

// Stores floor(x) as bytes, for 0 <= x < 256. NaN gives an arbitrary byte.
INLINE void store_bytes(uint8_t *to, Floats x) {
#if HEADATLAS_ISA == 2
  _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(_mm512_cvttps_epi32((__m512)x)));
#elif HEADATLAS_ISA == 1
  const __m256i whole = _mm256_cvttps_epi32((__m256)x);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64((__m128i *)to, _mm_packus_epi16(words, words));
#else
  *(LooseBytes *)to = __builtin_convertvector(__builtin_convertvector(x, Ints), Bytes);
#endif
}

// Stores LANES weights as float16.
INLINE void store_halves(uint16_t *to, Floats from) {
#if HEADATLAS_ISA == 2
  _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)from, _MM_FROUND_TO_NEAREST_INT));
#elif HEADATLAS_ISA == 1
  _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)from, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < LANES; ++i) {
    const _Float16 half = (_Float16)from[i];
    __builtin_memcpy(to + i, &half, 2);
  }
#endif
}

// 2**x with a relative error below 1.2e-7, for x in [-125, 127]. Adding the magic number rounds x to an integer in the
// low bits of the sum, with the bias of a float's exponent. NaN stays NaN.
INLINE Floats exp2_near(Floats x) {
  constexpr float MAGIC = 12582912.0f + 127.0f;
  const Floats rounded = x + MAGIC;
  const Floats f = x - (rounded - MAGIC);
  const Floats power = (Floats)((Ints)rounded << 23);
  Floats polynomial = multiply_add(f, fill(0.001326472731307149f), fill(0.009671512991189957f));
  polynomial = multiply_add(f, polynomial, fill(0.05550733581185341f));
  polynomial = multiply_add(f, polynomial, fill(0.24022242426872253f));
  polynomial = multiply_add(f, polynomial, fill(0.6931470036506653f));
  return power * multiply_add(f, polynomial, fill(1.0f));
}

// 2**x for x <= 0, and 0 for x <= -63: there 4**x does not change a float32 sum of at least 1.
constexpr float DEEPEST = -63.0f;

INLINE Floats exp2_or_zero(Floats x) {
  const Floats y = exp2_near(x);
#if HEADATLAS_ISA == 2
  return (Floats)_mm512_maskz_mov_ps(_mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(DEEPEST), _CMP_NLE_UQ), (__m512)y);
#else
  return (Floats)((Ints)y & ~(Ints)(x <= DEEPEST));
#endif
}
