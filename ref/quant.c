/* spec/quant.md: the number formats of stored weights, and the quantisation of activations. */
#include "ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double ref_decode_e2m1(int code)
{
    /* quant.e2m1.1: An E2M1 code has a sign in bit 3; its other three bits 0..7 stand for the
     * magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6. */
    static const double value[16] = {0,  0.5,  1,  1.5,  2,  3,  4,  6,
                                     -0., -0.5, -1, -1.5, -2, -3, -4, -6};
    return value[code];
}

double ref_decode_e4m3(int code)
{
    static const double sign[2] = {1, -1};
    int e = code >> 3 & 15, m = code & 7;
    /* quant.e4m3.1: An E4M3 code has a sign in bit 7, exponent e in bits 6..3, mantissa m in bits
     * 2..0. It is NaN where e = 15 and m = 7; otherwise m 2^-9 where e = 0, and (8 + m) 2^(e - 10)
     * elsewhere. It has no infinity. */
    if (e == 15 && m == 7)
        return NAN;
    double magnitude = e == 0 ? m * 0x1p-9 : ((8 + m) << e) * 0x1p-10;
    return sign[code >> 7] * magnitude;
}

double ref_decode_e8m0(int code)
{
    /* quant.e8m0.1: An E8M0 byte e is the scale 2^(e - 127); 255 is NaN. */
    return code == 255 ? NAN : ldexp(1, code - 127);
}

static double clamp(double x, double limit)
{
    return x > limit ? limit : x < -limit ? -limit : x;
}

double ref_encode_e4m3(double x)
{
    /* quant.e4m3.2: The nearest E4M3 value clamps to [-448, 448] and rounds with p = 4, q = -6
     * (numerics.round.1). */
    return ref_round_to(clamp(x, 448), 4, -6);
}

double ref_encode_e2m1(double x)
{
    /* quant.e2m1.2: The nearest E2M1 value clamps to [-6, 6] and rounds with p = 2, q = 0: ties go
     * to the even code. */
    return ref_round_to(clamp(x, 6), 2, 0);
}

/* Stored values. Files may hold them unaligned, so they are copied out byte by byte. */

static double decode_f32(const unsigned char *p)
{
    float value;
    memcpy(&value, p, 4);
    return value;
}

static double decode_bf16(const unsigned char *p)
{
    const unsigned char widened[4] = {0, 0, p[0], p[1]};
    return decode_f32(widened);
}

