#include "small.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

int small_setup(void **state)
{
    const char *seed = getenv("DSV4_SEED");
    small *s = dsv4_alloc(1, sizeof *s);
    s->config = (dsv4_config){
        .hidden_size = 24, .num_attention_heads = 6, .head_dim = 16, .q_lora_rank = 20,
        .qk_rope_head_dim = 8, .o_groups = 3, .o_lora_rank = 5, .sliding_window = 9,
        .index_n_heads = 2, .index_head_dim = 32, .index_topk = 4, .moe_intermediate_size = 12,
        .n_routed_experts = 10, .num_experts_per_tok = 4, .hc_mult = 3, .hc_sinkhorn_iters = 20,
        .max_position_embeddings = 1048576, .vocab_size = 50, .bos_token_id = 0, .eos_token_id = 1,
        .routed_scaling_factor = 1.5, .swiglu_limit = 10, .hc_eps = 1e-6, .rms_norm_eps = 1e-6,
        .rope_theta = 10000, .compress_rope_theta = 160000, .norm_topk_prob = true,
        .rope_scaling = {true, 16, 65536, 32, 1}};
    s->c = (ref_context){.config = &s->config, .error = &s->error, .numerics = DSV4_EXACT};
    s->seed = seed != NULL ? strtoull(seed, NULL, 0) : 0x2606;
    *state = s;
    return 0;
}

int small_teardown(void **state)
{
    small *s = *state;
    for (int64_t i = 0; i < s->kept_count; i++)
        free(s->kept[i]);
    free(s->kept);
    free(s);
    return 0;
}

void *small_alloc(small *s, int64_t count, size_t size)
{
    void **kept = realloc(s->kept, (size_t)(s->kept_count + 1) * sizeof *kept);
    if (kept == NULL)
        abort();
    s->kept = kept;
    return s->kept[s->kept_count++] = dsv4_alloc((size_t)count, size);
}

double *small_array(small *s, int64_t count)
{
    return small_alloc(s, count, sizeof(double));
}

double *small_copy(small *s, const double *x, int64_t count)
{
    return memcpy(small_array(s, count), x, (size_t)count * sizeof *x);
}

/* ---- random numbers ---- */

uint64_t small_bits(small *s)
{
    uint64_t x = s->seed * 0xd1342543de82ef95u + ++s->drawn * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

double small_random(small *s)
{
    return (double)(small_bits(s) >> 40) * 0x1p-23 - 1;
}

double *small_randoms(small *s, int64_t count, double amplitude)
{
    double *x = small_array(s, count);
    for (int64_t i = 0; i < count; i++)
        x[i] = small_to_bf16(amplitude * small_random(s));
    return x;
}

/* ---- number formats: a code's bits are moved to where a binary32 number has them ---- */

static double float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static double of_bf16(int code)
{
    return float_of((uint32_t)code << 16);
}

static double of_f16(int code)
{
    double magnitude = float_of((uint32_t)(code & 0x7fff) << 13) * 0x1p112;
    if ((code & 0x7c00) == 0x7c00)
        magnitude = (code & 0x3ff) == 0 ? INFINITY : NAN;
    return (code & 0x8000 ? -1 : 1) * magnitude;
}

static double of_e4m3(int code)
{
    double magnitude = float_of((uint32_t)(code & 0x7f) << 20) * 0x1p120;
    return (code & 0x80 ? -1 : 1) * ((code & 0x7f) == 0x7f ? NAN : magnitude);
}

static double of_e2m1(int code)
{
    return (code & 8 ? -1 : 1) * float_of((uint32_t)(code & 7) << 22) * 0x1p126;
}

static double of_e8m0(int code)
{
    return code == 0 ? 0x1p-127 : code == 255 ? NAN : float_of((uint32_t)code << 23);
}

/* Rounding is a search for the code, among 0..last, whose value is nearest to x >= 0; codes ascend
 * as their values do, and of a tie the even code is taken. */
static int nearest(double x, int last, double (*value)(int))
{
    int low = 0, high = last;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (value(middle) <= x)
            low = middle;
        else
            high = middle;
    }
    double below = x - value(low), above = value(high) - x;
    return below < above || (below == above && low % 2 == 0) ? low : high;
}

