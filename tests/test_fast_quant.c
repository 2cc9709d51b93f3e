/* fast/quant.c and its kernels, at every level of instructions: the same bits as the reference. */
#include "fast_small.h"

#include <math.h>
#include <string.h>

static const double no_bound[4096];

/* ---- stored weights ---- */

static void read_rows(small *s, const dsv4_matrix *m)
{
    double *want = small_values(s, m);
    float *row = small_alloc(s, m->cols, sizeof *row);
    fast_walk walk = {0};
    while (fast_small_next(&walk, s, 1))
        for (int64_t o = 0; o < m->rows; o++) {
            fast_matrix_row(&walk.c, m, o, row);
            fast_same(&walk.c, row, want + o * m->cols, m->cols);
        }
    assert_string_equal(s->error.text, "");
}

static void matrices_of_every_format(void **state)
{
    static const dsv4_dtype dtype[] = {DSV4_F32, DSV4_BF16, DSV4_F16, DSV4_F8_E4M3, DSV4_I8};
    small *s = *state;
    for (int i = 0; i < 5; i++) {
        dsv4_matrix m = small_random_matrix(s, dtype[i], 131, dtype[i] == DSV4_I8 ? 160 : 263, 3);
        read_rows(s, &m);
        m.rows = 1;
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 1))
            fast_same(&walk.c, fast_vector(&walk.c, &m), small_values(s, &m), m.cols);
    }
}

/* Every finite code of the narrow formats. */
static void every_code(void **state)
{
    small *s = *state;
    char *data = small_alloc(s, 2 * 65536 + 1, 1);
    for (int kind = 0; kind < 2; kind++) {
        int count = 0, top = kind == 0 ? 0x7c00 : 0x7f80;
        for (uint32_t code = 0; code < 65536; code++)
            if ((int)(code & 0x7fff) < top)
                memcpy(data + 1 + 2 * count++, &(uint16_t){(uint16_t)code}, 2);
        read_rows(s, &(dsv4_matrix){.name = "w", .file = "f", .data = data + 1, .rows = 1,
                                    .cols = count, .dtype = kind == 0 ? DSV4_F16 : DSV4_BF16});
    }
    uint8_t codes[256], scales[] = {0, 1, 127, 200, 245};
    for (int code = 0; code < 256; code++)
        codes[code] = (uint8_t)(code % 128 == 127 ? 0 : code);
    for (size_t i = 0; i < sizeof scales; i++) {
        dsv4_matrix m = small_fp8(s, codes, (uint8_t[]){scales[i], scales[i]}, 1, 256);
        read_rows(s, &m);
        for (int pair = 0; pair < 256; pair++)
            codes[pair] = (uint8_t)pair;
        m = small_fp4(s, codes, memset(small_alloc(s, 16, 1), scales[i], 16), 1, 512);
        read_rows(s, &m);
        for (int code = 127; code < 256; code += 128)
            codes[code] = 0;
    }
}

static void integers(void **state)
{
    small *s = *state;
    char *data = small_alloc(s, 6 * 8 + 1, 1);
    const int64_t wide[6] = {0, -1, 5, 1LL << 40, 7, 8};
    const int32_t narrow[6] = {0, -1, 5, 1 << 30, 7, 8};
    dsv4_matrix m = {.dtype = DSV4_I64, .rows = 2, .cols = 3, .data = data + 1};
    memcpy(data + 1, wide, sizeof wide);
    assert_int_equal(fast_integer(&m, 0, 1), -1);
    assert_true(fast_integer(&m, 1, 0) == 1LL << 40);
    m.dtype = DSV4_I32;
    memcpy(data + 1, narrow, sizeof narrow);
    assert_int_equal(fast_integer(&m, 0, 1), -1);
    assert_int_equal(fast_integer(&m, 1, 2), 8);
}

