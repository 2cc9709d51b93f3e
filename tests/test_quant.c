/* spec/quant.md: codes, stored matrices, and the quantisation of activations. */
#include "small.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double e2m1[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

/* covers: quant.e2m1.1 */
static void e2m1_codes(void **state)
{
    small *s = *state;
    for (int code = 0; code < 8; code++) {
        small_is(s, ref_decode_e2m1(code), e2m1[code]);
        small_is(s, ref_decode_e2m1(code + 8), -e2m1[code]);
    }
}

/* The E4M3 magnitudes in ascending order: 16 steps of 2^-9 from 0, then 8 of each doubled step. */
static void list_e4m3(double magnitude[127])
{
    double step = 0x1p-9, value = 0;
    for (int code = 0; code < 127; code++, value += step) {
        if (code > 8 && code % 8 == 0)
            step *= 2;
        magnitude[code] = value;
    }
}

/* covers: quant.e4m3.1 */
static void e4m3_codes(void **state)
{
    small *s = *state;
    double magnitude[127];
    list_e4m3(magnitude);
    for (int code = 0; code < 127; code++) {
        small_is(s, ref_decode_e4m3(code), magnitude[code]);
        small_is(s, ref_decode_e4m3(128 + code), -magnitude[code]);
    }
    small_is(s, ref_decode_e4m3(0x01), 0x1p-9);
    small_is(s, ref_decode_e4m3(0x38), 1);
    small_is(s, ref_decode_e4m3(0x7e), 448);
    assert_true(isnan(ref_decode_e4m3(0x7f)));
    assert_true(isnan(ref_decode_e4m3(0xff)));
}

/* covers: quant.e8m0.1 */
static void e8m0_codes(void **state)
{
    small *s = *state;
    double power = 0x1p-127;
    for (int code = 0; code < 255; code++, power *= 2)
        small_is(s, ref_decode_e8m0(code), power);
    small_is(s, ref_decode_e8m0(127), 1);
    assert_true(isnan(ref_decode_e8m0(255)));
}

/* Both signs of x. */
static void encode_case(const small *s, double (*encode)(double), double x, double want)
{
    small_is(s, encode(x), want);
    small_is(s, encode(-x), -want);
}

/* Every code, every middle between neighbours, and what is just beside it; then beyond the last. */
static void encode_all(const small *s, double (*encode)(double), const double *magnitude, int codes)
{
    for (int code = 0; code < codes; code++) {
        encode_case(s, encode, magnitude[code], magnitude[code]);
        if (code + 1 == codes)
            break;
        double middle = (magnitude[code] + magnitude[code + 1]) / 2;
        encode_case(s, encode, middle, magnitude[code + code % 2]);
        encode_case(s, encode, middle * (1 - 0x1p-52), magnitude[code]);
        encode_case(s, encode, middle * (1 + 0x1p-52), magnitude[code + 1]);
    }
    double last = magnitude[codes - 1];
    encode_case(s, encode, last * (1 + 0x1p-20), last);
    encode_case(s, encode, last * 1.5, last);
    encode_case(s, encode, 0x1p100, last);
    encode_case(s, encode, INFINITY, last);
}

/* covers: quant.e4m3.2 quant.e2m1.2 */
static void nearest_codes(void **state)
{
    double magnitude[127];
    list_e4m3(magnitude);
    encode_all(*state, ref_encode_e4m3, magnitude, 127);
    encode_all(*state, ref_encode_e2m1, e2m1, 8);
}

/* All of a matrix through ref_matrix_row against our own decoder. */
static void read_matrix(small *s, const dsv4_matrix *m)
{
    double *want = small_values(s, m), *row = small_array(s, m->cols);
    for (int64_t o = 0; o < m->rows; o++) {
        ref_matrix_row(&s->c, m, o, row);
        small_same(s, row, want + o * m->cols, m->cols);
    }
}