/* The bf16 code after the largest finite one, as if it were a number. */
static double of_bf16_or_end(int code)
{
    return code == 0x7f80 ? 0x1p128 : of_bf16(code);
}

static int bf16_code(double x)
{
    int magnitude = isnan(x) ? 0x7fc0 : nearest(fabs(x), 0x7f80, of_bf16_or_end);
    return (signbit(x) ? 0x8000 : 0) | magnitude;
}

static int f16_code(double x)
{
    return (signbit(x) ? 0x8000 : 0) | nearest(fabs(x), 0x7bff, of_f16);
}

double small_to_f32(double x)
{
    return (float)x;
}

double small_to_bf16(double x)
{
    return of_bf16(bf16_code(x));
}

double small_to_e4m3(double x)
{
    return copysign(of_e4m3(nearest(fabs(x), 0x7e, of_e4m3)), x);
}

double small_to_e2m1(double x)
{
    return copysign(of_e2m1(nearest(fabs(x), 7, of_e2m1)), x);
}

double small_f32_point(const small *s, double x)
{
    return s->c.numerics == DSV4_EXACT ? x : small_to_f32(x);
}

double small_bf16_point(const small *s, double x)
{
    return s->c.numerics == DSV4_EXACT ? x : small_to_bf16(x);
}

void small_act_quant(double *x, int64_t count, int64_t block)
{
    for (int64_t i = 0; i < count; i += block) {
        float amax = 1e-4f;
        for (int64_t j = i; j < i + block; j++)
            amax = fmaxf(amax, fabsf((float)x[j]));
        double scale = 0x1p-60;
        while (scale < (float)(amax * (float)(1 / 448.0)))
            scale *= 2;
        for (int64_t j = i; j < i + block; j++)
            x[j] = small_to_e4m3(x[j] / scale) * scale;
    }
}

/* ---- matrices ---- */

static unsigned char *odd_bytes(small *s, int64_t bytes)
{
    return (unsigned char *)small_alloc(s, bytes + 1, 1) + 1;
}

static dsv4_matrix matrix(dsv4_dtype dtype, int64_t rows, int64_t cols, const void *data,
                          const uint8_t *scale)
{
    return (dsv4_matrix){.name = "small.weight", .file = "small.safetensors", .dtype = dtype,
                         .rows = rows, .cols = cols, .data = data, .scale = scale};
}

dsv4_matrix small_f32(small *s, const double *values, int64_t rows, int64_t cols)
{
    unsigned char *data = odd_bytes(s, 4 * rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        float value = (float)values[i];
        memcpy(data + 4 * i, &value, 4);
    }
    return matrix(DSV4_F32, rows, cols, data, NULL);
}

static dsv4_matrix two_byte_matrix(small *s, dsv4_dtype dtype, int (*code)(double),
                                   const double *values, int64_t rows, int64_t cols)
{
    unsigned char *data = odd_bytes(s, 2 * rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        uint16_t bits = (uint16_t)code(values[i]);
        memcpy(data + 2 * i, &bits, 2);
    }
    return matrix(dtype, rows, cols, data, NULL);
}

dsv4_matrix small_bf16(small *s, const double *values, int64_t rows, int64_t cols)
{
    return two_byte_matrix(s, DSV4_BF16, bf16_code, values, rows, cols);
}

dsv4_matrix small_f16(small *s, const double *values, int64_t rows, int64_t cols)
{
    return two_byte_matrix(s, DSV4_F16, f16_code, values, rows, cols);
}

dsv4_matrix small_fp8(small *s, const uint8_t *codes, const uint8_t *scales, int64_t rows,
                      int64_t cols)
{
    int64_t blocks = (rows + 127) / 128 * ((cols + 127) / 128);
    return matrix(DSV4_F8_E4M3, rows, cols,
                  memcpy(odd_bytes(s, rows * cols), codes, (size_t)(rows * cols)),
                  memcpy(odd_bytes(s, blocks), scales, (size_t)blocks));
}