/* The message of the reference for row `row`; then fast_find_bad_weight in the rows around it. */
static void expect_bad(small *s, dsv4_matrix m, int64_t row)
{
    m.name = "layers.3.w.weight";
    m.file = "dir/a.safetensors";
    double *wide = small_array(s, m.cols);
    float *narrow = small_alloc(s, m.cols, sizeof *narrow);
    s->error = (dsv4_error){{0}};
    ref_matrix_row(&s->c, &m, row, wide);
    dsv4_error want = s->error;
    assert_string_not_equal(want.text, "");
    fast_walk walk = {0};
    while (fast_small_next(&walk, s, 1)) {
        s->error = (dsv4_error){{0}};
        fast_matrix_row(&walk.c, &m, row, narrow);
        assert_string_equal(s->error.text, want.text);
        s->error = (dsv4_error){{0}};
        assert_false(fast_find_bad_weight(&walk.c, &m, 0, row));
        assert_false(fast_find_bad_weight(&walk.c, &m, row + 1, m.rows - row - 1));
        assert_string_equal(s->error.text, "");
        assert_true(fast_find_bad_weight(&walk.c, &m, 0, m.rows));
        assert_string_equal(s->error.text, want.text);
    }
}

static void bad_weights_are_named(void **state)
{
    small *s = *state;
    double *values = small_randoms(s, 5 * 37, 1);
    values[2 * 37 + 36] = NAN;
    expect_bad(s, small_f32(s, values, 5, 37), 2);
    expect_bad(s, small_bf16(s, values, 5, 37), 2);
    values[2 * 37 + 36] = -INFINITY;
    expect_bad(s, small_f32(s, values, 5, 37), 2);
    uint8_t *bytes = small_alloc(s, 300 * 300, 1), scales[9] = {0};
    bytes[128 * 300 + 299] = 0xff;
    expect_bad(s, small_fp8(s, bytes, scales, 300, 300), 128);
    uint8_t fours[3 * 6] = {0};
    fours[1 * 6 + 5] = 255;
    expect_bad(s, small_fp4(s, bytes, fours, 3, 192), 1);

    /* The scale of a whole block of rows. */
    bytes[128 * 300 + 299] = 0;
    scales[5] = 255;
    dsv4_matrix m = small_fp8(s, bytes, scales, 300, 300);
    fast_walk walk = {0};
    while (fast_small_next(&walk, s, 1)) {
        s->error = (dsv4_error){{0}};
        assert_false(fast_find_bad_weight(&walk.c, &m, 0, 128));
        assert_false(fast_find_bad_weight(&walk.c, &m, 256, 44));
        assert_true(fast_find_bad_weight(&walk.c, &m, 100, 100));
        assert_string_equal(s->error.text, "small.safetensors: small.scale: value [1, 2] is NaN, "
                                           "expected a finite number");
    }
}

/* 448 2^127: a number, but none of binary32. */
static void weights_beyond_binary32(void **state)
{
    small *s = *state;
    uint8_t codes[40] = {0};
    codes[33] = 0x7e;
    dsv4_matrix m = small_fp8(s, codes, (uint8_t[]){254}, 1, 40);
    fast_walk walk = {0};
    while (fast_small_next(&walk, s, 1)) {
        float row[40];
        s->error = (dsv4_error){{0}};
        fast_matrix_row(&walk.c, &m, 0, row);
        assert_string_equal(s->error.text, "small.safetensors: small.weight: value [0, 33] is "
                                           "2^128 or more, expected a binary32 number");
    }
}

/* ---- rounding, finiteness ---- */

static void bf16_at_every_length(void **state)
{
    small *s = *state;
    enum { LENGTH = 70 };
    double x[LENGTH], want[LENGTH];
    for (int i = 0; i < LENGTH; i++) {
        uint32_t bits = (uint32_t)small_bits(s);
        float value;
        if (i % 3 == 0)
            bits = (bits & 0xffff0000) | 0x8000; /* a tie */
        memcpy(&value, &bits, 4);
        x[i] = i % 19 == 5 ? (double)NAN : i % 19 == 6 ? -INFINITY : i % 19 == 7 ? -0. : value;
        want[i] = isfinite(x[i]) ? small_to_bf16(x[i]) : x[i];
    }
    fast_walk walk = {0};
    s->c.numerics = DSV4_RELEASED;
    while (fast_small_next(&walk, s, 1))
        for (int64_t count = 0; count <= LENGTH; count++) {
            float *y = small_floats(s, x, LENGTH);
            fast_bf16(&walk.c, y, count);
            fast_same(&walk.c, y, want, count);
            fast_bits(&walk.c, y + count, small_floats(s, x, LENGTH) + count, LENGTH - count);
        }
    s->c.numerics = DSV4_EXACT;
    walk = (fast_walk){0};
    while (fast_small_next(&walk, s, 1)) {
        float *y = small_floats(s, x, LENGTH);
        fast_bf16(&walk.c, y, LENGTH);
        fast_same(&walk.c, y, x, LENGTH);
    }
}

