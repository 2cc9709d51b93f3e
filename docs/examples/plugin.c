/* A small engine as a plugin of `dsv4 verify`: a few operators in float, without anything of dsv4
 * but its header. Compile and run, in the directory of the repository:
 *
 *   cc -O2 -shared -fPIC -I vectors docs/examples/plugin.c -o build/example.so -lm
 *   build/dsv4 verify --plugin build/example.so
 *
 * With -DMISTAKE before -o it rotates pairs (x[i], x[i + R/2]), as other models do: see what is
 * said then. */
#include "dsv4_plugin.h"

#include <math.h>
#include <stdlib.h>

/* What the engine keeps between operators: bf16 in *released*, float in *exact*. */
static float stored(const struct dsv4_plugin_call *call, float x)
{
    uint32_t bits;
    if (strcmp(call->numerics, "exact") == 0 || x != x)
        return x;
    memcpy(&bits, &x, sizeof bits);
    bits += 0x7fff + (bits >> 16 & 1);
    bits &= 0xffff0000;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

static int rmsnorm(const struct dsv4_plugin_call *call)
{
    const float *x = dsv4_plugin_floats(call, "x"), *weight = dsv4_plugin_floats(call, "weight");
    float *y = dsv4_plugin_float_out(call, "y");
    if (x == NULL || weight == NULL || y == NULL)
        return DSV4_PLUGIN_NOT_OFFERED;
    int64_t T = dsv4_plugin_in(call, "x")->shape[0], K = dsv4_plugin_in(call, "x")->shape[1];
    float eps = (float)dsv4_plugin_value(call, "rms_norm_eps", 1e-6);
    for (int64_t t = 0; t < T; t++, x += K, y += K) {
        float squares = 0;
        for (int64_t i = 0; i < K; i++)
            squares += x[i] * x[i];
        float r = 1 / sqrtf(squares / (float)K + eps);
        for (int64_t i = 0; i < K; i++)
            y[i] = stored(call, x[i] * r * weight[i]);
    }
    return DSV4_PLUGIN_ANSWERED;
}

/* The frequencies of R/2 pairs, with YaRN in layers that compress. In *released* each step is
 * float; the angles of a long context need more. */
static void frequencies(const struct dsv4_plugin_call *call, int64_t R, double *freq)
{
    int released = strcmp(call->numerics, "released") == 0;
    int compressed = dsv4_plugin_value(call, "compressed", 0) != 0;
    double theta = dsv4_plugin_value(call, compressed ? "compress_rope_theta" : "rope_theta", 1e4);
    double factor = dsv4_plugin_value(call, "factor", 0);
    double original = dsv4_plugin_value(call, "original_max_position_embeddings", 0);
    double turns[2] = {dsv4_plugin_value(call, "beta_fast", 32),
                       dsv4_plugin_value(call, "beta_slow", 1)}, bound[2];
    for (int i = 0; i < 2; i++)
        bound[i] = (double)R * log(original / (6.283185307179586 * turns[i])) / (2 * log(theta));
    double low = fmax(floor(bound[0]), 0), high = fmin(ceil(bound[1]), (double)R - 1);
    for (int64_t i = 0; i < R / 2; i++) {
        double p = pow(theta, 2 * (double)i / (double)R);
        freq[i] = released ? 1 / (float)p : 1 / p;
        if (!compressed || factor == 0 || original == 0)
            continue;
        double ramp = fmin(fmax(((double)i - low) / (high != low ? high - low : 0.001), 0), 1);
        if (released) {
            float f = (float)freq[i], slope = (float)ramp;
            float slow = f / (float)factor * slope, fast = f * (1 - slope);
            freq[i] = slow + fast;
        } else {
            freq[i] = freq[i] / factor * ramp + freq[i] * (1 - ramp);
        }
    }
}

static int rope_frequencies(const struct dsv4_plugin_call *call)
{
    struct dsv4_plugin_array *freq = dsv4_plugin_out(call, "freq");
    if (freq == NULL)
        return DSV4_PLUGIN_NOT_OFFERED;
    frequencies(call, 2 * freq->count, (double *)freq->data);
    return DSV4_PLUGIN_ANSWERED;
}

static int rope(const struct dsv4_plugin_call *call, double direction)
{
    const float *x = dsv4_plugin_floats(call, "x");
    const int64_t *positions = dsv4_plugin_indices(call, "positions");
    float *y = dsv4_plugin_float_out(call, "y");
    int64_t R = (int64_t)dsv4_plugin_value(call, "qk_rope_head_dim", 64);
    if (x == NULL || positions == NULL || y == NULL)
        return DSV4_PLUGIN_NOT_OFFERED;
    int64_t T = dsv4_plugin_in(call, "x")->shape[0], d = dsv4_plugin_in(call, "x")->shape[1];
    double *freq = (double *)malloc((size_t)R * sizeof *freq);
    frequencies(call, R, freq);
    for (int64_t t = 0; t < T; t++, x += d, y += d) {
        memcpy(y, x, (size_t)d * sizeof *y);
        for (int64_t i = 0; i < R / 2; i++) {
#ifdef MISTAKE
            int64_t first = d - R + i, second = first + R / 2;
#else
            int64_t first = d - R + 2 * i, second = first + 1;
#endif
            double angle = (double)positions[t] * freq[i];
            if (strcmp(call->numerics, "released") == 0)
                angle = (double)(float)angle;
            float c = (float)cos(angle), s = (float)(direction * sin(angle));
            y[first] = stored(call, x[first] * c - x[second] * s);
            y[second] = stored(call, x[first] * s + x[second] * c);
        }
    }
    free(freq);
    return DSV4_PLUGIN_ANSWERED;
}

static int hadamard(const struct dsv4_plugin_call *call)
{
    const float *x = dsv4_plugin_floats(call, "x");
    float *y = dsv4_plugin_float_out(call, "y");
    if (x == NULL || y == NULL)
        return DSV4_PLUGIN_NOT_OFFERED;
    int64_t T = dsv4_plugin_in(call, "x")->shape[0], d = dsv4_plugin_in(call, "x")->shape[1];
    memcpy(y, x, (size_t)(T * d) * sizeof *y);
    for (int64_t t = 0; t < T; t++, y += d) {
        for (int64_t half = 1; half < d; half *= 2)
            for (int64_t i = 0; i < d; i++)
                if ((i & half) == 0) {
                    float a = y[i], b = y[i + half];
                    y[i] = a + b;
                    y[i + half] = a - b;
                }
        for (int64_t i = 0; i < d; i++)
            y[i] = stored(call, y[i] / sqrtf((float)d));
    }
    return DSV4_PLUGIN_ANSWERED;
}

static int mhc_sinkhorn(const struct dsv4_plugin_call *call)
{
    const float *logits = dsv4_plugin_floats(call, "logits");
    float *comb = dsv4_plugin_float_out(call, "comb");
    if (logits == NULL || comb == NULL)
        return DSV4_PLUGIN_NOT_OFFERED;
    int64_t T = dsv4_plugin_in(call, "logits")->shape[0],
            n = dsv4_plugin_in(call, "logits")->shape[1];
    int iterations = (int)dsv4_plugin_value(call, "hc_sinkhorn_iters", 20);
    float eps = (float)dsv4_plugin_value(call, "hc_eps", 1e-6);
    for (int64_t t = 0; t < T; t++, logits += n * n, comb += n * n) {
        for (int64_t j = 0; j < n; j++) {
            float top = logits[j * n], sum = 0;
            for (int64_t k = 0; k < n; k++)
                top = fmaxf(top, logits[j * n + k]);
            for (int64_t k = 0; k < n; k++)
                sum += comb[j * n + k] = expf(logits[j * n + k] - top);
            for (int64_t k = 0; k < n; k++)
                comb[j * n + k] = comb[j * n + k] / sum + eps;
        }
        /* Half steps: columns, then rows and columns by turns. */
        for (int step = 0; step < 2 * iterations - 1; step++)
            for (int64_t a = 0; a < n; a++) {
                int64_t begin = step % 2 == 0 ? a : a * n, stride = step % 2 == 0 ? n : 1;
                float sum = eps;
                for (int64_t b = 0; b < n; b++)
                    sum += comb[begin + b * stride];
                for (int64_t b = 0; b < n; b++)
                    comb[begin + b * stride] /= sum;
            }
    }
    return DSV4_PLUGIN_ANSWERED;
}

static int mhc_pre(const struct dsv4_plugin_call *call)
{
    const float *pre = dsv4_plugin_floats(call, "pre"), *x = dsv4_plugin_floats(call, "x");
    float *u = dsv4_plugin_float_out(call, "u");
    if (pre == NULL || x == NULL || u == NULL)
        return DSV4_PLUGIN_NOT_OFFERED;
    const int64_t *shape = dsv4_plugin_in(call, "x")->shape; /* [T, n, D] */
    for (int64_t t = 0; t < shape[0]; t++)
        for (int64_t i = 0; i < shape[2]; i++) {
            float sum = 0;
            for (int64_t j = 0; j < shape[1]; j++)
                sum += pre[t * shape[1] + j] * x[(t * shape[1] + j) * shape[2] + i];
            u[t * shape[2] + i] = stored(call, sum);
        }
    return DSV4_PLUGIN_ANSWERED;
}

static int mhc_post(const struct dsv4_plugin_call *call)
{
    const float *post = dsv4_plugin_floats(call, "post"), *comb = dsv4_plugin_floats(call, "comb"),
                *y = dsv4_plugin_floats(call, "y"), *x = dsv4_plugin_floats(call, "x");
    float *x_new = dsv4_plugin_float_out(call, "x_new");
    if (post == NULL || comb == NULL || y == NULL || x == NULL || x_new == NULL)
        return DSV4_PLUGIN_NOT_OFFERED;
    const int64_t *shape = dsv4_plugin_in(call, "x")->shape, n = shape[1], D = shape[2];
    for (int64_t t = 0; t < shape[0]; t++)
        for (int64_t k = 0; k < n; k++)
            for (int64_t i = 0; i < D; i++) {
                float sum = post[t * n + k] * y[t * D + i];
                for (int64_t j = 0; j < n; j++)
                    sum += comb[(t * n + j) * n + k] * x[(t * n + j) * D + i];
                x_new[(t * n + k) * D + i] = stored(call, sum);
            }
    return DSV4_PLUGIN_ANSWERED;
}

int dsv4_plugin_version(void)
{
    return DSV4_PLUGIN_VERSION;
}

const char *dsv4_plugin_name(void)
{
    return "the example of docs/examples";
}

int dsv4_plugin_run(struct dsv4_plugin_call *call)
{
    if (strcmp(call->op, "rmsnorm") == 0)
        return rmsnorm(call);
    if (strcmp(call->op, "rope_frequencies") == 0)
        return rope_frequencies(call);
    if (strcmp(call->op, "rope") == 0)
        return rope(call, 1);
    if (strcmp(call->op, "rope_inverse") == 0)
        return rope(call, -1);
    if (strcmp(call->op, "hadamard") == 0)
        return hadamard(call);
    if (strcmp(call->op, "mhc_sinkhorn") == 0)
        return mhc_sinkhorn(call);
    if (strcmp(call->op, "mhc_pre") == 0)
        return mhc_pre(call);
    if (strcmp(call->op, "mhc_post") == 0)
        return mhc_post(call);
    return DSV4_PLUGIN_NOT_OFFERED;
}