/* All 65,536 bit patterns as a matrix of two rows, at an odd address. */
static void plain_matrices(void **state)
{
    small *s = *state;
    char *data = small_alloc(s, 2 * 65536 + 1, 1);
    for (uint32_t code = 0; code < 65536; code++)
        memcpy(data + 1 + 2 * code, &(uint16_t){(uint16_t)code}, 2);
    dsv4_matrix m = {.name = "w", .file = "f", .rows = 2, .cols = 32768, .data = data + 1};
    m.dtype = DSV4_BF16;
    read_matrix(s, &m);
    m.dtype = DSV4_F16;
    read_matrix(s, &m);
    double row[3], f16[3] = {0x1p-24, -65504, 0x1.554p-2};
    m = small_f16(s, f16, 1, 3);
    ref_matrix_row(&s->c, &m, 0, row);
    small_same(s, row, f16, 3);
    m = small_f32(s, (double[]){1e-45f, 3.4e38f, -0.1f, 1, 2, 3}, 3, 2);
    s->error = (dsv4_error){{0}};
    read_matrix(s, &m);
    assert_string_equal(s->error.text, "");

    double *vector = ref_vector(&s->c, &m);
    small_is(s, vector[0], 1e-45f);
    free(vector);
}

static void integers(void **state)
{
    small *s = *state;
    char *data = small_alloc(s, 6 * 8 + 1, 1);
    const int64_t wide[6] = {0, -1, 5, 1LL << 40, 7, 8};
    const int32_t narrow[6] = {0, -1, 5, 1 << 30, 7, 8};
    dsv4_matrix m = {.dtype = DSV4_I64, .rows = 2, .cols = 3, .data = data + 1};
    memcpy(data + 1, wide, sizeof wide);
    assert_int_equal(ref_integer(&m, 0, 1), -1);
    assert_true(ref_integer(&m, 1, 0) == 1LL << 40);
    m.dtype = DSV4_I32;
    memcpy(data + 1, narrow, sizeof narrow);
    assert_int_equal(ref_integer(&m, 0, 1), -1);
    assert_int_equal(ref_integer(&m, 1, 2), 8);
}

/* covers: quant.fp8.1 */
static void fp8_blocks(void **state)
{
    small *s = *state;
    uint8_t codes[130 * 257];
    memset(codes, 0x38, sizeof codes); /* 1: the matrix shows its scales */
    codes[0] = 0x01;
    codes[129 * 257 + 256] = 0xfe; /* -448 */
    const uint8_t scales[6] = {0, 128, 129, 124, 125, 254};
    dsv4_matrix m = small_fp8(s, codes, scales, 130, 257);
    double row[257];
    ref_matrix_row(&s->c, &m, 127, row);
    small_is(s, row[127], 0x1p-127);
    small_is(s, row[128], 2);
    small_is(s, row[255], 2);
    small_is(s, row[256], 4);
    ref_matrix_row(&s->c, &m, 128, row);
    small_is(s, row[127], 0.125);
    small_is(s, row[128], 0.25);
    small_is(s, row[256], 0x1p127);
    ref_matrix_row(&s->c, &m, 129, row);
    small_is(s, row[256], -448 * 0x1p127);
    ref_matrix_row(&s->c, &m, 0, row);
    small_is(s, row[0], 0x1p-136); /* below bf16's range: weights are not rounded when read */
    m = small_random_matrix(s, DSV4_F8_E4M3, 260, 130, 1);
    read_matrix(s, &m);
}

/* covers: quant.fp4.1 */
static void fp4_nibbles_and_scales(void **state)
{
    small *s = *state;
    uint8_t bytes[64] = {0x21, 0xf7};
    bytes[15] = 0x3b; /* values 30 and 31 of row 0 */
    bytes[16] = 0x29; /* values 32 and 33 */
    bytes[32] = 0x54; /* row 1 */
    bytes[63] = 0x60;
    dsv4_matrix m = small_fp4(s, bytes, (uint8_t[]){127, 128, 130, 254}, 2, 64);
    double row[64];
    ref_matrix_row(&s->c, &m, 0, row);
    small_same(s, row, ((double[]){0.5, 1, 6, -6, 0}), 5);
    small_same(s, row + 30, ((double[]){-1.5, 1.5, -1, 2, 0}), 5);
    ref_matrix_row(&s->c, &m, 1, row);
    small_same(s, row, ((double[]){16, 24, 0}), 3);
    small_same(s, row + 62, ((double[]){0, 0x1p129}), 2);
    m = small_random_matrix(s, DSV4_I8, 3, 160, 1);
    read_matrix(s, &m);
}

static void expect_nan(small *s, dsv4_matrix m, const char *place)
{
    double row[160];
    m.name = "layers.3.w.weight";
    m.file = "dir/a.safetensors";
    s->error = (dsv4_error){{0}};
    ref_matrix_row(&s->c, &m, 0, row);
    assert_string_equal(s->error.text, ""); /* row 0 is clean, and no other has been read */
    for (int64_t o = 1; o < m.rows; o++)
        ref_matrix_row(&s->c, &m, o, row);
    assert_non_null(strstr(s->error.text, "dir/a.safetensors"));
    assert_non_null(strstr(s->error.text, "layers.3.w"));
    assert_non_null(strstr(s->error.text, place));
    assert_null(strchr(s->error.text, '\n'));
}