static void what_is_not_finite_is_seen(void **state)
{
    small *s = *state;
    enum { LENGTH = 70 };
    static const float bad[] = {INFINITY, -INFINITY, NAN, -NAN};
    fast_walk walk = {0};
    while (fast_small_next(&walk, s, 1))
        for (int64_t count = 1; count <= LENGTH; count++) {
            float x[LENGTH + 1];
            for (int i = 0; i < count; i++)
                x[i] = i % 2 ? 0x1.fffffep127f : -0x1p-149f;
            x[count] = NAN; /* behind the end */
            assert_true(walk.c.kernels->quant->finite(x, count));
            for (int64_t at = 0; at < count; at += 1 + count / 9) {
                float kept = x[at];
                x[at] = bad[at % 4];
                assert_false(walk.c.kernels->quant->finite(x, count));
                x[at] = kept;
            }
        }
}

/* ---- quantise-dequantise ---- */

/* A block of one of many kinds. */
static void draw_block(small *s, double *x, int64_t count, int kind)
{
    double scale = ldexp(1, (int)(small_bits(s) >> 57) - 64);
    for (int64_t i = 0; i < count; i++) {
        double v = small_random(s);
        switch (kind) {
        case 0: /* bf16, of one magnitude */
            v = small_to_bf16(v) * scale;
            break;
        case 1: /* binary32, of many magnitudes */
            v = (float)(v * ldexp(scale, -(int)(small_bits(s) >> 59)));
            break;
        case 2: /* near the floors, and the limits of binary32 */
            v = (float)(v * (small_bits(s) % 2 ? 1e-4 : 0x1p-122));
            break;
        case 3:
            v = v * 0x1.fcp127;
            break;
        case 4: /* codes, and the middles between them: ties */
            v = ((double)(small_bits(s) % 33) - 16) * 0.5 * scale;
            break;
        case 5:
            v = 0;
            break;
        default: /* ends of a binade */
            v = copysign(ldexp(small_bits(s) % 2 ? 0x1.fffffep0 : 0x1.000002p0,
                               (int)(small_bits(s) % 12)), v) * scale;
        }
        x[i] = i % 13 == 4 ? -0. : v;
    }
    x[count / 2] *= kind % 2 ? 1 : 7;
    if (kind == 7)
        x[count / 3] = INFINITY;
    if (kind == 8)
        x[count / 3] = NAN;
    for (int64_t i = 0; i < count; i++)
        x[i] = kind != 3 || fabs(x[i]) < 0x1p127 ? (double)(float)x[i] : 0x1p126;
}
enum { KINDS = 9 };

/* Magnitudes of 2^128, which binary64 has, are infinite. */
static void to_binary32(double *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = (float)x[i];
}

static void activations_in_blocks(void **state)
{
    static const int64_t block[] = {128, 64, 32, 16, 20, 3, 1};
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    for (int round = 0; round < 60 * KINDS; round++) {
        int64_t size = block[round % 7], count = 3 * size;
        double *x = small_array(s, count), *want;
        for (int i = 0; i < 3; i++)
            draw_block(s, x + i * size, size, (round + i) % KINDS);
        want = small_copy(s, x, count);
        ref_act_quant(want, count, size);
        to_binary32(want, count);
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 1)) {
            float *y = small_floats(s, x, count), *z = small_floats(s, x, count);
            fast_act_quant(&walk.c, y, count, size);
            fast_same(&walk.c, y, want, count);
            walk.c.kernels->quant->act_quant(z, count, size);
            fast_same(&walk.c, z, want, count);
        }
    }
}

