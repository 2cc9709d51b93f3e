#include "direct.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Everything an evaluation shares. Arrays are row-major binary64; in RELEASED what they hold are
 * binary32 or bf16 values. `S` tokens; other dimensions are in `c`. */
typedef struct {
    const dsv4_model *model;
    const dsv4_config *c;
    bool released;
    const int64_t *ids;
    int64_t S;
    const dsv4_tap *tap;
    double bf16[0x7f81]; /* the non-negative values of a format by code; the last is 2^128 */
    double e4m3[0x7f];
    double e2m1[8];
    void **pool; /* arrays of the sublayer at hand */
    int64_t pooled;
    bool failed;
} pass;

/* ---- arrays ---- */

/* Zeroed, and gone with the next clear(). */
static void *array(pass *p, int64_t count, size_t size)
{
    void **grown = dsv4_alloc((size_t)p->pooled + 1, sizeof *grown);
    if (p->pooled)
        memcpy(grown, p->pool, (size_t)p->pooled * sizeof *grown);
    free(p->pool);
    p->pool = grown;
    return p->pool[p->pooled++] = dsv4_alloc(count ? (size_t)count : 1, size);
}

static double *values(pass *p, int64_t count)
{
    return array(p, count, sizeof(double));
}

static double *copy(pass *p, const double *x, int64_t count)
{
    double *y = values(p, count);
    if (count)
        memcpy(y, x, (size_t)count * sizeof *y);
    return y;
}

static void clear(pass *p)
{
    for (int64_t i = 0; i < p->pooled; i++)
        free(p->pool[i]);
    p->pooled = 0;
}

/* ---- the tap ---- */

/* Rows [row, row + rows) of a tensor whose rows are [dim0] or, with dim1, [dim0, dim1]. */
static void show_rows(const pass *p, const char *name, int64_t layer, int64_t row, int64_t rows,
                      int64_t dim0, int64_t dim1, double *x, int64_t *indices)
{
    dsv4_point point = {.name = name, .layer = layer, .row = row, .rows = rows,
                        .rank = dim1 ? 2 : 1, .dim = {dim0, dim1}, .values = x, .indices = indices};
    if (p->tap && rows * dim0 > 0)
        p->tap->at(p->tap->context, &point);
}

static void show(const pass *p, const char *name, int64_t layer, int64_t rows, int64_t dim0,
                 int64_t dim1, double *x)
{
    show_rows(p, name, layer, 0, rows, dim0, dim1, x, NULL);
}

/* ---- number formats ---- */

/* Sign, exponent and mantissa fields by the IEEE rule, without infinities and NaN. */
static double minifloat(unsigned code, int exponent_bits, int mantissa_bits)
{
    unsigned e = (code >> mantissa_bits) & ((1u << exponent_bits) - 1);
    unsigned m = code & ((1u << mantissa_bits) - 1);
    int bias = (1 << (exponent_bits - 1)) - 1;
    double magnitude = e ? ldexp(m + (1u << mantissa_bits), (int)e - bias - mantissa_bits)
                         : ldexp(m, 1 - bias - mantissa_bits);
    return code >> (exponent_bits + mantissa_bits) ? -magnitude : magnitude;
}

/* binary16 and bf16: the largest exponent field is infinity and NaN. */
static double ieee16(unsigned code, int exponent_bits, int mantissa_bits)
{
    unsigned top = (1u << exponent_bits) - 1;
    if (((code >> mantissa_bits) & top) != top)
        return minifloat(code, exponent_bits, mantissa_bits);
    if (code & ((1u << mantissa_bits) - 1))
        return NAN;
    return code >> 15 ? -INFINITY : INFINITY;
}

/* The nearest of grid[0..count), non-negative and ascending, with the sign of x; of two equally
 * near the one of even index, which is the one of even code. */
static double nearest(const double *grid, int64_t count, double x)
{
    double magnitude = fabs(x);
    int64_t low = 0, high = count - 1;
    if (isnan(x))
        return x;
    if (magnitude >= grid[high])
        return copysign(grid[high], x);
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (grid[middle] <= magnitude)
            low = middle;
        else
            high = middle;
    }
    double below = magnitude - grid[low], above = grid[high] - magnitude;
    int64_t pick = below < above || (below == above && low % 2 == 0) ? low : high;
    return copysign(grid[pick], x);
}

/* The binary32 results of RELEASED. A sum, product, quotient or square root of binary32 values,
 * taken in binary64 and rounded here, is the correctly rounded binary32 one. */
static double f32(const pass *p, double x)
{
    return p->released ? (double)(float)x : x;
}

/* The bf16 results of RELEASED. */
static double bf16(const pass *p, double x)
{
    if (!p->released)
        return x;
    double y = nearest(p->bf16, 0x7f81, f32(p, x));
    return fabs(y) == p->bf16[0x7f80] ? copysign(INFINITY, y) : y;
}

static double multiply_add(const pass *p, double sum, double a, double b)
{
    return f32(p, sum + f32(p, a * b));
}

