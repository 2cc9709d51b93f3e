/* The elements: formats and quantisation, linear maps, norms, rotary positions, and the small
 * operators beside them. */
#include "museum.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static double *new_array(int64_t count)
{
    return dsv4_alloc(count > 0 ? (size_t)count : 1, sizeof(double));
}

static double *copy_of(const double *x, int64_t count)
{
    double *y = new_array(count);
    memcpy(y, x, (size_t)count * sizeof *y);
    return y;
}

/* ---- formats ---- */

static double decode_e4m3(const museum *m, uint8_t code)
{
    int e = code >> 3 & 15, mantissa = code & 7;
    double magnitude = e == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, e - 10);
    if (e == 15 && mantissa == 7)
        return NAN;
    if (bug(m, E4M3_NO_SUBNORMALS) && e == 0)
        magnitude = 0;
    if (bug(m, E4M3_BIAS_8)) /* the "fnuz" kind of E4M3 */
        magnitude /= 2;
    return code & 0x80 ? -magnitude : magnitude;
}

static double decode_e2m1(const museum *m, int code)
{
    static const double magnitudes[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    double magnitude = bug(m, E2M1_LINEAR) ? code & 7 : magnitudes[code & 7];
    return code & 8 ? -magnitude : magnitude;
}

/* The value at `place` of a row of packed codes. */
static double decode_packed(const museum *m, const uint8_t *row, int64_t place)
{
    bool high = (place % 2 == 1) != bug(m, NIBBLE_ORDER);
    return decode_e2m1(m, row[place / 2] >> (high ? 4 : 0) & 15);
}

static double decode_e8m0(const museum *m, uint8_t code)
{
    int bias = bug(m, E8M0_BIAS_126) ? 126 : bug(m, E8M0_BIAS_128) ? 128 : 127;
    return code == 255 ? NAN : ldexp(1, code - bias);
}

static double ties_to_even(double x)
{
    return nearbyint(x);
}

/* x to a whole number of the format's steps around it. Nothing passes the largest value, which is
 * such a number itself. */
static double encode(double x, int mantissa_bits, int min_exponent, double largest,
                     double to_integer(double))
{
    if (isnan(x))
        return x;
    x = fmax(fmin(x, largest), -largest);
    int exponent = x == 0 ? min_exponent : ilogb(x);
    double step = ldexp(1, (exponent > min_exponent ? exponent : min_exponent) - mantissa_bits);
    return to_integer(x / step) * step;
}

static double encode_e4m3(const museum *m, double x)
{
    return encode(x, 3, -6, 448, bug(m, E4M3_TRUNCATED) ? trunc : ties_to_even);
}

static double encode_e2m1(const museum *m, double x)
{
    return encode(x, 1, 0, 6, bug(m, E2M1_TIES_AWAY) ? round : ties_to_even);
}

/* ---- stored matrices ---- */

static double read_f32(const uint8_t *at)
{
    float x;
    memcpy(&x, at, sizeof x);
    return (double)x;
}

static double read_bf16(const uint8_t *at)
{
    uint32_t bits = (uint32_t)at[0] << 16 | (uint32_t)at[1] << 24;
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

static double read_f16(const uint8_t *at)
{
    int bits = at[0] | at[1] << 8, e = bits >> 10 & 31, mantissa = bits & 1023;
    double magnitude = e == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, e - 25);
    if (e == 31)
        magnitude = mantissa == 0 ? INFINITY : NAN;
    return bits & 0x8000 ? -magnitude : magnitude;
}

/* Values [begin, end) of a row lie in one block, and share its scale. */
static void decode_block(museum *m, const dsv4_matrix *w, int64_t row, int64_t begin, int64_t end,
                         double scale, double *values)
{
    const uint8_t *data = w->data;
    bool fp4 = w->dtype == DSV4_I8;
    const uint8_t *codes = data + row * (fp4 ? w->cols / 2 : w->cols);
    if (bug(m, SCALE_IGNORED))
        scale = 1;
    for (int64_t i = begin; i < end; i++)
        values[i] = m_op(m, (fp4 ? decode_packed(m, codes, i) : decode_e4m3(m, codes[i])) * scale);
}

static double fp8_scale(const museum *m, const dsv4_matrix *w, int64_t row, int64_t col)
{
    int64_t across = (w->cols + 127) / 128, down = (w->rows + 127) / 128;
    int64_t i = row / 128, j = col / 128;
    if (bug(m, FP8_SCALE_EVEN_SPLIT)) {
        i = row / ((w->rows + down - 1) / down);
        j = col / ((w->cols + across - 1) / across);
    }
    if (bug(m, FP8_SCALE_TRANSPOSED))
        return decode_e8m0(m, w->scale[j * down + i]);
    if (bug(m, FP8_SCALE_PER_ROW))
        j = 0;
    return decode_e8m0(m, w->scale[i * across + j]);
}

static double fp4_scale(const museum *m, const dsv4_matrix *w, int64_t row, int64_t col)
{
    int64_t across = w->cols / 32;
    int64_t j = bug(m, FP4_SCALE_PER_16) ? col / 16 % across : col / 32;
    if (bug(m, FP4_SCALE_PER_16_CLAMPED))
        j = col / 16 < across ? col / 16 : across - 1;
    return decode_e8m0(m, w->scale[row * across + j]);
}

static void decode_row(museum *m, const dsv4_matrix *w, int64_t row, double *values)
{
    const uint8_t *data = w->data;
    int64_t first = row * w->cols, block = w->dtype == DSV4_I8 ? 16 : 128;
    if (w->dtype == DSV4_F8_E4M3 && bug(m, FP8_SCALE_EVEN_SPLIT))
        block = 1; /* its blocks end anywhere */
    switch (w->dtype) {
    case DSV4_F32:
        for (int64_t i = 0; i < w->cols; i++)
            values[i] = read_f32(data + 4 * (first + i));
        break;
    case DSV4_BF16:
        for (int64_t i = 0; i < w->cols; i++)
            values[i] = read_bf16(data + 2 * (first + i));
        break;
    case DSV4_F16:
        for (int64_t i = 0; i < w->cols; i++)
            values[i] = read_f16(data + 2 * (first + i));
        break;
    case DSV4_F8_E4M3:
    case DSV4_I8:
        for (int64_t i = 0; i < w->cols; i += block) {
            double scale = w->dtype == DSV4_I8 ? fp4_scale(m, w, row, i) : fp8_scale(m, w, row, i);
            decode_block(m, w, row, i, i + block < w->cols ? i + block : w->cols, scale, values);
        }
        break;
    default: /* a dtype that holds no values: what uses it shows as NaN */
        for (int64_t i = 0; i < w->cols; i++)
            values[i] = NAN;
    }
}

double *m_matrix(museum *m, const dsv4_matrix *w)
{
    double *values = new_array(w->rows * w->cols);
    for (int64_t row = 0; row < w->rows; row++)
        decode_row(m, w, row, values + row * w->cols);
    return values;
}

double *m_vector(museum *m, const dsv4_matrix *w)
{
    return m_matrix(m, w);
}

int64_t m_integer(const dsv4_matrix *w, int64_t row, int64_t col)
{
    const uint8_t *data = w->data;
    int64_t at = row * w->cols + col, wide;
    int32_t narrow;
    if (w->dtype == DSV4_I32) {
        memcpy(&narrow, data + 4 * at, sizeof narrow);
        return narrow;
    }
    memcpy(&wide, data + 8 * at, sizeof wide);
    return wide;
}

/* ---- quantised activations ---- */

/* What the scale of a block must reach: amax (1 / largest) in binary32. */
static double least_scale(const double *x, int64_t count, double floor, double largest)
{
    double amax = floor;
    for (int64_t i = 0; i < count; i++)
        amax = fmax(amax, fabs(x[i]));
    return m_to_f32(m_to_f32(amax) * m_to_f32(1 / largest));
}

static double power_of_two_from(double least)
{
    double power = isfinite(least) ? ldexp(1, ilogb(least)) : least;
    return power < least ? 2 * power : power;
}

static double fp8_block_scale(const museum *m, const double *x, int64_t count)
{
    /* Without the floor an engine still keeps clear of a scale of 0. */
    double floor = bug(m, ACT_QUANT_FLOOR_MISSING) ? 448 * (double)FLT_MIN : m_to_f32(1e-4);
    double least = least_scale(x, count, floor, 448), scale = power_of_two_from(least);
    if (bug(m, ACT_QUANT_EXACT_SCALE))
        scale = least;
    if (bug(m, ACT_QUANT_SCALE_FLOOR) && scale > least)
        scale /= 2;
    return scale;
}

static void fp8_blocks(museum *m, double *x, int64_t count, int64_t block)
{
    for (int64_t first = 0; first < count; first += block) {
        int64_t end = first + block < count ? first + block : count;
        double scale = fp8_block_scale(m, x + first, end - first);
        for (int64_t i = first; i < end; i++)
            x[i] = m_op(m, encode_e4m3(m, m_op(m, x[i] / scale)) * scale);
    }
}

void m_act_quant(museum *m, double *x, int64_t rows, int64_t cols, int64_t block)
{
    if (!released(m) || bug(m, ACT_QUANT_MISSING))
        return;
    if (bug(m, ACT_QUANT_WHOLE_ROW))
        block = cols;
    for (int64_t row = 0; row < rows; row++)
        fp8_blocks(m, x + row * cols, cols, block);
}

void m_qdq_kv(museum *m, double *entry, int64_t d)
{
    int64_t count = d - (bug(m, KV_QDQ_ROPE_TOO) ? 0 : m->config->qk_rope_head_dim);
    if (!released(m))
        return;
    if (!bug(m, KV_QDQ_IDENTITY)) /* x / scale in bf16, times a power of two: x */
        fp8_blocks(m, entry, count, bug(m, KV_QDQ_BLOCK_128) ? 128 : 64);
    m_bf16_all(m, entry, count);
}

void m_qdq_index(museum *m, double *x, int64_t d_i)
{
    int64_t block = bug(m, INDEX_QDQ_WHOLE_HEAD) ? d_i : 32;
    if (!released(m) || bug(m, INDEX_QDQ_MISSING))
        return;
    for (int64_t first = 0; first < d_i; first += block) {
        int64_t end = first + block < d_i ? first + block : d_i;
        double scale = power_of_two_from(least_scale(x + first, end - first, 6 * 0x1p-126, 6));
        for (int64_t i = first; i < end; i++)
            x[i] = m_bf16(m, encode_e2m1(m, m_op(m, x[i] / scale)) * scale);
    }
}

/* ---- linear ---- */

static bool has_codes(const dsv4_matrix *w)
{
    return w->dtype == DSV4_F8_E4M3 || w->dtype == DSV4_I8;
}

/* The dot of a and b by blocks, whose sums are then added, as scaled kernels do it. Codes come
 * with their scales here: powers of two change no rounding. */
static double dot_in_blocks(museum *m, const double *a, const double *b, int64_t count,
                            int64_t block, double *parts)
{
    int64_t blocks = (count + block - 1) / block;
    for (int64_t i = 0; i < blocks; i++) {
        int64_t first = i * block, left = count - first;
        parts[i] = m_dot(m, a + first, b + first, left < block ? left : block);
    }
    return m_sum(m, parts, blocks, 1);
}

static void product(museum *m, const double *w, int64_t rows, int64_t cols, int64_t block,
                    const double *x, int64_t T, double *y)
{
    double *parts = new_array(cols / block + 1);
    for (int64_t t = 0; t < T; t++)
        for (int64_t o = 0; o < rows; o++)
            y[t * rows + o] = dot_in_blocks(m, w + o * cols, x + t * cols, cols, block, parts);
    free(parts);
}

static void transpose(const double *x, int64_t rows, int64_t cols, double *y)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            y[j * rows + i] = x[i * cols + j];
}