/* All scaled values that can come: one block for each of many amax, its values all over the
 * codes. */
static void activations_at_every_code(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    enum { SIZE = 64 };
    for (int code = 1; code < 0x7e; code++) {
        double x[SIZE], want[SIZE], low = ref_decode_e4m3(code), high = ref_decode_e4m3(code + 1);
        double middle = (low + high) / 2;
        for (int i = 0; i < SIZE; i++)
            x[i] = (i % 2 ? -1 : 1) * (double)(float)(i < 32 ? middle * (1 + (i / 2 - 8) * 0x1p-23)
                                                             : low + (high - low) * (i - 32) / 31);
        x[63] = 448;
        memcpy(want, x, sizeof x);
        ref_act_quant(want, SIZE, SIZE);
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 1)) {
            float *y = small_floats(s, x, SIZE);
            fast_act_quant(&walk.c, y, SIZE, SIZE);
            fast_same(&walk.c, y, want, SIZE);
        }
    }
}

/* Both quantisations of one block each, of 64 and of 32 values. */
static void check_blocks(small *s, const double *x, const double *index)
{
    double *want = small_copy(s, x, 64), *index_want = small_copy(s, index, 32);
    ref_act_quant(want, 64, 64);
    ref_qdq_index(&s->c, index_want);
    fast_walk walk = {0};
    while (fast_small_next(&walk, s, 1)) {
        float *y = small_floats(s, x, 64), *z = small_floats(s, index, 32);
        fast_act_quant(&walk.c, y, 64, 64);
        fast_same(&walk.c, y, want, 64);
        fast_qdq_index(&walk.c, z, 1);
        fast_same(&walk.c, z, index_want, 32);
    }
}

/* amax at both sides of the point where the scale doubles, one binary32 number after the other.
 * Only small values show which scale was taken. */
static void scales_double_where_they_must(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    s->config.index_head_dim = 32;
    for (int exponent = -20; exponent < 20; exponent++)
        for (int steps = -4; steps <= 4; steps++) {
            double x[64], index[32];
            for (int i = 0; i < 64; i++)
                x[i] = (float)(ldexp(448, exponent - 8 - i % 12) * small_random(s));
            for (int i = 0; i < 32; i++)
                index[i] = (float)(ldexp(6, exponent - 1 - i % 4) * small_random(s));
            x[7] = ldexp(448 + steps * 0x1p-15, exponent);
            index[7] = ldexp(6 + steps * 0x1p-21, exponent);
            check_blocks(s, x, index);
        }
}

static void scales_have_a_floor(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    s->config.index_head_dim = 32;
    for (int exponent = -9; exponent <= 6; exponent++) {
        double x[64], index[32];
        for (int i = 0; i < 64; i++)
            x[i] = (float)(ldexp(1e-4, exponent - i % 12) * small_random(s));
        for (int i = 0; i < 32; i++)
            index[i] = (float)(ldexp(6, -126 + exponent - i % 4) * small_random(s));
        check_blocks(s, x, index);
    }
}

/* Draws rows of a cache's entries and runs them through the reference's QDQ. */
static double *draw_entries(small *s, bool index, int64_t rows, double *want)
{
    int64_t width = index ? s->config.index_head_dim : s->config.head_dim;
    int64_t block = index ? 32 : 64, R = index ? 0 : s->config.qk_rope_head_dim;
    double *x = small_randoms(s, rows * width, 2);
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t first = 0; first < width - R; first += block)
            draw_block(s, x + i * width + first, block, (int)(small_bits(s) % 7));
        double *row = memcpy(want + i * width, x + i * width, (size_t)width * sizeof *x);
        if (index)
            ref_qdq_index(&s->c, row);
        else
            ref_qdq_kv(&s->c, row);
    }
    return x;
}