static double dot(const pass *p, const double *a, const double *b, int64_t count)
{
    double sum = 0;
    float single = 0;
    for (int64_t i = 0; !p->released && i < count; i++)
        sum += a[i] * b[i];
    for (int64_t i = 0; p->released && i < count; i++)
        single += (float)a[i] * (float)b[i];
    return p->released ? (double)single : sum;
}

/* Quantise-dequantise x[count] in place, per `block` values, with one power of two as scale. What
 * comes out needs no rounding to bf16: at most four significant bits, and no scale underflows. */
static void quantise(const pass *p, double *x, int64_t count, int64_t block, double least,
                     const double *grid, int64_t codes)
{
    double largest = grid[codes - 1];
    if (!p->released)
        return;
    for (int64_t start = 0; start < count; start += block) {
        int64_t end = start + block < count ? start + block : count;
        double amax = least;
        for (int64_t i = start; i < end; i++)
            amax = fmax(amax, fabs(x[i]));
        int exponent; /* amax / largest = fraction 2^exponent with fraction in [1/2, 1) */
        double fraction = frexp(f32(p, amax * f32(p, 1 / largest)), &exponent);
        double scale = ldexp(1, fraction == 0.5 ? exponent - 1 : exponent);
        for (int64_t i = start; i < end; i++)
            x[i] = nearest(grid, codes, x[i] / scale) * scale; /* saturates, as the clamp */
    }
}

static void act_quant(const pass *p, double *x, int64_t count, int64_t block)
{
    quantise(p, x, count, block, f32(p, 1e-4), p->e4m3, 0x7f);
}

static void index_quant(const pass *p, double *x, int64_t count)
{
    quantise(p, x, count, 32, ldexp(6, -126), p->e2m1, 8);
}

/* ---- weights ---- */

static double e8m0(uint8_t code)
{
    return code == 255 ? NAN : ldexp(1, code - 127);
}

/* Element [row, col] as stored, times its scale. */
static double element(const dsv4_matrix *m, int64_t row, int64_t col)
{
    const uint8_t *data = m->data;
    int64_t at = row * m->cols + col;
    float single;
    uint16_t half;
    switch (m->dtype) {
    case DSV4_F32:
        memcpy(&single, data + 4 * at, sizeof single);
        return single;
    case DSV4_BF16:
        memcpy(&half, data + 2 * at, sizeof half);
        return ieee16(half, 8, 7);
    case DSV4_F16:
        memcpy(&half, data + 2 * at, sizeof half);
        return ieee16(half, 5, 10);
    case DSV4_F8_E4M3:
        if ((data[at] & 0x7f) == 0x7f)
            return NAN;
        return minifloat(data[at], 4, 3) *
               e8m0(m->scale[row / 128 * ((m->cols + 127) / 128) + col / 128]);
    case DSV4_I8: /* two codes per byte, low nibble first */
        return minifloat(data[at / 2] >> (col % 2 ? 4 : 0) & 15, 2, 1) *
               e8m0(m->scale[row * (m->cols / 32) + col / 32]);
    default:
        return NAN;
    }
}

static int64_t integer_element(const dsv4_matrix *m, int64_t row, int64_t col)
{
    const uint8_t *data = m->data;
    int64_t at = row * m->cols + col, wide;
    int32_t narrow;
    if (m->dtype == DSV4_I64) {
        memcpy(&wide, data + 8 * at, sizeof wide);
        return wide;
    }
    memcpy(&narrow, data + 4 * at, sizeof narrow);
    return narrow;
}

static double *load(pass *p, const dsv4_matrix *m)
{
    double *w = values(p, m->rows * m->cols);
    for (int64_t row = 0; row < m->rows; row++)
        for (int64_t col = 0; col < m->cols; col++)
            w[row * m->cols + col] = element(m, row, col);
    return w;
}

/* As a BF16 linear uses it. */
static double *load_bf16(pass *p, const dsv4_matrix *m)
{
    double *w = load(p, m);
    for (int64_t i = 0; i < m->rows * m->cols; i++)
        w[i] = bf16(p, w[i]);
    return w;
}

/* ---- linear maps ---- */

/* y[rows, out] = x[rows, in] w[out, in]^T, summed per `block` of `in`, then over the blocks. */
static double *product(pass *p, const double *w, int64_t out, int64_t in, const double *x,
                       int64_t rows, int64_t block)
{
    double *y = values(p, rows * out);
    for (int64_t s = 0; s < rows; s++)
        for (int64_t o = 0; o < out; o++) {
            double sum = 0;
            for (int64_t start = 0; start < in; start += block) {
                int64_t count = start + block < in ? block : in - start;
                sum = f32(p, sum + dot(p, w + o * in + start, x + s * in + start, count));
            }
            y[s * out + o] = sum;
        }
    return y;
}

static double *rounded(const pass *p, double *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = bf16(p, x[i]);
    return x;
}

/* An operator that RELEASED keeps in binary32 throughout. */
static double *wide_linear(pass *p, const dsv4_matrix *m, const double *x, int64_t rows)
{
    return product(p, load(p, m), m->rows, m->cols, x, rows, m->cols);
}

/* FP8 and FP4 matrices quantise their input; others are BF16 linears. Codes are multiplied with
 * their scales on here: powers of two, which do not change how a sum rounds. */