static double *linear_weights(museum *m, const dsv4_matrix *w)
{
    double *values = m_matrix(m, w);
    if (bug(m, LINEAR_TRANSPOSED) && w->rows == w->cols) {
        double *turned = new_array(w->rows * w->cols);
        transpose(values, w->rows, w->cols, turned);
        free(values);
        values = turned;
    }
    if (!has_codes(w))
        m_bf16_all(m, values, w->rows * w->cols);
    return values;
}

void m_linear(museum *m, const dsv4_matrix *w, const double *x, int64_t T, double *y)
{
    bool codes = has_codes(w);
    double *values = linear_weights(m, w), *in = copy_of(x, T * w->cols);
    int64_t block = codes && released(m) ? w->dtype == DSV4_I8 ? 32 : 128 : w->cols;
    if (codes && !(w->dtype == DSV4_I8 && bug(m, FP4_INPUT_NOT_QUANTISED)))
        m_act_quant(m, in, T, w->cols, 128);
    product(m, values, w->rows, w->cols, block, in, T, y);
    m_bf16_all(m, y, T * w->rows);
    free(in);
    free(values);
}

void m_linear_f32(museum *m, const dsv4_matrix *w, const double *x, int64_t T, double *y)
{
    double *values = m_matrix(m, w);
    product(m, values, w->rows, w->cols, w->cols, x, T, y);
    for (int64_t i = 0; i < T * w->rows; i++)
        y[i] = m_f32(m, m_mid(m, y[i]));
    free(values);
}

