/* spec/quant.md in vectors: quantise-dequantise, and the codes of cache entries. Everything here is
 * exact to the bit: divisions by a scale are products with a power of two. */
#ifndef DSV4_FAST_QUANT_LANES_H
#define DSV4_FAST_QUANT_LANES_H

#include "fast/kernels.h"
#include "fast/lanes.h"

typedef uint8_t lanes_bytes __attribute__((vector_size(LANES)));
typedef uint16_t lanes_words __attribute__((vector_size(2 * LANES)));

static inline uint32_t quant_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float quant_number(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void quant_bf16(float *x, int64_t count)
{
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        lanes_store(x + i, lanes_bf16(lanes_load(x + i)));
    for (; i < count; i++)
        x[i] = lanes_bf16_one(x[i]);
}

static bool quant_finite(const float *x, int64_t count)
{
    lanes_int bad = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        bad |= ((lanes_int)lanes_load(x + i) & 0x7fffffff) >= 0x7f800000;
    if (i < count)
        bad |= ((lanes_int)lanes_load_some(x + i, count - i, 0) & 0x7fffffff) >= 0x7f800000;
    bool any = false;
    for (int j = 0; j < LANES; j++)
        any |= bad[j] != 0;
    return !any;
}

/* The largest magnitude, and at least `least`; NaN does not count. quant.act.1 */
static inline float quant_amax(const float *x, int64_t count, float least)
{
    lanes top = lanes_all(least);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        top = lanes_max(lanes_abs(lanes_load(x + i)), top);
    if (i < count)
        top = lanes_max(lanes_abs(lanes_load_some(x + i, count - i, 0)), top);
    return lanes_largest(top);
}

/* v to the nearest number of `bits` bits of precision whose smallest normal exponent is `least`:
 * 1.5 2^23 ulp, added, leaves no room for anything below one ulp. The sign of a zero stays, and
 * a NaN. numerics.round.1 */
static inline lanes quant_round(lanes v, int bits, int least)
{
    const lanes_bits lowest = (lanes_bits){0} + (uint32_t)((127 + least) << 23);
    lanes_bits sign = (lanes_bits)v & 0x80000000;
    lanes magnitude = lanes_abs(v);
    lanes_bits binade = (lanes_bits)magnitude & 0x7f800000;
    binade = (lanes_bits)lanes_select(binade > lowest, (lanes)binade, (lanes)lowest);
    lanes large = (lanes)((binade + (uint32_t)((24 - bits) << 23)) | 0x400000);
    return (lanes)((lanes_bits)((magnitude + large) - large) | sign);
}

/* The clamps of quant.e4m3.2 and quant.e2m1.2 are left out: no value below comes nearer to the
 * next number than to the largest code. */
static inline lanes quant_to_e4m3(lanes v)
{
    return quant_round(v, 4, -6);
}

static inline lanes quant_to_e2m1(lanes v)
{
    return quant_round(v, 2, 0);
}

/* x becomes the nearest code times `scale`, a power of two in 2^-126 .. 2^126, or NaN where amax
 * was infinite (quant.act.2). Where amax is next to the end of binary32 the code times scale may
 * be 2^128. */
static inline void quant_block(float *x, int64_t count, float limit, float amax_part)
{
    uint32_t exponent = (quant_bits(amax_part) + 0x7fffff) >> 23; /* upwards, to a power of two */
    float scale = quant_number(exponent >= 255 ? 0x7fc00000 : exponent << 23);
    float inverse = quant_number(exponent >= 255 ? 0x7fc00000 : (254 - exponent) << 23);
    int64_t i = 0;
    for (; i < count; i += LANES) {
        bool whole = i + LANES <= count;
        lanes v = (whole ? lanes_load(x + i) : lanes_load_some(x + i, count - i, 0)) * inverse;
        v = (limit == 448 ? quant_to_e4m3(v) : quant_to_e2m1(v)) * scale;
        if (whole)
            lanes_store(x + i, v);
        else
            lanes_store_some(x + i, count - i, v);
    }
}

/* quant.act.1 to 3 */
static void quant_act_quant(float *x, int64_t count, int64_t block)
{
    for (int64_t first = 0; first < count; first += block)
        quant_block(x + first, block, 448, quant_amax(x + first, block, 1e-4f) * (1.0f / 448.0f));
}

/* quant.index.1 and 2; a code times its scale is a bf16 number as it is. */
static void quant_qdq_index(float *x, int64_t count)
{
    for (int64_t first = 0; first < count; first += 32)
        quant_block(x + first, 32, 6, quant_amax(x + first, 32, 6 * 0x1p-126f) * (1.0f / 6.0f));
}

/* ---- cache entries as codes ----
 *
 * The scale that made the values is forgotten; any power of two serves by which all of them are
 * codes again. Let S be the forgotten one, L the largest code (448, or 6) and M the largest
 * magnitude of the block. Taken is the smallest power of two s with M <= L s, but no less than
 * 2^-126; as M <= L S, and S is no less either (quant.index.1), s <= S. Every value is a
 * multiple of g S, g being the smallest positive code (2^-9, or 1/2), so of g s; it has no more
 * bits than a code; and it is at most L s. Such a number is a code times s. Only the sign of a
 * zero may be lost. */

/* The E8M0 byte of that scale: L is (1 + part 2^-23) 2^exponent. */
static inline uint32_t quant_entry_scale(float amax, uint32_t part, int exponent)
{
    if (amax == 0)
        return 127; /* any: one that other kernels take for usual */
    int byte = (int)((quant_bits(amax) + (0x7fffff - part)) >> 23) - exponent;
    return byte < 1 ? 1 : (uint32_t)byte;
}

static inline float quant_scale_value(uint32_t byte)
{
    return quant_number(byte << 23);
}

/* 1 / scale; the largest that entries have is 2^126. */
static inline float quant_scale_inverse(uint32_t byte)
{
    return quant_number((254 - byte) << 23);
}

/* A magnitude that is a code of exponent 0 and up stands in the bits of a binary32 number
 * already, but for the bias of its exponent; one below is a small multiple of the smallest.
 * quant.e4m3.1 */
static inline lanes_int quant_e4m3_codes(lanes v)
{
    lanes magnitude = lanes_abs(v);
    lanes_int normal = ((lanes_int)magnitude >> 20) - (120 << 3);
    lanes_int low = __builtin_convertvector(magnitude * 0x1p9f, lanes_int);
    lanes_int code = (lanes_int)lanes_select(magnitude < 0x1p-6f, (lanes)low, (lanes)normal);
    return code | ((lanes_int)v >> 24 & 0x80);
}

static inline lanes quant_e4m3_values(lanes_int code)
{
    lanes_int magnitude = (code & 0x7f) << 20;
    lanes normal = (lanes)(magnitude + (120 << 23));
    lanes low = (lanes)(magnitude + (121 << 23)) - 0x1p-6f;
    lanes v = lanes_select(magnitude < 0x800000, low, normal);
    return (lanes)((lanes_bits)v | ((lanes_bits)code & 0x80) << 24);
}

/* quant.e2m1.1 */
static inline lanes_int quant_e2m1_codes(lanes v)
{
    lanes magnitude = lanes_abs(v);
    lanes_int normal = ((lanes_int)magnitude >> 22) - (126 << 1);
    lanes_int low = __builtin_convertvector(magnitude * 2, lanes_int);
    lanes_int code = (lanes_int)lanes_select(magnitude < 1, (lanes)low, (lanes)normal);
    return code | ((lanes_int)v >> 28 & 8);
}

static inline lanes quant_e2m1_values(lanes_int code)
{
    lanes_int magnitude = (code & 7) << 22;
    lanes normal = (lanes)(magnitude + (126 << 23));
    lanes low = (lanes)(magnitude + (127 << 23)) - 1; /* 0, or 1/2 */
    lanes v = lanes_select(magnitude < 0x800000, low, normal);
    return (lanes)((lanes_bits)v | ((lanes_bits)code & 8) << 28);
}

static void quant_pack_kv(const float *x, int64_t values, int64_t R, uint8_t *codes,
                          uint8_t *scales, uint16_t *rope)
{
    for (int64_t first = 0; first < values; first += 64) {
        uint32_t byte = quant_entry_scale(quant_amax(x + first, 64, 0), 0x600000, 8);
        float inverse = quant_scale_inverse(byte);
        for (int64_t i = first; i < first + 64; i += LANES) {
            lanes_int code = quant_e4m3_codes(quant_to_e4m3(lanes_load(x + i) * inverse));
            lanes_bytes narrow = __builtin_convertvector(code, lanes_bytes);
            memcpy(codes + i, &narrow, sizeof narrow);
        }
        scales[first / 64] = (uint8_t)byte;
    }
    for (int64_t i = 0; i < R; i++)
        rope[i] = (uint16_t)(quant_bits(lanes_bf16_one(x[values + i])) >> 16);
}

static void quant_unpack_kv(const uint8_t *codes, const uint8_t *scales, const uint16_t *rope,
                            int64_t values, int64_t R, float *x)
{
    for (int64_t first = 0; first < values; first += 64) {
        float scale = quant_scale_value(scales[first / 64]);
        for (int64_t i = first; i < first + 64; i += LANES) {
            lanes_bytes narrow;
            memcpy(&narrow, codes + i, sizeof narrow);
            lanes_int code = __builtin_convertvector(narrow, lanes_int);
            lanes_store(x + i, quant_e4m3_values(code) * scale);
        }
    }
    int64_t i = 0;
    for (; i + LANES <= R; i += LANES) {
        lanes_words narrow;
        memcpy(&narrow, rope + i, sizeof narrow);
        lanes_bits wide = __builtin_convertvector(narrow, lanes_bits) << 16;
        lanes_store(x + values + i, (lanes)wide);
    }
    for (; i < R; i++)
        x[values + i] = quant_number((uint32_t)rope[i] << 16);
}

static void quant_pack_index(const float *x, int64_t count, uint8_t *codes, uint8_t *scales)
{
    for (int64_t first = 0; first < count; first += 32) {
        uint32_t byte = quant_entry_scale(quant_amax(x + first, 32, 0), 0x400000, 2);
        float inverse = quant_scale_inverse(byte);
        uint8_t code[32];
        for (int64_t i = 0; i < 32; i += LANES) {
            lanes_int wide =
                quant_e2m1_codes(quant_to_e2m1(lanes_load(x + first + i) * inverse));
            lanes_bytes narrow = __builtin_convertvector(wide, lanes_bytes);
            memcpy(code + i, &narrow, sizeof narrow);
        }
        for (int i = 0; i < 16; i++)
            codes[first / 2 + i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
        scales[first / 32] = (uint8_t)byte;
    }
}

/* LANES values from LANES / 2 bytes. */
static inline lanes quant_e2m1_pairs(const uint8_t *bytes)
{
#if LANES == 16
    const __m512 value = _mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3,
                                        -4, -6);
    const __m512i shift = _mm512_set1_epi64(4LL << 32);
    __m128i pair = _mm_loadl_epi64((const __m128i *)bytes);
    __m512i code = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(pair, pair));
    /* of the place in the table only the low four bits count */
    return (lanes)_mm512_permutexvar_ps(_mm512_srlv_epi32(code, shift), value);
#else
    uint8_t all[LANES];
    for (int i = 0; i < LANES / 2; i++) {
        all[2 * i] = bytes[i] & 15;
        all[2 * i + 1] = bytes[i] >> 4;
    }
    lanes_bytes narrow;
    memcpy(&narrow, all, sizeof narrow);
    return quant_e2m1_values(__builtin_convertvector(narrow, lanes_int));
#endif
}

static void quant_unpack_index(const uint8_t *codes, const uint8_t *scales, int64_t count,
                               float *x)
{
    for (int64_t first = 0; first < count; first += 32) {
        float scale = quant_scale_value(scales[first / 32]);
        for (int64_t i = first; i < first + 32; i += LANES)
            lanes_store(x + i, quant_e2m1_pairs(codes + i / 2) * scale);
    }
}

const fast_quant_kernels LEVEL_NAME(fast_quant) = {
    .bf16 = quant_bf16, .finite = quant_finite, .act_quant = quant_act_quant,
    .qdq_index = quant_qdq_index, .pack_kv = quant_pack_kv, .unpack_kv = quant_unpack_kv,
    .pack_index = quant_pack_index, .unpack_index = quant_unpack_index};

#endif
