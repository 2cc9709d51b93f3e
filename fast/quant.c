/* spec/quant.md: stored weights as binary32, and the quantisation of activations. */
#include "fast/fast.h"

#include <math.h>
#include <string.h>

/* ---- stored values: unaligned, so they are copied out ---- */

static float number(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t load16(const unsigned char *p)
{
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return bits;
}

/* The bits of a code are moved to where a binary32 number has them, and the difference of the
 * biases is made up for by a product, which is exact. */

static float decode_f16(uint32_t bits)
{
    float magnitude = number((bits & 0x7fff) << 13) * 0x1p112f;
    if ((bits & 0x7c00) == 0x7c00)
        magnitude = (bits & 0x3ff) == 0 ? INFINITY : NAN;
    return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

/* quant.e4m3.1 */
static float decode_e4m3(uint32_t code)
{
    float magnitude = (code & 0x7f) == 0x7f ? NAN : number((code & 0x7f) << 20) * 0x1p120f;
    return (code & 0x80) != 0 ? -magnitude : magnitude;
}

/* quant.e2m1.1 */
static float decode_e2m1(uint32_t code)
{
    static const float value[16] = {0,   0.5f,  1,  1.5f,  2,  3,  4,  6,
                                    -0.f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    return value[code];
}

/* quant.e8m0.1 */
static float decode_e8m0(uint32_t code)
{
    return code == 0 ? 0x1p-127f : code == 255 ? NAN : number(code << 23);
}

/* quant.fp8.1 */
static void decode_fp8(const dsv4_matrix *w, int64_t row, float *values)
{
    const unsigned char *codes = (const unsigned char *)w->data + row * w->cols;
    const uint8_t *scales = w->scale + row / 128 * ((w->cols + 127) / 128);
    for (int64_t first = 0; first < w->cols; first += 128) {
        float scale = decode_e8m0(scales[first / 128]);
        int64_t end = first + 128 < w->cols ? first + 128 : w->cols;
        for (int64_t i = first; i < end; i++)
            values[i] = decode_e4m3(codes[i]) * scale;
    }
}

/* quant.fp4.1 */
static void decode_fp4(const dsv4_matrix *w, int64_t row, float *values)
{
    const unsigned char *bytes = (const unsigned char *)w->data + row * (w->cols / 2);
    const uint8_t *scales = w->scale + row * (w->cols / 32);
    for (int64_t first = 0; first < w->cols; first += 32) {
        float scale = decode_e8m0(scales[first / 32]);
        for (int64_t i = first; i < first + 32; i += 2) {
            values[i] = decode_e2m1(bytes[i / 2] & 15) * scale;
            values[i + 1] = decode_e2m1(bytes[i / 2] >> 4) * scale;
        }
    }
}

static void decode_row(const dsv4_matrix *w, int64_t row, float *values)
{
    const unsigned char *data = w->data;
    int64_t first = row * w->cols;
    switch (w->dtype) {
    case DSV4_F32:
        memcpy(values, data + 4 * first, 4 * (size_t)w->cols);
        break;
    case DSV4_BF16:
        for (int64_t i = 0; i < w->cols; i++)
            values[i] = number(load16(data + 2 * (first + i)) << 16);
        break;
    case DSV4_F16:
        for (int64_t i = 0; i < w->cols; i++)
            values[i] = decode_f16(load16(data + 2 * (first + i)));
        break;
    case DSV4_F8_E4M3:
        decode_fp8(w, row, values);
        break;
    default:
        decode_fp4(w, row, values);
    }
}

/* Says which value is at fault: the scale of the block, or the weight itself. A code times its
 * scale may be a number that binary32 does not have. */
static void bad_weight(const fast_context *c, const dsv4_matrix *w, int64_t row, int64_t col,
                       float value)
{
    int64_t high = w->dtype == DSV4_F8_E4M3 ? 128 : 1, wide = w->dtype == DSV4_F8_E4M3 ? 128 : 32;
    int64_t block = row / high * ((w->cols + wide - 1) / wide) + col / wide;
    if (w->scale != NULL && w->scale[block] == 255)
        dsv4_fail(c->error, "%s: %.*s.scale: value [%lld, %lld] is NaN, expected a finite number",
                  w->file, (int)strlen(w->name) - (int)strlen(".weight"), w->name,
                  (long long)(row / high), (long long)(col / wide));
    else if (w->scale != NULL && !isnan(value))
        dsv4_fail(c->error, "%s: %s: value [%lld, %lld] is 2^128 or more, expected a binary32 "
                  "number", w->file, w->name, (long long)row, (long long)col);
    else
        dsv4_fail(c->error, "%s: %s: value [%lld, %lld] is %s, expected a finite number", w->file,
                  w->name, (long long)row, (long long)col, isnan(value) ? "NaN" : "infinite");
}

/* False, with an error, where one of the row's values is not finite. quant.nan.1 */
static bool check_row(const fast_context *c, const dsv4_matrix *w, int64_t row, const float *values)
{
    if (c->kernels->quant->finite(values, w->cols))
        return true;
    int64_t col = 0;
    while (isfinite(values[col]))
        col++;
    bad_weight(c, w, row, col, values[col]);
    return false;
}

void fast_matrix_row(const fast_context *c, const dsv4_matrix *w, int64_t row, float *values)
{
    decode_row(w, row, values);
    check_row(c, w, row, values);
}

float *fast_vector(const fast_context *c, const dsv4_matrix *w)
{
    float *values = FAST_TAKE(c, float, w->cols);
    fast_matrix_row(c, w, 0, values);
    return values;
}

bool fast_find_bad_weight(const fast_context *c, const dsv4_matrix *w, int64_t first, int64_t rows)
{
    fast_place mark = fast_mark(c->memory);
    float *values = FAST_TAKE(c, float, w->cols);
    bool good = true;
    for (int64_t row = first; good && row < first + rows; row++) {
        decode_row(w, row, values);
        good = check_row(c, w, row, values);
    }
    fast_release(c->memory, mark);
    return !good;
}

int64_t fast_integer(const dsv4_matrix *w, int64_t row, int64_t col)
{
    int64_t at = row * w->cols + col, wide;
    int32_t narrow;
    if (w->dtype == DSV4_I64) {
        memcpy(&wide, (const char *)w->data + 8 * at, sizeof wide);
        return wide;
    }
    memcpy(&narrow, (const char *)w->data + 4 * at, sizeof narrow);
    return narrow;
}

/* ---- activations ---- */

/* Something done to each of `rows` rows by itself, `part` rows an item of the pool. */
typedef struct {
    const fast_context *c;
    float *x;
    int64_t rows, stride, part, param;
    void (*row)(const fast_quant_kernels *kernels, float *x, int64_t param);
} row_loop;

static void loop_part(void *context, int64_t item, int worker)
{
    const row_loop *loop = context;
    (void)worker;
    int64_t end = (item + 1) * loop->part;
    for (int64_t i = item * loop->part; i < end && i < loop->rows; i++)
        loop->row(loop->c->kernels->quant, loop->x + i * loop->stride, loop->param);
}

/* Few values are not worth the way to other threads. */
static void loop_over_rows(row_loop loop)
{
    enum { PART = 32768 };
    if (loop.rows <= 0 || loop.stride <= 0)
        return;
    loop.part = (PART + loop.stride - 1) / loop.stride;
    fast_pool_run(loop.c->pool, (loop.rows + loop.part - 1) / loop.part, loop_part, &loop);
}

static void round_row(const fast_quant_kernels *kernels, float *x, int64_t count)
{
    kernels->bf16(x, count);
}

void fast_bf16(const fast_context *c, float *x, int64_t count)
{
    enum { ROW = 4096 };
    if (!c->released)
        return; /* numerics.exact.1 */
    int64_t rows = count / ROW;
    loop_over_rows((row_loop){.c = c, .x = x, .rows = rows, .stride = ROW, .param = ROW,
                              .row = round_row});
    c->kernels->quant->bf16(x + rows * ROW, count % ROW);
}

static void act_quant_row(const fast_quant_kernels *kernels, float *x, int64_t block)
{
    kernels->act_quant(x, block, block);
}

void fast_act_quant(const fast_context *c, float *x, int64_t count, int64_t block)
{
    if (c->released) /* numerics.exact.1 */
        loop_over_rows((row_loop){.c = c, .x = x, .rows = count / block, .stride = block,
                                  .param = block, .row = act_quant_row});
}

/* A code of E4M3 times its scale is a bf16 number as it is. quant.kv.1 */
static void kv_row(const fast_quant_kernels *kernels, float *x, int64_t values)
{
    kernels->act_quant(x, values, 64);
}

void fast_qdq_kv(const fast_context *c, float *x, int64_t rows)
{
    int64_t d = c->config->head_dim;
    if (c->released)
        loop_over_rows((row_loop){.c = c, .x = x, .rows = rows, .stride = d,
                                  .param = d - c->config->qk_rope_head_dim, .row = kv_row});
}

static void index_row(const fast_quant_kernels *kernels, float *x, int64_t width)
{
    kernels->qdq_index(x, width);
}

void fast_qdq_index(const fast_context *c, float *x, int64_t rows)
{
    int64_t width = c->config->index_head_dim;
    if (c->released)
        loop_over_rows((row_loop){.c = c, .x = x, .rows = rows, .stride = width, .param = width,
                                  .row = index_row});
}