void m_linear_grouped(museum *m, const dsv4_matrix *w, int64_t groups, const double *x, int64_t T,
                      double *y)
{
    int64_t K = w->cols, out = w->rows / groups;
    double *values = m_matrix(m, w), *in = copy_of(x, T * groups * K);
    m_bf16_all(m, values, w->rows * K);
    if (bug(m, GROUPED_QUANTISED) && has_codes(w))
        m_act_quant(m, in, T * groups, K, 128);
    for (int64_t t = 0; t < T && bug(m, GROUPED_INTERLEAVED); t++)
        transpose(x + t * groups * K, K, groups, in + t * groups * K);
    for (int64_t t = 0; t < T; t++)
        for (int64_t g = 0; g < groups; g++)
            product(m, values + g * out * K, out, K, K, in + (t * groups + g) * K, 1,
                    y + (t * groups + g) * out);
    m_bf16_all(m, y, T * w->rows);
    free(in);
    free(values);
}

/* ---- rmsnorm ---- */

static void norm_row(museum *m, const double *w, const double *x, int64_t count, double *y)
{
    double N = bug(m, RMSNORM_SUM) ? 1 : (double)count;
    double eps = bug(m, RMSNORM_EPS_MISSING) ? 0 : m_op(m, m->config->rms_norm_eps);
    double centre = bug(m, RMSNORM_CENTRED) ? m_op(m, m_sum(m, x, count, 1) / (double)count) : 0;
    for (int64_t i = 0; i < count; i++)
        y[i] = x[i] - centre;
    double mean = m_op(m, m_dot(m, y, y, count) / N);
    double root = sqrt(m_op(m, mean + eps));
    if (bug(m, RMSNORM_EPS_OUTSIDE_ROOT))
        root = sqrt(mean) + eps;
    double r = m_f32(m, m_fn(m, 1 / root));
    for (int64_t i = 0; i < count; i++) {
        double scaled = m_f32(m, m_mid(m, y[i] * r));
        y[i] = m_bf16(m, m_f32(m, scaled * (bug(m, RMSNORM_WEIGHT_PLUS_ONE) ? 1 + w[i] : w[i])));
    }
}