static double *linear(pass *p, const dsv4_matrix *m, const double *x, int64_t rows)
{
    double *y;
    if (m->dtype == DSV4_F8_E4M3 || m->dtype == DSV4_I8) {
        double *codes = copy(p, x, rows * m->cols);
        for (int64_t s = 0; s < rows; s++)
            act_quant(p, codes + s * m->cols, m->cols, 128);
        y = product(p, load(p, m), m->rows, m->cols, codes, rows, m->dtype == DSV4_I8 ? 32 : 128);
    } else {
        y = product(p, load_bf16(p, m), m->rows, m->cols, x, rows, m->cols);
    }
    return rounded(p, y, rows * m->rows);
}

/* ---- elementwise pieces ---- */

/* 1 / sqrt(mean(x^2) + rms_norm_eps) */
static double inverse_rms(const pass *p, const double *x, int64_t count)
{
    double mean = f32(p, dot(p, x, x, count) / (double)count);
    return f32(p, 1 / sqrt(f32(p, mean + f32(p, p->c->rms_norm_eps))));
}

/* RMSNorm of x[rows, width of `weight`] into a new array. */
static double *rms_norm(pass *p, const dsv4_matrix *weight, const double *x, int64_t rows)
{
    int64_t width = weight->cols;
    double *w = load(p, weight), *y = values(p, rows * width);
    for (int64_t s = 0; s < rows; s++) {
        double r = inverse_rms(p, x + s * width, width);
        for (int64_t i = 0; i < width; i++)
            y[s * width + i] = bf16(p, f32(p, f32(p, x[s * width + i] * r) * w[i]));
    }
    return y;
}

/* The normalisation of one query head, in place: no weight, and in RELEASED each step in bf16. */
static void normalise_head(const pass *p, double *q, int64_t width)
{
    double sum = 0;
    for (int64_t i = 0; i < width; i++)
        sum = f32(p, sum + bf16(p, q[i] * q[i]));
    double mean = bf16(p, sum / (double)width);
    double shifted = bf16(p, mean + f32(p, p->c->rms_norm_eps));
    double r = bf16(p, 1 / sqrt(shifted));
    for (int64_t i = 0; i < width; i++)
        q[i] = bf16(p, q[i] * r);
}

static double sigmoid(const pass *p, double x)
{
    return f32(p, 1 / (1 + exp(-x)));
}

static double softplus(const pass *p, double x)
{
    return f32(p, fmax(x, 0) + log1p(exp(-fabs(x))));
}

/* ---- rotary positions ---- */

/* The rotation frequency of every pair of a layer's rope part: [R / 2]. */
static double *frequencies(pass *p, dsv4_layer_kind kind)
{
    int64_t R = p->c->qk_rope_head_dim;
    double theta = kind == DSV4_SWA ? p->c->rope_theta : p->c->compress_rope_theta;
    double *frequency = values(p, R / 2);
    for (int64_t i = 0; i < R / 2; i++)
        frequency[i] = f32(p, 1 / f32(p, pow(theta, (double)(2 * i) / (double)R)));
    if (kind == DSV4_SWA || !p->c->rope_scaling.present)
        return frequency;

    double turns = p->c->rope_scaling.original_max_position_embeddings / (2 * M_PI);
    double log2theta = 2 * log(theta), factor = p->c->rope_scaling.factor;
    double fast = (double)R * log(turns / p->c->rope_scaling.beta_fast) / log2theta;
    double slow = (double)R * log(turns / p->c->rope_scaling.beta_slow) / log2theta;
    double low = fmax(floor(fast), 0), high = fmin(ceil(slow), (double)(R - 1));
    double span = f32(p, high == low ? 0.001 : high - low);
    for (int64_t i = 0; i < R / 2; i++) {
        double ramp = fmin(fmax(f32(p, ((double)i - low) / span), 0), 1);
        double slowed = f32(p, f32(p, frequency[i] / f32(p, factor)) * ramp);
        frequency[i] = f32(p, slowed + f32(p, frequency[i] * f32(p, 1 - ramp)));
    }
    return frequency;
}

/* Rotates the last R values of x[width] in place; `direction` -1 rotates back. */
static void rope(const pass *p, const double *frequency, double *x, int64_t width, int64_t position,
                 double direction)
{
    int64_t R = p->c->qk_rope_head_dim;
    double *pair = x + width - R;
    for (int64_t i = 0; i < R / 2; i++, pair += 2) {
        double angle = f32(p, (double)position * frequency[i]);
        double c = f32(p, cos(angle)), s = direction * f32(p, sin(angle));
        double a = pair[0], b = pair[1];
        pair[0] = bf16(p, f32(p, f32(p, a * c) - f32(p, b * s)));
        pair[1] = bf16(p, f32(p, f32(p, a * s) + f32(p, b * c)));
    }
}

/* ---- hyper-connections ---- */

/* (fn f) / rms(f) for the flattened streams f of every token: [S, rows of fn]. */
static double *hc_mixes(pass *p, const dsv4_hc *hc, const double *streams)
{
    int64_t rows = hc->fn.rows, width = hc->fn.cols;
    double *m = wide_linear(p, &hc->fn, streams, p->S);
    for (int64_t s = 0; s < p->S; s++) {
        double r = inverse_rms(p, streams + s * width, width);
        for (int64_t i = 0; i < rows; i++)
            m[s * rows + i] = f32(p, m[s * rows + i] * r);
    }
    return m;
}