/* covers: quant.nan.1 */
static void the_first_nan_is_named(void **state)
{
    small *s = *state;
    const double values[9] = {1, 2, 3, 4, 5, NAN, NAN, 8, 9};
    expect_nan(s, small_f32(s, values, 3, 3), "[1, 2]");
    expect_nan(s, small_bf16(s, values, 3, 3), "[1, 2]");
    const double infinite[6] = {1, 2, 3, -INFINITY, 5, 6};
    expect_nan(s, small_f32(s, infinite, 3, 2), "[1, 1] is infinite");
    uint8_t half[12] = {0, 0x78, 0, 0x3c, 0xff, 0x7b, 0x01, 0x7c, 0xff, 0xff, 0, 0};
    expect_nan(s, (dsv4_matrix){.dtype = DSV4_F16, .rows = 3, .cols = 2, .data = half}, "[1, 1]");

    uint8_t codes[129 * 140] = {0}, scales[4] = {127, 127, 127, 255};
    codes[5 * 140 + 9] = 0x7f;
    codes[6 * 140 + 8] = 0xff;
    expect_nan(s, small_fp8(s, codes, scales, 129, 140), "layers.3.w.weight: value [5, 9] is NaN");
    memset(codes, 0, sizeof codes);
    expect_nan(s, small_fp8(s, codes, scales, 129, 140), "layers.3.w.scale: value [1, 1] is NaN");
    expect_nan(s, small_fp4(s, codes, scales, 2, 64), "layers.3.w.scale: value [1, 1] is NaN");

    s->error = (dsv4_error){{0}};
    dsv4_matrix vector = small_f32(s, (double[]){0, NAN}, 1, 2);
    free(ref_vector(&s->c, &vector));
    assert_non_null(strstr(s->error.text, "[0, 1]"));
}

/* covers: quant.act.2 */
static void infinity_is_not_lost(void **state)
{
    (void)state;
    double block[128] = {[3] = INFINITY, [4] = 3, [64] = 1, [65] = 2};
    ref_act_quant(block, 128, 64);
    for (int i = 0; i < 64; i++)
        assert_true(isnan(block[i]));
    assert_true(block[64] == 1 && block[65] == 2);
}

/* act_quant of a block of 64 that holds `amax` and x gives x as `want`. */
static void act_case(const small *s, double amax, double x, double want)
{
    double block[64] = {0};
    block[17] = -amax;
    block[63] = x;
    ref_act_quant(block, 64, 64);
    small_is(s, block[63], want);
    small_is(s, block[0], 0);
}

/* covers: quant.act.1 quant.act.2 */
static void scales_of_activations(void **state)
{
    small *s = *state;
    /* The scale shows in the subnormal steps: 2^-9 scale, to which a quarter is rounded off. */
    for (int k = -20; k < 100; k++) {
        double step = ldexp(1, k - 9), above = (double)nextafterf(448, 449);
        act_case(s, ldexp(448, k), 3.25 * step, 3 * step);
        act_case(s, ldexp(448, k), ldexp(448, k), ldexp(448, k));
        act_case(s, ldexp(above, k), 3.25 * step, 4 * step); /* twice the scale */
        act_case(s, ldexp(225, k), 3.5 * step, 4 * step);
        act_case(s, ldexp(224, k), 3.5 * step, 3.5 * step); /* half the scale */
    }
    /* At and below 1e-4 the scale is 2^-22, the least power not below 1e-4 / 448. */
    act_case(s, 0, 3.25 * 0x1p-31, 3 * 0x1p-31);
    act_case(s, 0, 0.5 * 0x1p-31, 0);
    act_case(s, 1e-30, 0.75 * 0x1p-31, 0x1p-31);
    act_case(s, 1.05e-4, 3.25 * 0x1p-31, 3 * 0x1p-31);
    act_case(s, 1.1e-4, 3.25 * 0x1p-31, 4 * 0x1p-31);
    act_case(s, 0, 0, 0);
}