void m_rmsnorm(museum *m, const dsv4_matrix *w, const double *x, int64_t T, double *y)
{
    double *weight = m_vector(m, w);
    for (int64_t t = 0; t < T; t++)
        norm_row(m, weight, x + t * w->cols, w->cols, y + t * w->cols);
    free(weight);
}

/* Released names every step as a bf16 number. */
static void norm_head(museum *m, double *x, int64_t count)
{
    double eps = bug(m, HEAD_NORM_EPS_MISSING) ? 0 : m_op(m, m->config->rms_norm_eps);
    double (*step)(museum *, double) = bug(m, HEAD_NORM_BINARY32) ? m_f32 : m_bf16;
    double *square = new_array(count);
    for (int64_t i = 0; i < count; i++)
        square[i] = step(m, x[i] * x[i]);
    double mean = step(m, m_sum(m, square, count, 1) / (double)count);
    double r = step(m, m_fn(m, 1 / sqrt(step(m, mean + eps))));
    for (int64_t i = 0; i < count; i++)
        x[i] = m_bf16(m, x[i] * r);
    free(square);
}

void m_rmsnorm_head(museum *m, double *x, int64_t T, int64_t H, int64_t d)
{
    int64_t width = bug(m, HEAD_NORM_ALL_HEADS) ? H * d : d;
    for (int64_t i = 0; i < T * H * d && !bug(m, HEAD_NORM_MISSING); i += width)
        norm_head(m, x + i, width);
}

/* ---- rope ---- */

/* The pair, as a real number, that turns `turns` times over the original length. */
static double yarn_pair(const dsv4_config *c, double theta, double turns)
{
    double length = c->rope_scaling.original_max_position_embeddings;
    return (double)c->qk_rope_head_dim * log(length / (2 * M_PI * turns)) / (2 * log(theta));
}

