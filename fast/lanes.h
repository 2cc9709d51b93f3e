/* Vectors of LANES binary32 numbers, for kernels that are written once and compiled for every
 * instruction set (fast/STEM_lanes.h). The file that includes this is compiled with the flags of
 * its level; everything is static, so that no function of one level is ever called on behalf of
 * another. */
#ifndef DSV4_FAST_LANES_H
#define DSV4_FAST_LANES_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* FAST_AVX2 or FAST_AVX512 comes with the flags of the level, and not from what they are: who
 * asks the compiler for more (-march=native) gets it, in vectors that the level has. */
#if defined FAST_AVX512
#include <immintrin.h>
#define LANES 16
#define LEVEL avx512
#elif defined FAST_AVX2
#include <immintrin.h>
#define LANES 8
#define LEVEL avx2
#else
#define LANES 4
#define LEVEL portable
#endif

/* fast_mhc_avx2 of LEVEL_NAME(fast_mhc) */
#define LANES_JOIN2(a, b) a##_##b
#define LANES_JOIN(a, b) LANES_JOIN2(a, b)
#define LEVEL_NAME(stem) LANES_JOIN(stem, LEVEL)

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t lanes_int __attribute__((vector_size(4 * LANES)));
typedef uint32_t lanes_bits __attribute__((vector_size(4 * LANES)));
typedef uint8_t lanes_codes __attribute__((vector_size(4 * LANES)));