/* sum_j pre[j] x[j]: [S, D]. The first n of each token's mixes are the ones of pre. */
static double *hc_collapse(pass *p, const dsv4_hc *hc, const double *mixes, const double *streams)
{
    int64_t n = p->c->hc_mult, D = p->c->hidden_size;
    double *u = values(p, p->S * D), *base = load(p, &hc->base);
    double scale = element(&hc->scale, 0, 0);
    for (int64_t s = 0; s < p->S; s++) {
        for (int64_t j = 0; j < n; j++) {
            double m = multiply_add(p, base[j], mixes[s * hc->fn.rows + j], scale);
            double pre = f32(p, sigmoid(p, m) + f32(p, p->c->hc_eps));
            for (int64_t i = 0; i < D; i++)
                u[s * D + i] = multiply_add(p, u[s * D + i], pre, streams[(s * n + j) * D + i]);
        }
        rounded(p, u + s * D, D);
    }
    return u;
}

/* c[n, n] /= (sums over the first index, if `columns`, else over the second) + eps */
static void normalise_sums(const pass *p, double *c, bool columns)
{
    int64_t n = p->c->hc_mult, along = columns ? n : 1, across = columns ? 1 : n;
    for (int64_t line = 0; line < n; line++) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++)
            sum = f32(p, sum + c[line * across + i * along]);
        sum = f32(p, sum + f32(p, p->c->hc_eps));
        for (int64_t i = 0; i < n; i++)
            c[line * across + i * along] = f32(p, c[line * across + i * along] / sum);
    }
}

/* Sinkhorn in place: softmax of each row plus eps, columns, then rows and columns in turn. */
static void sinkhorn(const pass *p, double *c)
{
    int64_t n = p->c->hc_mult;
    for (int64_t j = 0; j < n; j++) {
        double *row = c + j * n, top = -INFINITY, sum = 0;
        for (int64_t k = 0; k < n; k++)
            top = fmax(top, row[k]);
        for (int64_t k = 0; k < n; k++) {
            row[k] = f32(p, exp(f32(p, row[k] - top)));
            sum = f32(p, sum + row[k]);
        }
        for (int64_t k = 0; k < n; k++)
            row[k] = f32(p, f32(p, row[k] / sum) + f32(p, p->c->hc_eps));
    }
    normalise_sums(p, c, true);
    for (int64_t i = 1; i < p->c->hc_sinkhorn_iters; i++) {
        normalise_sums(p, c, false);
        normalise_sums(p, c, true);
    }
}

/* new x[k] = post[k] y + sum_j C[j, k] x[j], in place */
static void hc_expand(pass *p, const dsv4_hc *hc, const double *mixes, const double *y,
                      double *streams)
{
    int64_t n = p->c->hc_mult, D = p->c->hidden_size;
    double *base = load(p, &hc->base), *scale = load(p, &hc->scale);
    double *comb = values(p, n * n), *post = values(p, n), *x = values(p, n * D);
    for (int64_t s = 0; s < p->S; s++) {
        const double *m = mixes + s * hc->fn.rows;
        for (int64_t k = 0; k < n; k++)
            post[k] = 2 * sigmoid(p, multiply_add(p, base[n + k], m[n + k], scale[1]));
        for (int64_t i = 0; i < n * n; i++)
            comb[i] = multiply_add(p, base[2 * n + i], m[2 * n + i], scale[2]);
        sinkhorn(p, comb);
        memcpy(x, streams + s * n * D, (size_t)(n * D) * sizeof *x);
        for (int64_t k = 0; k < n; k++)
            for (int64_t i = 0; i < D; i++) {
                double sum = f32(p, post[k] * y[s * D + i]);
                for (int64_t j = 0; j < n; j++)
                    sum = multiply_add(p, sum, comb[j * n + k], x[j * D + i]);
                streams[(s * n + k) * D + i] = bf16(p, sum);
            }
    }
}

/* ---- compressed entries ---- */

/* Channel c of group g, before the norm: pooled over the group's r tokens and, with overlap, over
 * the first half of the channels of the r tokens before them too. a, z: [S, channels]. */
static double pool(const pass *p, const double *a, const double *z, const double *ape, int64_t r,
                   int64_t width, bool overlap, int64_t g, int64_t c)
{
    int64_t channels = overlap ? 2 * width : width;
    int64_t first = overlap && g > 0 ? (g - 1) * r : g * r, end = (g + 1) * r;
    double top = -INFINITY, sum = 0, pooled = 0;
    for (int round = 0; round < 3; round++) /* the maximum, the denominator, the mean */
        for (int64_t t = first; t < end; t++) {
            int64_t channel = overlap && t >= g * r ? width + c : c;
            double logit = f32(p, z[t * channels + channel] + ape[t % r * channels + channel]);
            if (round == 0) {
                top = fmax(top, logit);
                continue;
            }
            double weight = f32(p, exp(f32(p, logit - top)));
            if (round == 1)
                sum = f32(p, sum + weight);
            else
                pooled = multiply_add(p, pooled, f32(p, weight / sum), a[t * channels + channel]);
        }
    return pooled;
}