dsv4_matrix small_fp4(small *s, const uint8_t *bytes, const uint8_t *scales, int64_t rows,
                      int64_t cols)
{
    return matrix(DSV4_I8, rows, cols,
                  memcpy(odd_bytes(s, rows * cols / 2), bytes, (size_t)(rows * cols / 2)),
                  memcpy(odd_bytes(s, rows * cols / 32), scales, (size_t)(rows * cols / 32)));
}

/* E8M0 bytes of four neighbouring powers of two, that times `largest` stay within `amplitude`. */
static uint8_t *random_scales(small *s, int64_t count, double amplitude, double largest)
{
    uint8_t *scales = small_alloc(s, count, 1);
    for (int64_t i = 0; i < count; i++)
        scales[i] = (uint8_t)(127 + ilogb(amplitude / largest) - (int)(small_bits(s) >> 62));
    return scales;
}

dsv4_matrix small_random_matrix(small *s, dsv4_dtype dtype, int64_t rows, int64_t cols,
                                double amplitude)
{
    int64_t blocks = (rows + 127) / 128 * ((cols + 127) / 128);
    uint8_t *codes = small_alloc(s, rows * cols, 1);
    double *values = small_array(s, rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        codes[i] = (uint8_t)(small_bits(s) >> 56);
        if (dtype == DSV4_F8_E4M3 && codes[i] % 128 == 127)
            codes[i]--; /* not NaN */
        values[i] = amplitude * small_random(s);
    }
    switch (dtype) {
    case DSV4_F32:
        return small_f32(s, values, rows, cols);
    case DSV4_BF16:
        return small_bf16(s, values, rows, cols);
    case DSV4_F16:
        return small_f16(s, values, rows, cols);
    case DSV4_F8_E4M3:
        return small_fp8(s, codes, random_scales(s, blocks, amplitude, 448), rows, cols);
    default:
        return small_fp4(s, codes, random_scales(s, rows * cols / 32, amplitude, 6), rows, cols);
    }
}

static double value_at(const dsv4_matrix *m, int64_t row, int64_t col)
{
    int64_t at = row * m->cols + col, blocks = (m->cols + 127) / 128;
    const unsigned char *data = m->data;
    uint32_t wide;
    uint16_t narrow;
    switch (m->dtype) {
    case DSV4_F32:
        memcpy(&wide, data + 4 * at, 4);
        return float_of(wide);
    case DSV4_BF16:
    case DSV4_F16:
        memcpy(&narrow, data + 2 * at, 2);
        return m->dtype == DSV4_BF16 ? of_bf16(narrow) : of_f16(narrow);
    case DSV4_F8_E4M3:
        return of_e4m3(data[at]) * of_e8m0(m->scale[row / 128 * blocks + col / 128]);
    default:
        return of_e2m1(data[at / 2] >> 4 * (at % 2) & 15) * of_e8m0(m->scale[at / 32]);
    }
}

double *small_values(small *s, const dsv4_matrix *m)
{
    double *values = small_array(s, m->rows * m->cols);
    for (int64_t i = 0; i < m->rows * m->cols; i++)
        values[i] = value_at(m, i / m->cols, i % m->cols);
    return values;
}

/* ---- comparison ---- */

void small_near_at(const small *s, const char *what, const double *got, const double *want,
                   int64_t count, double bound, const char *file, int line)
{
    for (int64_t i = 0; i < count; i++) {
        if (got[i] == want[i] || fabs(got[i] - want[i]) <= bound)
            continue;
        if (isnan(got[i]) && isnan(want[i]))
            continue;
        print_error("%s [%" PRId64 "] is %.17g (%a), expected %.17g (%a) within %g; "
                    "seed %#" PRIx64 "\n",
                    what, i, got[i], got[i], want[i], want[i], bound, s->seed);
        _fail(file, line);
    }
}