static void entries(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    enum { ROWS = 40 };
    for (int shape = 0; shape < 3; shape++) {
        s->config.qk_rope_head_dim = (int64_t[]){64, 16, 8}[shape];
        s->config.head_dim = s->config.qk_rope_head_dim + (int64_t[]){448, 64, 192}[shape];
        s->config.index_head_dim = (int64_t[]){128, 32, 64}[shape];
        int64_t d = s->config.head_dim, d_i = s->config.index_head_dim;
        double *kv_want = small_array(s, ROWS * d), *index_want = small_array(s, ROWS * d_i);
        double *kv = draw_entries(s, false, ROWS, kv_want);
        double *index = draw_entries(s, true, ROWS, index_want);
        fast_walk walk = {0};
        while (fast_small_next(&walk, s, 2)) {
            float *y = small_floats(s, kv, ROWS * d), *z = small_floats(s, index, ROWS * d_i);
            fast_qdq_kv(&walk.c, y, ROWS);
            fast_same(&walk.c, y, kv_want, ROWS * d);
            fast_qdq_index(&walk.c, z, ROWS);
            fast_same(&walk.c, z, index_want, ROWS * d_i);
        }
    }
}

static void exact_quantises_nothing(void **state)
{
    small *s = *state;
    s->config.head_dim = 48;
    s->config.index_head_dim = 16;
    double *x = small_randoms(s, 960, 3);
    x[7] = 1 + 0x1p-20;
    fast_walk walk = {0};
    while (fast_small_next(&walk, s, 1)) {
        float *y = small_floats(s, x, 960);
        fast_act_quant(&walk.c, y, 960, 32);
        fast_qdq_kv(&walk.c, y, 20);
        fast_qdq_index(&walk.c, y, 60);
        fast_same(&walk.c, y, x, 960);
    }
}

/* Enough rows for several items of the pool: the bits are those of one row by itself. */
static void rows_and_threads_change_nothing(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    s->config.head_dim = 80;
    s->config.qk_rope_head_dim = 16;
    s->config.index_head_dim = 32;
    enum { ROWS = 1500, D = 80 };
    double *x = small_array(s, ROWS * D);
    for (int64_t i = 0; i < ROWS * D; i++)
        x[i] = small_random(s) * ldexp(1, (int)(small_bits(s) % 20));
    fast_walk walk = {0};
    while (fast_small_next(&walk, s, 3)) {
        float *all = small_floats(s, x, ROWS * D), *one = small_floats(s, x, ROWS * D);
        fast_context alone = fast_small_open(s, walk.c.kernels, 1);
        fast_qdq_kv(&walk.c, all, ROWS);
        fast_bf16(&walk.c, all, ROWS * D);
        for (int64_t i = 0; i < ROWS; i++) {
            fast_qdq_kv(&alone, one + i * D, 1);
            fast_bf16(&alone, one + i * D, D);
        }
        fast_bits(&walk.c, all, one, ROWS * D);
        fast_act_quant(&walk.c, all, ROWS * D, 16);
        fast_qdq_index(&walk.c, all, ROWS * D / 32);
        for (int64_t i = 0; i < ROWS * D; i += 160) {
            fast_act_quant(&alone, one + i, 160, 16);
            fast_qdq_index(&alone, one + i, 5);
        }
        fast_bits(&walk.c, all, one, ROWS * D);
        fast_small_close(&alone);
    }
}

/* ---- codes of cache entries ---- */

/* What has passed QDQ comes back as it was; the codes and scales are those of the formats. A
 * zero may lose its sign. */
static void keep_kv(small *s, const double *x, int64_t values, int64_t R)
{
    fast_walk walk = {0};
    while (fast_small_next(&walk, s, 1)) {
        uint8_t codes[512], scales[8];
        uint16_t rope[64];
        float back[512 + 64];
        walk.c.kernels->quant->pack_kv(small_floats(s, x, values + R), values, R, codes, scales,
                                       rope);
        walk.c.kernels->quant->unpack_kv(codes, scales, rope, values, R, back);
        fast_near(&walk.c, back, x, no_bound, values + R);
        for (int64_t i = 0; i < values; i++)
            small_is(s, ref_decode_e4m3(codes[i]) * ref_decode_e8m0(scales[i / 64]), x[i]);
    }
}