/* The entries of all complete groups, normed and rotated, before QDQ: [S / r, width]. */
static double *compress(pass *p, const dsv4_compressor *m, int64_t r, bool overlap,
                        const double *frequency, const double *u)
{
    int64_t width = m->norm.cols, groups = p->S / r;
    double *a = wide_linear(p, &m->wkv, u, p->S), *z = wide_linear(p, &m->wgate, u, p->S);
    double *ape = load(p, &m->ape), *pooled = values(p, groups * width);
    for (int64_t g = 0; g < groups; g++)
        for (int64_t c = 0; c < width; c++)
            pooled[g * width + c] = bf16(p, pool(p, a, z, ape, r, width, overlap, g, c));
    double *entries = rms_norm(p, &m->norm, pooled, groups);
    for (int64_t g = 0; g < groups; g++)
        rope(p, frequency, entries + g * width, width, g * r, 1);
    return entries;
}

/* QDQ of the values before the rope part. */
static void quantise_entry(const pass *p, double *entry)
{
    act_quant(p, entry, p->c->head_dim - p->c->qk_rope_head_dim, 64);
}

/* ---- the indexer ---- */

/* Hadamard and QDQ of x[rows, width]. Sylvester: the sign is the parity of the common bits. */
static double *hadamard_quant(pass *p, const double *x, int64_t rows, int64_t width)
{
    double *sign = values(p, width * width), factor = f32(p, 1 / sqrt((double)width));
    for (int64_t i = 0; i < width; i++)
        for (int64_t j = 0; j < width; j++)
            sign[i * width + j] = __builtin_parityll((unsigned long long)(i & j)) ? -1 : 1;
    double *y = product(p, sign, width, width, x, rows, width);
    for (int64_t i = 0; i < rows * width; i++)
        y[i] = bf16(p, y[i] * factor);
    for (int64_t row = 0; row < rows; row++)
        index_quant(p, y + row * width, width);
    return y;
}

/* The score of a key for one token's query heads q[n_i, d_i] with head weights w. */
static double index_score(const pass *p, const double *q, const double *w, const double *key)
{
    int64_t heads = p->c->index_n_heads, width = p->c->index_head_dim;
    double score = 0;
    for (int64_t h = 0; h < heads; h++) {
        double match = fmax(bf16(p, dot(p, q + h * width, key, width)), 0);
        score = f32(p, score + bf16(p, w[h] * match));
    }
    return bf16(p, score);
}

/* The indices of the k largest of x[count], descending, the lower index first among equals. */
static void best(const double *x, int64_t count, int64_t k, int64_t *index)
{
    for (int64_t j = 0; j < k; j++) {
        index[j] = -1;
        for (int64_t i = 0; i < count; i++) {
            bool taken = false;
            for (int64_t l = 0; l < j; l++)
                taken = taken || index[l] == i;
            if (!taken && (index[j] < 0 || x[i] > x[index[j]]))
                index[j] = i;
        }
    }
}

/* CSA: the index_topk best visible entries of every token: [S, k]. */
static int64_t *indexer(pass *p, const dsv4_layer *layer, const double *frequency, const double *qr,
                        const double *u, int64_t k)
{
    int64_t heads = p->c->index_n_heads, width = p->c->index_head_dim, groups = p->S / layer->ratio;
    int64_t *selected = array(p, p->S * k, sizeof *selected);
    double *score = values(p, groups);

    double *q = linear(p, &layer->attn.indexer.wq_b, qr, p->S);
    for (int64_t row = 0; row < p->S * heads; row++)
        rope(p, frequency, q + row * width, width, row / heads, 1);
    q = hadamard_quant(p, q, p->S * heads, width);
    show(p, "index_q", layer->index, p->S, heads, width, q);

    double *key = compress(p, &layer->attn.indexer.compressor, layer->ratio, true, frequency, u);
    key = hadamard_quant(p, key, groups, width);
    show(p, "index_k", layer->index, groups, width, 0, key);

    double *w = linear(p, &layer->attn.indexer.weights_proj, u, p->S);
    double factor = f32(p, 1 / sqrt((double)width) / sqrt((double)heads));
    for (int64_t i = 0; i < p->S * heads; i++)
        w[i] = bf16(p, w[i] * factor);

    for (int64_t t = 0; t < p->S; t++) {
        int64_t visible = (t + 1) / layer->ratio;
        for (int64_t g = 0; g < visible; g++)
            score[g] = index_score(p, q + t * heads * width, w + t * heads, key + g * width);
        show_rows(p, "index_score", layer->index, t, 1, visible, 0, score, NULL);
        best(score, visible, k, selected + t * k);
    }
    return selected;
}

/* HCA: every visible entry, ascending: [S, groups]. */
static int64_t *all_visible(pass *p, int64_t ratio)
{
    int64_t groups = p->S / ratio, *selected = array(p, p->S * groups, sizeof *selected);
    for (int64_t t = 0; t < p->S; t++)
        for (int64_t g = 0; g < groups; g++)
            selected[t * groups + g] = g < (t + 1) / ratio ? g : -1;
    return selected;
}