static inline lanes lanes_load(const float *p)
{
    lanes v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void lanes_store(float *p, lanes v)
{
    memcpy(p, &v, sizeof v);
}

/* The first `count` < LANES values; the others are `rest`. */
static inline lanes lanes_load_some(const float *p, int64_t count, float rest)
{
    float all[LANES];
    for (int i = 0; i < LANES; i++)
        all[i] = i < count ? p[i] : rest;
    return lanes_load(all);
}

static inline void lanes_store_some(float *p, int64_t count, lanes v)
{
    memcpy(p, &v, (size_t)count * sizeof *p);
}

static inline lanes lanes_all(float x)
{
    return x - (lanes){0}; /* minus: a negative zero stays one */
}

/* a b + c; rounded once where the instruction set can. */
static inline lanes lanes_fma(lanes a, lanes b, lanes c)
{
#if LANES == 16
    return (lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8
    return (lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* Where `mask` (all bits of a lane, or none) is set, a; else b. */
static inline lanes lanes_select(lanes_int mask, lanes a, lanes b)
{
    return (lanes)(((lanes_int)a & mask) | ((lanes_int)b & ~mask));
}

/* The larger one; b where one is NaN. */
static inline lanes lanes_max(lanes a, lanes b)
{
    return lanes_select(a > b, a, b);
}

static inline lanes lanes_abs(lanes a)
{
    return (lanes)((lanes_int)a & 0x7fffffff);
}

/* The sum of all lanes, halves first: ((0 + 8) + (4 + 12)) + .. */
static inline float lanes_sum(lanes v)
{
    float all[LANES];
    lanes_store(all, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            all[i] += all[i + half];
    return all[0];
}

static inline float lanes_largest(lanes v)
{
    float all[LANES], top;
    lanes_store(all, v);
    top = all[0];
    for (int i = 1; i < LANES; i++)
        top = all[i] > top ? all[i] : top;
    return top;
}

/* Lanes in another order: lane i of the swaps is lane i ^ 1, 2, 4, 8 of v; lanes_even() has lane
 * i & ~1. */
#if LANES == 16
#define LANES_ORDER(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), \
                       f(12), f(13), f(14), f(15)
#elif LANES == 8
#define LANES_ORDER(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)
#else
#define LANES_ORDER(f) f(0), f(1), f(2), f(3)
#endif
#define LANES_SWAP1(i) ((i) ^ 1)
#define LANES_SWAP2(i) ((i) ^ 2)
#define LANES_SWAP4(i) ((i) ^ 4)
#define LANES_SWAP8(i) ((i) ^ 8)
#define LANES_EVEN(i) ((i) & ~1)
#define LANES_ODD(i) ((i) | 1)
#define LANES_SHUFFLE(v, f) __builtin_shufflevector(v, v, LANES_ORDER(f))

static inline lanes lanes_swap1(lanes v)
{
    return LANES_SHUFFLE(v, LANES_SWAP1);
}

static inline lanes lanes_swap2(lanes v)
{
    return LANES_SHUFFLE(v, LANES_SWAP2);
}

#if LANES >= 8
static inline lanes lanes_swap4(lanes v)
{
    return LANES_SHUFFLE(v, LANES_SWAP4);
}
#endif

#if LANES >= 16
static inline lanes lanes_swap8(lanes v)
{
    return LANES_SHUFFLE(v, LANES_SWAP8);
}
#endif

static inline lanes lanes_even(lanes v)
{
    return LANES_SHUFFLE(v, LANES_EVEN);
}

static inline lanes lanes_odd(lanes v)
{
    return LANES_SHUFFLE(v, LANES_ODD);
}

/* The sum of all squares, in four sums. */
static inline float lanes_squares(const float *x, int64_t count)
{
    lanes sum[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int j = 0; j < 4; j++) {
            lanes v = lanes_load(x + i + j * LANES);
            sum[j] = lanes_fma(v, v, sum[j]);
        }
    for (int j = 0; i < count; i += LANES, j++) {
        lanes v = i + LANES <= count ? lanes_load(x + i) : lanes_load_some(x + i, count - i, 0);
        sum[j] = lanes_fma(v, v, sum[j]);
    }
    return lanes_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* Rounded to bf16, ties to even. NaN stays NaN. numerics.bf16.1 */
static inline lanes lanes_bf16(lanes v)
{
    lanes_bits bits = (lanes_bits)v;
    bits += 0x7fff + (bits >> 16 & 1);
    bits &= 0xffff0000;
    return lanes_select(v == v, (lanes)bits, v);
}

/* The same for one number. */
static inline float lanes_bf16_one(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    float y;
    memcpy(&y, &bits, sizeof y);
    return x == x ? y : x;
}

/* v within [low, high]; a NaN goes on. */
static inline lanes lanes_clamp(lanes v, float low, float high)
{
#if LANES == 16
    v = (lanes)_mm512_min_ps((__m512)lanes_all(high), (__m512)v);
    return (lanes)_mm512_max_ps((__m512)lanes_all(low), (__m512)v);
#else
    v = lanes_select(v > high, lanes_all(high), v);
    return lanes_select(v < low, lanes_all(low), v);
#endif
}

/* v 2^n, n being integers in [-151, 129] as shifted leaves them: see below. Two factors neither overflow
 * nor vanish on their own. */
static inline lanes lanes_scale(lanes v, lanes n, lanes shifted)
{
#if LANES == 16
    (void)shifted;
    return (lanes)_mm512_scalef_ps((__m512)v, (__m512)n);
#else
    (void)n;
    lanes_int e = (lanes_int)shifted - 0x4b400000, half = e >> 1;
    lanes low = (lanes)((half + 127) << 23), high = (lanes)((e - half + 127) << 23);
    return v * low * high;
#endif
}

/* e^v to about one unit in the last place; 0 far below, infinity far above, NaN of NaN. */
static inline lanes lanes_exp(lanes v)
{
    const float shift = 0x1.8p23f; /* added, it leaves an integer, in the low bits */
    lanes x = lanes_clamp(v, -104.0f, 89.0f);
    lanes shifted = lanes_fma(x, lanes_all(0x1.715476p+0f), lanes_all(shift));
    lanes n = shifted - shift;
    lanes r = lanes_fma(n, lanes_all(-0x1.62e400p-1f), x); /* exact: the constant is short */
    r = lanes_fma(n, lanes_all(-0x1.7f7d1cp-20f), r);
    /* The series of e^r - 1, |r| < 0.35: its rest is below 2^-27. */
    lanes p = lanes_all(1 / 5040.0f);
    p = lanes_fma(p, r, lanes_all(1 / 720.0f));
    p = lanes_fma(p, r, lanes_all(1 / 120.0f));
    p = lanes_fma(p, r, lanes_all(1 / 24.0f));
    p = lanes_fma(p, r, lanes_all(1 / 6.0f));
    p = lanes_fma(p, r, lanes_all(0.5f));
    p = lanes_fma(p * r, r, r);
    return lanes_select(v == v, lanes_scale(p + 1, n, shifted), v);
}

#endif