static double decode_f16(const unsigned char *p)
{
    int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    double magnitude;
    if (exponent == 31)
        magnitude = mantissa != 0 ? NAN : INFINITY;
    else if (exponent == 0)
        magnitude = ldexp(mantissa, -24);
    else
        magnitude = ldexp(1024 + mantissa, exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

static void decode_row(const dsv4_matrix *w, int64_t row, double *values)
{
    const unsigned char *data = w->data;
    int64_t first = row * w->cols;
    switch (w->dtype) {
    case DSV4_F32:
        for (int64_t i = 0; i < w->cols; i++)
            values[i] = decode_f32(data + 4 * (first + i));
        break;
    case DSV4_BF16:
        for (int64_t i = 0; i < w->cols; i++)
            values[i] = decode_bf16(data + 2 * (first + i));
        break;
    case DSV4_F16:
        for (int64_t i = 0; i < w->cols; i++)
            values[i] = decode_f16(data + 2 * (first + i));
        break;
    case DSV4_F8_E4M3: {
        /* quant.fp8.1: An FP8 matrix holds one E4M3 code per value, and one E8M0 scale per block of
         * 128 x 128 values (the last blocks may be smaller): M[o, i] = code[o, i] scale[o div 128,
         * i div 128]. */
        const uint8_t *scales = w->scale + row / 128 * ((w->cols + 127) / 128);
        double scale = 0;
        for (int64_t i = 0; i < w->cols; i++) {
            if (i % 128 == 0)
                scale = ref_decode_e8m0(scales[i / 128]);
            values[i] = ref_decode_e4m3(data[first + i]) * scale;
        }
        break;
    }
    default: {
        /* quant.fp4.1: An FP4 matrix holds two E2M1 codes per byte along a row, the low nibble
         * first, and one E8M0 scale per 32 values of a row: M[o, i] = code[o, i] scale[o, i div
         * 32]. */
        const unsigned char *bytes = data + first / 2;
        const uint8_t *scales = w->scale + row * (w->cols / 32);
        double scale = 0;
        for (int64_t i = 0; i < w->cols; i += 2) {
            if (i % 32 == 0)
                scale = ref_decode_e8m0(scales[i / 32]);
            values[i] = ref_decode_e2m1(bytes[i / 2] & 15) * scale;
            values[i + 1] = ref_decode_e2m1(bytes[i / 2] >> 4) * scale;
        }
    }
    }
}

/* Says which value is at fault: the scale of the block, or the weight itself. */
static void bad_weight(const ref_context *c, const dsv4_matrix *w, int64_t row, int64_t col,
                       double value)
{
    int64_t high = w->dtype == DSV4_F8_E4M3 ? 128 : 1, wide = w->dtype == DSV4_F8_E4M3 ? 128 : 32;
    int64_t block = row / high * ((w->cols + wide - 1) / wide) + col / wide;
    if (w->scale != NULL && w->scale[block] == 255)
        dsv4_fail(c->error, "%s: %.*s.scale: value [%lld, %lld] is NaN, expected a finite number",
                  w->file, (int)strlen(w->name) - (int)strlen(".weight"), w->name,
                  (long long)(row / high), (long long)(col / wide));
    else
        dsv4_fail(c->error, "%s: %s: value [%lld, %lld] is %s, expected a finite number", w->file,
                  w->name, (long long)row, (long long)col, isnan(value) ? "NaN" : "infinite");
}

void ref_matrix_row(const ref_context *c, const dsv4_matrix *w, int64_t row, double *values)
{
    decode_row(w, row, values);
    /* quant.nan.1: A weight that is NaN or infinite when it is read is an error that names file,
     * tensor and place. */
    for (int64_t i = 0; i < w->cols; i++)
        if (!isfinite(values[i])) {
            bad_weight(c, w, row, i, values[i]);
            return;
        }
}

double *ref_vector(const ref_context *c, const dsv4_matrix *w)
{
    double *values = ref_new(w->cols);
    ref_matrix_row(c, w, 0, values);
    return values;
}

int64_t ref_integer(const dsv4_matrix *w, int64_t row, int64_t col)
{
    int64_t at = row * w->cols + col, wide;
    int32_t narrow;
    if (w->dtype == DSV4_I64) {
        memcpy(&wide, (const char *)w->data + 8 * at, 8);
        return wide;
    }
    memcpy(&narrow, (const char *)w->data + 4 * at, 4);
    return narrow;
}

/* 2^ceil(log2(x)) of a positive binary32 number. */
static double power_of_two_above(float x)
{
    int exponent;
    if (!isfinite(x))
        return NAN;
    double fraction = frexp(x, &exponent); /* x = fraction 2^exponent, 1/2 <= fraction < 1 */
    return ldexp(1, fraction == 0.5 ? exponent - 1 : exponent);
}

static double largest(const double *x, int64_t count, double floor)
{
    double amax = floor;
    for (int64_t i = 0; i < count; i++)
        amax = fabs(x[i]) > amax ? fabs(x[i]) : amax;
    return amax;
}

void ref_act_quant(double *x, int64_t count, int64_t block)
{
    for (int64_t first = 0; first < count; first += block) {
        /* quant.act.1: Of each block, amax is the largest magnitude, and at least 1e-4. */
        double amax = largest(x + first, block, 1e-4f);
        /* quant.act.2: The scale is the smallest power of two not below amax x (1/448), where 1/448
         * and the product are rounded to binary32, as amax and its floor are. A block that holds an
         * infinite value becomes NaN; a NaN stays one. */
        double scale = power_of_two_above((float)amax * (1.0f / 448.0f));
        /* quant.act.3: Each value becomes the nearest E4M3 value of x / scale (quant.e4m3.2), times
         * scale. */
        for (int64_t i = first; i < first + block; i++)
            x[i] = ref_encode_e4m3(x[i] / scale) * scale;
    }
}

void ref_qdq_kv(const ref_context *c, double *entry)
{
    if (c->numerics == DSV4_EXACT)
        return;
    /* quant.kv.1: Released: the d - R values of a KV entry before its rotary ones pass act_quant in
     * blocks of 64 and are rounded to bf16; the R rotary values stay as they are. */
    int64_t values = c->config->head_dim - c->config->qk_rope_head_dim;
    ref_act_quant(entry, values, 64);
    ref_bf16_all(c, entry, values);
}

void ref_qdq_index(const ref_context *c, double *x)
{
    if (c->numerics == DSV4_EXACT)
        return;
    for (int64_t first = 0; first < c->config->index_head_dim; first += 32) {
        /* quant.index.1: Released: of each 32 values of an indexer vector, amax is the largest
         * magnitude and at least 6 2^-126; the scale is the smallest power of two not below amax x
         * (1/6), in binary32 as in quant.act.2. */
        double amax = largest(x + first, 32, 6 * 0x1p-126);
        double scale = power_of_two_above((float)amax * (1.0f / 6.0f));
        /* quant.index.2: Released: each value becomes the nearest E2M1 value of x / scale
         * (quant.e2m1.2), times scale, rounded to bf16. */
        for (int64_t i = first; i < first + 32; i++)
            x[i] = ref_bf16(c, ref_encode_e2m1(x[i] / scale) * scale);
    }
}