static void yarn(museum *m, double theta, double *freq)
{
    const dsv4_config *c = m->config;
    int64_t R = c->qk_rope_head_dim;
    bool swapped = bug(m, YARN_BETAS_SWAPPED);
    double low = yarn_pair(c, theta, swapped ? c->rope_scaling.beta_slow
                                             : c->rope_scaling.beta_fast);
    double high = yarn_pair(c, theta, swapped ? c->rope_scaling.beta_fast
                                              : c->rope_scaling.beta_slow);
    if (!bug(m, YARN_CORRECTION_NOT_ROUNDED)) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)(bug(m, YARN_HIGH_CLAMPED_TO_PAIRS) ? R / 2 - 1 : R - 1));
    double span = high == low ? 0.001 : high - low, factor = m_f32(m, c->rope_scaling.factor);
    for (int64_t i = 0; i < R / 2; i++) {
        double ramp = fmax(0, fmin(1, m_f32(m, ((double)i - low) / span)));
        if (bug(m, YARN_RAMP_REVERSED))
            ramp = m_f32(m, 1 - ramp);
        if (bug(m, LINEAR_SCALING))
            ramp = 1;
        double slow = m_f32(m, m_f32(m, freq[i] / factor) * ramp);
        freq[i] = m_f32(m, slow + m_f32(m, freq[i] * m_f32(m, 1 - ramp)));
    }
}

/* Where the head size is unknown, its relation to R is that of the released models. */
static int64_t rope_dim(const museum *m)
{
    int64_t R = m->config->qk_rope_head_dim, d = m->config->head_dim;
    if (bug(m, ROPE_HEAD_DIM))
        return d > 0 ? d : 8 * R;
    return R;
}

static double rope_theta(const museum *m, bool compressed)
{
    if (!compressed)
        return bug(m, COMPRESS_THETA_ON_SWA) ? m->config->compress_rope_theta
                                             : m->config->rope_theta;
    if (bug(m, COMPRESS_THETA_10000))
        return 10000;
    return bug(m, COMPRESS_THETA_40000) ? 40000 : m->config->compress_rope_theta;
}

void m_frequencies(museum *m, bool compressed, double *freq)
{
    double theta = rope_theta(m, compressed), width = (double)rope_dim(m);
    for (int64_t i = 0; i < m->config->qk_rope_head_dim / 2; i++) {
        double p = pow(theta, (double)(2 * i) / width);
        p = released(m) || i == 0 ? m_to_f32(p) : m_fn(m, p); /* theta^0 is 1 in every library */
        freq[i] = bug(m, ROPE_FREQUENCIES_INVERTED) ? p : m_f32(m, 1 / p);
    }
    if (m->config->rope_scaling.present && (compressed || bug(m, YARN_ON_SWA)) &&
        !bug(m, YARN_MISSING))
        yarn(m, theta, freq);
}

static double rope_angle(museum *m, int64_t position, double freq)
{
    double angle = (double)position * freq;
    bool finer = released(m) && m->engine->seed % 4 == 3; /* it may be more precise than binary32 */
    return finer ? angle : m_f32(m, angle);
}

static void deinterleave(double *x, int64_t count)
{
    double *pairs = copy_of(x, count);
    transpose(pairs, count / 2, 2, x);
    free(pairs);
}

void m_rope(museum *m, const double *freq, bool compressed, int64_t position, int direction,
            double *x, int64_t width)
{
    const dsv4_config *c = m->config;
    int64_t R = c->qk_rope_head_dim;
    bool half_split = bug(m, ROPE_HALF_SPLIT);
    double *part = bug(m, ROPE_FIRST_DIMS) ? x : x + width - R, scale = 1;
    if (bug(m, YARN_MSCALE) && compressed && c->rope_scaling.present)
        scale = m_op(m, 0.1 * log(c->rope_scaling.factor) + 1);
    if (bug(m, ROPE_DIRECTION))
        direction = -direction;
    for (int64_t i = 0; i < R / 2; i++) {
        double *a = part + (half_split ? i : 2 * i), *b = half_split ? a + R / 2 : a + 1;
        double angle = rope_angle(m, position, freq[i]);
        double cosine = m_f32(m, m_mid(m, m_fn(m, cos(angle)) * scale));
        double sine = m_f32(m, m_mid(m, m_fn(m, sin(angle)) * scale)) * direction;
        double turned_a = m_op(m, *a * cosine) - m_op(m, *b * sine);
        double turned_b = m_op(m, *a * sine) + m_op(m, *b * cosine);
        *a = m_bf16(m, turned_a);
        *b = m_bf16(m, turned_b);
    }
    if (bug(m, ROPE_NEOX_TO_GPTJ))
        deinterleave(part, R);
}

/* ---- hadamard, embed ---- */

/* Row `i` by the number of its changes of sign: bits of the Gray code of i, reversed. */
static int64_t sequency_row(int64_t i, int64_t count)
{
    int64_t gray = i ^ i >> 1, row = 0;
    for (int64_t bit = 1; bit < count; bit *= 2, gray >>= 1)
        row = 2 * row + (gray & 1);
    return row;
}