static void keep_index(small *s, const double *x, int64_t count)
{
    fast_walk walk = {0};
    while (fast_small_next(&walk, s, 1)) {
        uint8_t codes[128], scales[8];
        float back[256];
        walk.c.kernels->quant->pack_index(small_floats(s, x, count), count, codes, scales);
        walk.c.kernels->quant->unpack_index(codes, scales, count, back);
        fast_near(&walk.c, back, x, no_bound, count);
        for (int64_t i = 0; i < count; i++)
            small_is(s, ref_decode_e2m1(codes[i / 2] >> 4 * (i % 2) & 15) *
                            ref_decode_e8m0(scales[i / 32]), x[i]);
    }
}

/* Entries as they come, from blocks of every finite kind. */
static void entries_come_back(void **state)
{
    small *s = *state;
    s->c.numerics = DSV4_RELEASED;
    enum { ROWS = 120 };
    for (int shape = 0; shape < 2; shape++) {
        s->config.qk_rope_head_dim = shape == 0 ? 64 : 10;
        s->config.head_dim = s->config.qk_rope_head_dim + (shape == 0 ? 448 : 64);
        s->config.index_head_dim = shape == 0 ? 128 : 32;
        int64_t d = s->config.head_dim, d_i = s->config.index_head_dim;
        double *kv = small_array(s, ROWS * d), *index = small_array(s, ROWS * d_i);
        draw_entries(s, false, ROWS, kv);
        draw_entries(s, true, ROWS, index);
        for (int64_t i = 0; i < ROWS; i++) {
            bool finite = true;
            for (int64_t j = 0; j < d; j++)
                finite = finite && isfinite(kv[i * d + j]);
            if (finite)
                keep_kv(s, kv + i * d, d - s->config.qk_rope_head_dim,
                        s->config.qk_rope_head_dim);
            finite = true;
            for (int64_t j = 0; j < d_i; j++)
                finite = finite && isfinite(index[i * d_i + j]);
            if (finite)
                keep_index(s, index + i * d_i, d_i);
        }
    }
}

/* Every code as the largest of a block that holds the smallest ones too, under scales from one
 * end to the other: those that QDQ may have made. */
static void every_largest_code_comes_back(void **state)
{
    small *s = *state;
    for (int scale = -24; scale <= 118; scale += 2)
        for (int top = 0; top < 0x7f; top += 1 + (scale > 0) * 5) {
            double x[64 + 2] = {[64] = 0.5, [65] = -3};
            for (int i = 0; i < 64; i++)
                x[i] = (i % 2 ? -1 : 1) * ref_decode_e4m3(i < 20 ? i <= top ? i : 0
                                                                 : top - (top * (i - 20)) / 43);
            for (int i = 0; i < 64; i++)
                x[i] = ldexp(x[i], scale);
            keep_kv(s, x, 64, 2);
        }
    for (int scale = -126; scale <= 125; scale++)
        for (int top = 0; top < 8; top++) {
            double x[32];
            for (int i = 0; i < 32; i++)
                x[i] = ldexp(ref_decode_e2m1((i * 5 % (top + 1)) + (i % 3 == 1 ? 8 : 0)), scale);
            keep_index(s, x, 32);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(matrices_of_every_format),
        small_test(every_code),
        small_test(integers),
        small_test(bad_weights_are_named),
        small_test(weights_beyond_binary32),
        small_test(bf16_at_every_length),
        small_test(what_is_not_finite_is_seen),
        small_test(activations_in_blocks),
        small_test(activations_at_every_code),
        small_test(scales_double_where_they_must),
        small_test(scales_have_a_floor),
        small_test(entries),
        small_test(exact_quantises_nothing),
        small_test(rows_and_threads_change_nothing),
        small_test(entries_come_back),
        small_test(every_largest_code_comes_back),
    };
    return cmocka_run_group_tests_name("fast_quant", tests, NULL, NULL) != 0;
}