/* ---- attention ---- */

enum { ATTENTION_BLOCK = 64 };

/* What one token attends to: entries, and their slots in the list that RELEASED cuts in blocks. */
typedef struct {
    int64_t count;
    const double **entry;
    int64_t *slot;
    double *logit; /* scratch */
} sight;

/* Window tokens max(0, t - W + 1) .. t take slots from 0, selected entries take slots from W. */
static void look(const pass *p, sight *seen, int64_t t, const double *kv, const double *compressed,
                 const int64_t *selected, int64_t k, int64_t groups)
{
    int64_t W = p->c->sliding_window, d = p->c->head_dim, first = t - W + 1 > 0 ? t - W + 1 : 0;
    seen->count = 0;
    for (int64_t u = first; u <= t; u++) {
        seen->slot[seen->count] = u - first;
        seen->entry[seen->count++] = kv + u * d;
    }
    for (int64_t j = 0; j < k; j++)
        if (selected[t * k + j] >= 0 && selected[t * k + j] < groups) {
            seen->slot[seen->count] = W + j;
            seen->entry[seen->count++] = compressed + selected[t * k + j] * d;
        }
}

/* One head of one token: out[d] = sum_e exp(l_e) e / (sum_e exp(l_e) + exp(sink)) with
 * l_e = q.e / sqrt(d), block by block with a running maximum that leaves the sink out. */
static void attend(const pass *p, const sight *seen, const double *q, double sink, double *out)
{
    int64_t d = p->c->head_dim;
    double factor = f32(p, 1 / sqrt((double)d)), top = -INFINITY, denominator = 0;
    for (int64_t start = 0, end = 0; start < seen->count; start = end) {
        double before = top;
        while (end < seen->count &&
               seen->slot[end] / ATTENTION_BLOCK == seen->slot[start] / ATTENTION_BLOCK) {
            seen->logit[end] = f32(p, dot(p, q, seen->entry[end], d) * factor);
            top = fmax(top, seen->logit[end++]);
        }
        double rescale = f32(p, exp(f32(p, before - top)));
        denominator = f32(p, denominator * rescale);
        for (int64_t i = 0; i < d; i++)
            out[i] = f32(p, out[i] * rescale);
        for (int64_t e = start; e < end; e++) {
            double weight = f32(p, exp(f32(p, seen->logit[e] - top)));
            double numerator = bf16(p, weight);
            denominator = f32(p, denominator + weight);
            for (int64_t i = 0; i < d; i++)
                out[i] = multiply_add(p, out[i], numerator, seen->entry[e][i]);
        }
    }
    denominator = f32(p, denominator + f32(p, exp(f32(p, sink - top))));
    for (int64_t i = 0; i < d; i++)
        out[i] = bf16(p, out[i] / denominator);
}

/* Heads in o_groups consecutive groups, each through its slice of wo_a; all of it through wo_b. */
static double *grouped_output(pass *p, const dsv4_layer *layer, const double *core)
{
    int64_t groups = p->c->o_groups, lora = p->c->o_lora_rank, in = layer->attn.wo_a.cols;
    double *wo_a = load_bf16(p, &layer->attn.wo_a);
    double *slice = values(p, p->S * in), *low = values(p, p->S * groups * lora);
    for (int64_t o = 0; o < groups; o++) {
        for (int64_t t = 0; t < p->S; t++)
            memcpy(slice + t * in, core + (t * groups + o) * in, (size_t)in * sizeof *slice);
        double *part = product(p, wo_a + o * lora * in, lora, in, slice, p->S, in);
        for (int64_t t = 0; t < p->S; t++)
            memcpy(low + (t * groups + o) * lora, part + t * lora, (size_t)lora * sizeof *low);
    }
    return linear(p, &layer->attn.wo_b, rounded(p, low, p->S * groups * lora), p->S);
}

/* u: the normed input [S, D]. */
static double *attention(pass *p, const dsv4_layer *layer, const double *u)
{
    int64_t S = p->S, H = p->c->num_attention_heads, d = p->c->head_dim;
    double *frequency = frequencies(p, layer->kind), *sink = load(p, &layer->attn.attn_sink);

    double *qr = rms_norm(p, &layer->attn.q_norm, linear(p, &layer->attn.wq_a, u, S), S);
    double *q = linear(p, &layer->attn.wq_b, qr, S);
    for (int64_t row = 0; row < S * H; row++) {
        normalise_head(p, q + row * d, d);
        rope(p, frequency, q + row * d, d, row / H, 1);
    }
    show(p, "q", layer->index, S, H, d, q);

    double *kv = rms_norm(p, &layer->attn.kv_norm, linear(p, &layer->attn.wkv, u, S), S);
    for (int64_t t = 0; t < S; t++) {
        rope(p, frequency, kv + t * d, d, t, 1);
        quantise_entry(p, kv + t * d);
    }
    show(p, "kv", layer->index, S, d, 0, kv);

    double *compressed = NULL;
    int64_t *selected = NULL, groups = 0, k = 0;
    if (layer->kind != DSV4_SWA) {
        bool csa = layer->kind == DSV4_CSA;
        groups = S / layer->ratio;
        compressed = compress(p, &layer->attn.compressor, layer->ratio, csa, frequency, u);
        for (int64_t g = 0; g < groups; g++)
            quantise_entry(p, compressed + g * d);
        show(p, "compressed", layer->index, groups, d, 0, compressed);
        k = csa && p->c->index_topk < groups ? p->c->index_topk : groups;
        selected = csa ? indexer(p, layer, frequency, qr, u, k) : all_visible(p, layer->ratio);
        show_rows(p, "selected", layer->index, 0, S, k, 0, NULL, selected);
    }

    double *core = values(p, S * H * d);
    sight seen = {.entry = array(p, S + k, sizeof *seen.entry),
                  .slot = array(p, S + k, sizeof *seen.slot), .logit = values(p, S + k)};
    for (int64_t t = 0; t < S; t++) {
        look(p, &seen, t, kv, compressed, selected, k, groups);
        for (int64_t h = 0; h < H; h++)
            attend(p, &seen, q + (t * H + h) * d, sink[h], core + (t * H + h) * d);
    }
    show(p, "attn_core", layer->index, S, H, d, core);
    for (int64_t row = 0; row < S * H; row++)
        rope(p, frequency, core + row * d, d, row / H, -1);
    return grouped_output(p, layer, core);
}