void m_hadamard(museum *m, double *x, int64_t count)
{
    double factor = bug(m, HADAMARD_UNSCALED) ? 1 : m_f32(m, 1 / sqrt((double)count));
    double *in = copy_of(x, count), *term = new_array(count);
    for (int64_t i = 0; i < count; i++) {
        int64_t row = bug(m, HADAMARD_SEQUENCY) ? sequency_row(i, count) : i;
        for (int64_t j = 0; j < count; j++)
            term[j] = __builtin_parityll((unsigned long long)(row & j)) ? -in[j] : in[j];
        x[i] = m_bf16(m, m_sum(m, term, count, 1) * factor);
    }
    free(term);
    free(in);
}

void m_embed(museum *m, const dsv4_matrix *embed, const int64_t *ids, int64_t T, double *h)
{
    int64_t D = embed->cols, n = m->config->hc_mult;
    double scale = bug(m, EMBED_SCALED) ? sqrt((double)D) : 1, *row = new_array(D);
    for (int64_t t = 0; t < T; t++) {
        decode_row(m, embed, ids[t], row);
        for (int64_t i = 0; i < n * D; i++)
            h[t * n * D + i] = m_bf16(m, row[i % D] * scale);
        if (bug(m, EMBED_FIRST_STREAM))
            memset(h + (t * n + 1) * D, 0, (size_t)((n - 1) * D) * sizeof *h);
    }
    free(row);
}

/* ---- muon ---- */

/* z = x y, with y [inner, cols] given by its transpose. */
static void multiply(museum *m, const double *x, const double *y_transposed, int64_t rows,
                     int64_t inner, int64_t cols, double *z)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            z[i * cols + j] = m_mid(m, m_dot(m, x + i * inner, y_transposed + j * inner, inner));
}

/* X [rows, cols] <- a X + (b A + c A^2) X with A = X X^T, which is symmetric as A^2 is. */
static void newton_schulz(museum *m, const double *abc, double *X, int64_t rows, int64_t cols)
{
    double *A = new_array(rows * rows), *poly = new_array(rows * rows);
    double *turned = new_array(rows * cols), *next = new_array(rows * cols);
    multiply(m, X, X, rows, cols, rows, A);
    multiply(m, A, A, rows, rows, rows, poly);
    for (int64_t i = 0; i < rows * rows; i++)
        poly[i] = m_mid(m, m_op(m, abc[1] * A[i]) + m_op(m, abc[2] * poly[i]));
    transpose(X, rows, cols, turned);
    multiply(m, poly, turned, rows, rows, cols, next);
    for (int64_t i = 0; i < rows * cols; i++)
        X[i] = m_mid(m, m_op(m, abc[0] * X[i]) + next[i]);
    free(next);
    free(turned);
    free(poly);
    free(A);
}

static void orthogonalise(museum *m, double *X, int64_t rows, int64_t cols)
{
    static const double approach[3] = {3.4445, -4.7750, 2.0315}, polish[3] = {2, -1.5, 0.5};
    double norm = m_fn(m, sqrt(m_dot(m, X, X, rows * cols)));
    for (int64_t i = 0; i < rows * cols && norm > 0 && !bug(m, MUON_NOT_NORMALISED); i++)
        X[i] = m_mid(m, X[i] / norm);
    for (int step = 0; step < (bug(m, MUON_NO_POLISH) ? 8 : 10); step++)
        newton_schulz(m, step < 8 || bug(m, MUON_QUINTIC_10) ? approach : polish, X, rows, cols);
}

static void orthogonalise_wide(museum *m, double *X, int64_t rows, int64_t cols)
{
    if (rows <= cols || bug(m, MUON_NOT_TRANSPOSED)) {
        orthogonalise(m, X, rows, cols);
        return;
    }
    double *turned = new_array(rows * cols);
    transpose(X, rows, cols, turned);
    orthogonalise(m, turned, cols, rows);
    transpose(turned, cols, rows, X);
    free(turned);
}