/* covers: quant.act.1 quant.act.2 quant.act.3 */
static void activations_block_by_block(void **state)
{
    small *s = *state;
    for (int64_t block = 64; block <= 128; block += 64) {
        double *x = small_array(s, 384), *want;
        for (int64_t i = 0; i < 384; i++) /* blocks of very different size; subnormal codes too */
            x[i] = ldexp(small_random(s), (int)(i / 64) * 7 - 20 - (int)(small_bits(s) % 14));
        want = small_copy(s, x, 384);
        small_act_quant(want, 384, block);
        ref_act_quant(x, 384, block);
        small_same(s, x, want, 384);
    }
}

/* covers: quant.kv.1 */
static void kv_entries(void **state)
{
    small *s = *state;
    s->config.head_dim = 192;
    s->config.qk_rope_head_dim = 64;
    double *entry = small_array(s, 192), *want;
    for (int64_t i = 0; i < 192; i++)
        entry[i] = small_random(s) * (i / 64 == 1 ? 1e-3 : 10);
    want = small_copy(s, entry, 192);
    ref_qdq_kv(&s->c, entry);
    small_same(s, entry, want, 192); /* exact */
    s->c.numerics = DSV4_RELEASED;
    small_act_quant(want, 128, 64);
    ref_qdq_kv(&s->c, entry);
    small_same(s, entry, want, 192);
}

/* The QDQ of a block that holds `amax` and x gives x as `want`. */
static void index_case(small *s, double amax, double x, double want)
{
    double block[32] = {[3] = -amax, [31] = x};
    s->config.index_head_dim = 32;
    ref_qdq_index(&s->c, block);
    small_is(s, block[31], want);
    small_is(s, block[0], 0);
}

/* covers: quant.index.1 quant.index.2 */
static void index_scales(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    for (int k = -126; k < 120; k++) {
        double unit = ldexp(1, k), above = (double)nextafterf(6, 7);
        index_case(s, 6 * unit, 0.75 * unit, unit); /* a tie: to the even code 2 */
        index_case(s, 6 * unit, 0.25 * unit, 0);
        index_case(s, 6 * unit, 5 * unit, 4 * unit);
        index_case(s, 6 * unit, 6 * unit, 6 * unit);
        index_case(s, above * unit, 0.75 * unit, unit); /* scale 2: 0.375 to 0.5 */
        index_case(s, above * unit, 0.4 * unit, 0);
        index_case(s, above * unit, 5 * unit, 4 * unit);
        index_case(s, above * unit, 7 * unit, 8 * unit);
    }
    index_case(s, 3 * 0x1p-126, 0.3 * 0x1p-126, 0.5 * 0x1p-126); /* the floor holds the scale */
    index_case(s, 0, 0.2 * 0x1p-126, 0);
    index_case(s, 0, 0.3 * 0x1p-126, 0x1p-127);
    index_case(s, 0, 0, 0);
    index_case(s, 4 * 0x1p-126, 0x1p-125 * 1.4, 0x1p-125 * 1.5);
}

/* covers: quant.index.1 quant.index.2 */
static void index_vectors(void **state)
{
    small *s = *state;
    s->config.index_head_dim = 128;
    double x[128], want[128];
    for (int i = 0; i < 128; i++) /* four blocks, each 8 times the one before */
        want[i] = x[i] = ldexp(small_random(s), i / 32 * 3);
    ref_qdq_index(&s->c, x);
    small_same(s, x, want, 128); /* exact */
    s->c.numerics = DSV4_RELEASED;
    ref_qdq_index(&s->c, x);
    for (int first = 0; first < 128; first += 32) {
        double amax = 0, scale = 0x1p-140;
        for (int i = first; i < first + 32; i++)
            amax = fmax(amax, fabs(want[i]));
        while (6 * scale < amax)
            scale *= 2;
        for (int i = first; i < first + 32; i++)
            want[i] = small_to_e2m1(want[i] / scale) * scale;
    }
    small_same(s, x, want, 128);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(e2m1_codes),
        small_test(e4m3_codes),
        small_test(e8m0_codes),
        small_test(nearest_codes),
        small_test(plain_matrices),
        small_test(integers),
        small_test(fp8_blocks),
        small_test(fp4_nibbles_and_scales),
        small_test(the_first_nan_is_named),
        cmocka_unit_test(infinity_is_not_lost),
        small_test(scales_of_activations),
        small_test(activations_block_by_block),
        small_test(kv_entries),
        small_test(index_scales),
        small_test(index_vectors),
    };
    return cmocka_run_group_tests_name("quant", tests, NULL, NULL) != 0;
}