/* ---- mixture of experts ---- */

/* w2(weight silu(w1 x) w3 x) for x[rows, D]; `weight` NULL: unweighted. */
static double *expert(pass *p, const dsv4_expert *e, const double *x, int64_t rows,
                      const double *weight)
{
    int64_t I = e->w1.rows;
    double limit = p->c->swiglu_limit;
    double *gate = linear(p, &e->w1, x, rows), *value = linear(p, &e->w3, x, rows);
    for (int64_t i = 0; i < rows * I; i++) {
        double g = limit > 0 ? fmin(gate[i], limit) : gate[i];
        double v = limit > 0 ? fmin(fmax(value[i], -limit), limit) : value[i];
        double y = f32(p, f32(p, g * sigmoid(p, g)) * v);
        gate[i] = bf16(p, weight ? f32(p, y * weight[i / I]) : y);
    }
    return linear(p, &e->w2, gate, rows);
}

/* The experts of every token, [S, k], and their weights. */
static int64_t *route(pass *p, const dsv4_layer *layer, const double *u, double **weights)
{
    int64_t E = p->c->n_routed_experts, k = p->c->num_experts_per_tok;
    int64_t *index = array(p, p->S * k, sizeof *index);
    double *score = wide_linear(p, &layer->ffn.gate.weight, u, p->S);
    double *weight = *weights = values(p, p->S * k), *biased = values(p, E);
    for (int64_t i = 0; i < p->S * E; i++)
        score[i] = f32(p, sqrt(softplus(p, score[i])));

    for (int64_t t = 0; t < p->S; t++) {
        for (int64_t e = 0; !layer->hash && e < E; e++)
            biased[e] = f32(p, score[t * E + e] + element(&layer->ffn.gate.bias, 0, e));
        if (!layer->hash)
            best(biased, E, k, index + t * k);
        for (int64_t j = 0; layer->hash && j < k; j++)
            index[t * k + j] = integer_element(&layer->ffn.gate.tid2eid, p->ids[t], j);
    }
    show_rows(p, "route_index", layer->index, 0, p->S, k, 0, NULL, index);

    for (int64_t t = 0; t < p->S; t++) {
        double sum = 0;
        for (int64_t j = 0; j < k; j++) {
            int64_t e = index[t * k + j];
            p->failed = p->failed || e < 0 || e >= E;
            weight[t * k + j] = e < 0 || e >= E ? NAN : score[t * E + e];
            sum = f32(p, sum + weight[t * k + j]);
        }
        for (int64_t i = t * k; i < (t + 1) * k; i++) {
            double share = p->c->norm_topk_prob ? f32(p, weight[i] / sum) : weight[i];
            weight[i] = f32(p, share * f32(p, p->c->routed_scaling_factor));
        }
    }
    show(p, "route_weight", layer->index, p->S, k, 0, weight);
    return index;
}

/* u: the normed input [S, D]. Experts are added in rising order, then the shared one. */
static double *moe(pass *p, const dsv4_layer *layer, const double *u)
{
    int64_t S = p->S, D = p->c->hidden_size, k = p->c->num_experts_per_tok;
    double *weight, *out = values(p, S * D), *x = values(p, S * k * D), *its = values(p, S * k);
    int64_t *token = array(p, S * k, sizeof *token), *index = route(p, layer, u, &weight);
    for (int64_t e = 0; e < p->c->n_routed_experts; e++) {
        int64_t rows = 0;
        for (int64_t i = 0; i < S * k; i++)
            if (index[i] == e) {
                memcpy(x + rows * D, u + i / k * D, (size_t)D * sizeof *x);
                its[rows] = weight[i];
                token[rows++] = i / k;
            }
        double *y = rows ? expert(p, &layer->ffn.experts[e], x, rows, its) : NULL;
        for (int64_t i = 0; i < rows * D; i++)
            out[token[i / D] * D + i % D] = f32(p, out[token[i / D] * D + i % D] + y[i]);
    }
    double *shared = expert(p, &layer->ffn.shared_experts, u, S, NULL);
    for (int64_t i = 0; i < S * D; i++)
        out[i] = bf16(p, out[i] + shared[i]);
    return out;
}