void m_muon(museum *m, const dsv4_case *c, int64_t rows, int64_t cols, const double *G, double *B,
            double *M)
{
    double mu = m_op(m, dsv4_case_param(c, "momentum", 0.95));
    double lr = m_op(m, dsv4_case_param(c, "learning_rate", 0));
    double decay = bug(m, MUON_NO_DECAY) ? 0 : dsv4_case_param(c, "weight_decay", 0.1);
    double new_share = bug(m, MUON_MOMENTUM_EMA) ? m_op(m, 1 - mu) : 1;
    double side = (double)((rows > cols) != bug(m, MUON_SCALE_MIN) ? rows : cols);
    double rate = m_op(m, lr * m_op(m, dsv4_case_param(c, "rescale", 0.18) * m_fn(m, sqrt(side))));
    if (bug(m, MUON_SCALE_ASPECT)) /* of the first Muon: sqrt(max(1, rows / cols)), and no 0.18 */
        rate = m_op(m, lr * m_fn(m, sqrt(fmax(1, (double)rows / (double)cols))));
    double *U = new_array(rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        B[i] = m_mid(m, m_op(m, mu * B[i]) + m_op(m, new_share * G[i]));
        U[i] = bug(m, MUON_NO_NESTEROV) ? B[i] : m_mid(m, G[i] + m_op(m, mu * B[i]));
    }
    orthogonalise_wide(m, U, rows, cols);
    for (int64_t i = 0; i < rows * cols; i++)
        M[i] = m_mid(m, m_op(m, M[i] * m_op(m, 1 - m_op(m, lr * decay))) - m_op(m, rate * U[i]));
    free(U);
}

/* ---- cases ---- */

static double *add_out(dsv4_case *answer, const char *name, int rank, const int64_t *shape)
{
    return dsv4_case_add_out(answer, name, DSV4_FORMAT_F64, rank, shape)->data;
}

/* A new output of the input's shape, with its values. */
static double *pass_on(const dsv4_case *c, const char *in, dsv4_case *answer, const char *out)
{
    const dsv4_array *x = dsv4_case_in(c, in);
    double *y = add_out(answer, out, x->rank, x->shape);
    for (int64_t i = 0; i < x->count; i++)
        y[i] = dsv4_array_value(x, i);
    return y;
}

static int64_t dim(const dsv4_case *c, const char *in, int axis)
{
    return dsv4_case_in(c, in)->shape[axis];
}

static void answer_e4m3_decode(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    const dsv4_array *codes = dsv4_case_in(c, "codes");
    const uint8_t *code = codes->data;
    double *values = add_out(answer, "values", 1, &codes->count);
    for (int64_t i = 0; i < codes->count; i++)
        values[i] = decode_e4m3(m, code[i]);
}

static void answer_e2m1_decode(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    const dsv4_array *codes = dsv4_case_in(c, "codes");
    int64_t count = 2 * codes->count;
    double *values = add_out(answer, "values", 1, &count);
    for (int64_t i = 0; i < count; i++)
        values[i] = decode_packed(m, codes->data, i);
}

static void answer_e8m0_decode(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    const dsv4_array *codes = dsv4_case_in(c, "codes");
    const uint8_t *code = codes->data;
    double *values = add_out(answer, "values", 1, &codes->count);
    for (int64_t i = 0; i < codes->count; i++)
        values[i] = decode_e8m0(m, code[i]);
}

static void answer_e4m3_encode(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    double *values = pass_on(c, "x", answer, "values");
    for (int64_t i = 0; i < dim(c, "x", 0); i++)
        values[i] = encode_e4m3(m, values[i]);
}

static void answer_e2m1_encode(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    double *values = pass_on(c, "x", answer, "values");
    for (int64_t i = 0; i < dim(c, "x", 0); i++)
        values[i] = encode_e2m1(m, values[i]);
}

static void answer_act(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    int64_t block = (int64_t)dsv4_case_param(c, "block", 128);
    m_act_quant(m, pass_on(c, "x", answer, "y"), dim(c, "x", 0), dim(c, "x", 1), block);
}

static void answer_kv(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    int64_t d = dim(c, "x", 1);
    double *y = pass_on(c, "x", answer, "y");
    for (int64_t t = 0; t < dim(c, "x", 0); t++)
        m_qdq_kv(m, y + t * d, d);
}

static void answer_index(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    int64_t d_i = dim(c, "x", 1);
    double *y = pass_on(c, "x", answer, "y");
    for (int64_t t = 0; t < dim(c, "x", 0); t++)
        m_qdq_index(m, y + t * d_i, d_i);
}

static void linear_by(museum *m, const dsv4_case *c, dsv4_case *answer,
                      void map(museum *, const dsv4_matrix *, const double *, int64_t, double *))
{
    dsv4_matrix w = dsv4_case_matrix(c, "w");
    int64_t T = dim(c, "x", 0);
    double *x = dsv4_case_values(c, "x");
    map(m, &w, x, T, add_out(answer, "y", 2, (int64_t[]){T, w.rows}));
    free(x);
}

static void answer_linear(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    linear_by(m, c, answer, m_linear);
}

static void answer_linear_f32(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    linear_by(m, c, answer, m_linear_f32);
}

static void answer_linear_grouped(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    dsv4_matrix w = dsv4_case_matrix(c, "w");
    int64_t T = dim(c, "x", 0), groups = dim(c, "x", 1);
    double *x = dsv4_case_values(c, "x");
    m_linear_grouped(m, &w, groups, x, T, add_out(answer, "y", 2, (int64_t[]){T, w.rows}));
    free(x);
}

static void answer_rmsnorm(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    dsv4_matrix w = dsv4_case_matrix(c, "weight");
    double *x = dsv4_case_values(c, "x"), *y = pass_on(c, "x", answer, "y");
    m_rmsnorm(m, &w, x, dim(c, "x", 0), y);
    free(x);
}

static void answer_rmsnorm_head(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    double *y = pass_on(c, "x", answer, "y");
    m_rmsnorm_head(m, y, dim(c, "x", 0), dim(c, "x", 1), dim(c, "x", 2));
}

static void answer_frequencies(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    int64_t pairs = m->config->qk_rope_head_dim / 2;
    m_frequencies(m, dsv4_case_param(c, "compressed", 0) != 0, add_out(answer, "freq", 1, &pairs));
}

static void rotate(museum *m, const dsv4_case *c, dsv4_case *answer, int direction)
{
    bool compressed = dsv4_case_param(c, "compressed", 0) != 0;
    int64_t d = dim(c, "x", 1), *position = dsv4_case_indices(c, "positions");
    double *freq = new_array(m->config->qk_rope_head_dim / 2), *y = pass_on(c, "x", answer, "y");
    m_frequencies(m, compressed, freq);
    for (int64_t t = 0; t < dim(c, "x", 0); t++)
        m_rope(m, freq, compressed, position[t], direction, y + t * d, d);
    free(freq);
    free(position);
}

static void answer_rope(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    rotate(m, c, answer, 1);
}

static void answer_rope_inverse(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    rotate(m, c, answer, -1);
}

static void answer_hadamard(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    int64_t width = dim(c, "x", 1);
    double *y = pass_on(c, "x", answer, "y");
    for (int64_t t = 0; t < dim(c, "x", 0); t++)
        m_hadamard(m, y + t * width, width);
}

static void answer_embed(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    dsv4_matrix embed = dsv4_case_matrix(c, "embed");
    int64_t T = dim(c, "token_ids", 0), *ids = dsv4_case_indices(c, "token_ids");
    int64_t shape[3] = {T, m->config->hc_mult, embed.cols};
    m_embed(m, &embed, ids, T, add_out(answer, "h", 3, shape));
    free(ids);
}

static void answer_muon(museum *m, const dsv4_case *c, dsv4_case *answer)
{
    double *G = dsv4_case_values(c, "G"), *B = pass_on(c, "B", answer, "B_new");
    double *M = pass_on(c, "M", answer, "M_new");
    m_muon(m, c, dim(c, "G", 0), dim(c, "G", 1), G, B, M);
    free(G);
}

static const struct {
    const char *name;
    void (*answer)(museum *m, const dsv4_case *c, dsv4_case *answer);
} mine[] = {
    {"quant_e4m3_decode", answer_e4m3_decode}, {"quant_e4m3_encode", answer_e4m3_encode},
    {"quant_e2m1_decode", answer_e2m1_decode}, {"quant_e2m1_encode", answer_e2m1_encode},
    {"quant_e8m0_decode", answer_e8m0_decode}, {"quant_act", answer_act}, {"quant_kv", answer_kv},
    {"quant_index", answer_index}, {"linear_fp8", answer_linear}, {"linear_fp4", answer_linear},
    {"linear_plain", answer_linear}, {"linear_f32", answer_linear_f32},
    {"linear_grouped", answer_linear_grouped}, {"rmsnorm", answer_rmsnorm},
    {"rmsnorm_head", answer_rmsnorm_head}, {"rope_frequencies", answer_frequencies},
    {"rope", answer_rope}, {"rope_inverse", answer_rope_inverse}, {"hadamard", answer_hadamard},
    {"embed", answer_embed}, {"muon", answer_muon},
};

int m_answer_elements(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    (void)err; /* cases have been checked against the table of operators */
    for (size_t i = 0; i < sizeof mine / sizeof *mine; i++)
        if (strcmp(c->op->name, mine[i].name) == 0) {
            mine[i].answer(m, c, answer);
            return 0;
        }
    return 1;
}