/* ---- the whole pass ---- */

/* One layer on the streams [S, n, D], in place. */
static void block(pass *p, const dsv4_layer *layer, double *streams)
{
    int64_t S = p->S, n = p->c->hc_mult, D = p->c->hidden_size;

    double *mixes = hc_mixes(p, &layer->hc_attn, streams);
    double *u = hc_collapse(p, &layer->hc_attn, mixes, streams);
    show(p, "attn_in", layer->index, S, D, 0, u);
    double *y = attention(p, layer, rms_norm(p, &layer->attn_norm, u, S));
    show(p, "attn_out", layer->index, S, D, 0, y);
    hc_expand(p, &layer->hc_attn, mixes, y, streams);
    show(p, "mid", layer->index, S, n, D, streams);
    clear(p);

    mixes = hc_mixes(p, &layer->hc_ffn, streams);
    u = hc_collapse(p, &layer->hc_ffn, mixes, streams);
    show(p, "ffn_in", layer->index, S, D, 0, u);
    y = moe(p, layer, rms_norm(p, &layer->ffn_norm, u, S));
    show(p, "ffn_out", layer->index, S, D, 0, y);
    hc_expand(p, &layer->hc_ffn, mixes, y, streams);
    show(p, "out", layer->index, S, n, D, streams);
    clear(p);
}

static void head(pass *p, const dsv4_hc *hc, const dsv4_matrix *norm, const double *streams,
                 double *logits)
{
    double *u = hc_collapse(p, hc, hc_mixes(p, hc, streams), streams);
    double *y = wide_linear(p, &p->model->head, rms_norm(p, norm, u, p->S), p->S);
    memcpy(logits, y, (size_t)(p->S * p->c->vocab_size) * sizeof *logits);
    clear(p);
}

/* The embeddings of tokens ids[(t + shift) % S]: [S, D]. */
static double *embed(pass *p, int64_t shift)
{
    int64_t D = p->c->hidden_size;
    double *x = values(p, p->S * D);
    for (int64_t i = 0; i < p->S * D; i++)
        x[i] = bf16(p, element(&p->model->embed, p->ids[(i / D + shift) % p->S], i % D));
    return x;
}

/* The first MTP layer, on the streams after the last layer and each token's successor. */
static void predict_next(pass *p, double *streams, double *logits)
{
    const dsv4_layer *layer = &p->model->mtp[0];
    int64_t n = p->c->hc_mult, D = p->c->hidden_size;
    double *e = linear(p, &layer->e_proj, rms_norm(p, &layer->enorm, embed(p, 1), p->S), p->S);
    double *h = linear(p, &layer->h_proj, rms_norm(p, &layer->hnorm, streams, p->S * n), p->S * n);
    for (int64_t i = 0; i < p->S * n * D; i++)
        streams[i] = bf16(p, e[i / (n * D) * D + i % D] + h[i]);
    clear(p);
    show(p, "in", layer->index, p->S, n, D, streams);
    block(p, layer, streams);
    head(p, &layer->hc_head, &layer->norm, streams, logits);
}

static void fill_grids(pass *p)
{
    for (unsigned code = 0; code < 0x7f81; code++)
        p->bf16[code] = minifloat(code, 8, 7);
    for (unsigned code = 0; code < 0x7f; code++)
        p->e4m3[code] = minifloat(code, 4, 3);
    for (unsigned code = 0; code < 8; code++)
        p->e2m1[code] = minifloat(code, 2, 1);
}

int direct_forward(const dsv4_model *model, dsv4_numerics numerics, const int64_t *ids, int64_t n,
                   double *logits, double *mtp_logits, const dsv4_tap *tap)
{
    const dsv4_config *c = &model->config;
    if (n < 1 || (mtp_logits && !model->mtp))
        return -1;
    for (int64_t t = 0; t < n; t++)
        if (ids[t] < 0 || ids[t] >= c->vocab_size)
            return -1;
    pass *p = dsv4_alloc(1, sizeof *p);
    *p = (pass){.model = model, .c = c, .released = numerics == DSV4_RELEASED, .ids = ids, .S = n,
                .tap = tap};
    fill_grids(p);

    double *streams = dsv4_alloc((size_t)(n * c->hc_mult * c->hidden_size), sizeof *streams);
    double *x = embed(p, 0);
    for (int64_t i = 0; i < n * c->hc_mult; i++)
        memcpy(streams + i * c->hidden_size, x + i / c->hc_mult * c->hidden_size,
               (size_t)c->hidden_size * sizeof *x);
    for (int64_t l = 0; l < c->num_hidden_layers; l++)
        block(p, &model->layers[l], streams);
    head(p, &model->hc_head, &model->norm, streams, logits);
    if (mtp_logits)
        predict_next(p, streams, mtp_logits);

    int status = p->failed ? -1 : 0;
    clear(p);
    free(p->pool);
    free(streams);
    free(p);
    return status;
}
