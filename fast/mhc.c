/* spec/mhc.md: manifold-constrained hyper-connections: n residual streams around each sublayer.
 *
 * What a token has n or n^2 of is computed in binary64, which costs nothing beside the streams
 * and keeps forty divisions of Sinkhorn's iteration from adding up. */
#include "fast/fast.h"

#include <math.h>

/* Rows of a call, `part` of them an item of the pool. Not every loop uses all. */
typedef struct {
    const fast_context *c;
    int64_t T, part;
    const float *m, *base, *scale, *x, *pre, *post, *comb, *y;
    float *new_pre, *new_post, *new_comb, *new_x, *u;
    double *room; /* [threads, n, n] */
} row_loop;

/* `values` of a row; few of them are not worth the way to other threads. */
static void run(row_loop *loop, int64_t values, void (*part)(void *, int64_t, int))
{
    enum { PART = 32768 };
    loop->part = (PART + values - 1) / values;
    fast_pool_run(loop->c->pool, (loop->T + loop->part - 1) / loop->part, part, loop);
}

static int64_t end_of(const row_loop *loop, int64_t item)
{
    int64_t end = (item + 1) * loop->part;
    return end < loop->T ? end : loop->T;
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* mhc.sinkhorn.1: the softmax of each row, plus eps */
static void soften_rows(double *C, int64_t n, double eps)
{
    for (int64_t j = 0; j < n; j++) {
        double *row = C + j * n, top = row[0], sum = 0;
        for (int64_t k = 1; k < n; k++)
            top = row[k] > top ? row[k] : top;
        for (int64_t k = 0; k < n; k++) {
            row[k] = exp(row[k] - top);
            sum += row[k];
        }
        for (int64_t k = 0; k < n; k++)
            row[k] = row[k] / sum + eps;
    }
}

static inline void divide_rows(double *C, int64_t n, double eps)
{
    for (int64_t j = 0; j < n; j++) {
        double sum = eps;
        for (int64_t k = 0; k < n; k++)
            sum += C[j * n + k];
        double part = 1 / sum;
        for (int64_t k = 0; k < n; k++)
            C[j * n + k] *= part;
    }
}

static inline void divide_columns(double *C, int64_t n, double eps)
{
    for (int64_t k = 0; k < n; k++) {
        double sum = eps;
        for (int64_t j = 0; j < n; j++)
            sum += C[j * n + k];
        double part = 1 / sum;
        for (int64_t j = 0; j < n; j++)
            C[j * n + k] *= part;
    }
}

/* mhc.sinkhorn.2 and 3; where n is a constant its loops vanish. */
static inline void iterate(double *C, int64_t n, int64_t iterations, double eps)
{
    divide_columns(C, n, eps);
    for (int64_t i = 1; i < iterations; i++) {
        divide_rows(C, n, eps);
        divide_columns(C, n, eps);
    }
}

/* C [n, n] in place, then -> comb. */
static void sinkhorn(const dsv4_config *config, double *C, float *comb)
{
    int64_t n = config->hc_mult;
    soften_rows(C, n, config->hc_eps);
    if (n == 4)
        iterate(C, 4, config->hc_sinkhorn_iters, config->hc_eps);
    else
        iterate(C, n, config->hc_sinkhorn_iters, config->hc_eps);
    for (int64_t i = 0; i < n * n; i++)
        comb[i] = (float)C[i];
}

/* Where squares leave the range in which binary32 is precise, they are summed in binary64. */
double fast_mean_square(const fast_context *c, const float *x, int64_t count)
{
    double sum = c->kernels->mhc->squares(x, count);
    if (!(sum > 0x1p-80 && isfinite(sum))) {
        sum = 0;
        for (int64_t i = 0; i < count; i++)
            sum += (double)x[i] * x[i];
    }
    return sum / (double)count;
}

/* One row of mhc.mix.1 to 4, of which m has fn f. */
static void mix_row(const row_loop *loop, int64_t t, double *C)
{
    const dsv4_config *config = loop->c->config;
    int64_t n = config->hc_mult, nD = n * config->hidden_size;
    const float *m = loop->m + t * (2 + n) * n, *base = loop->base, *scale = loop->scale;
    double r = 1 / sqrt(fast_mean_square(loop->c, loop->x + t * nD, nD) + config->rms_norm_eps);
    r = loop->c->released ? (float)r : r;
    for (int64_t i = 0; i < (2 + n) * n; i++) {
        double scaled = loop->c->released ? (float)(m[i] * r) : m[i] * r;
        int part = i < n ? 0 : i < 2 * n ? 1 : 2;
        double mixed = scaled * scale[part] + base[i];
        if (part == 0)
            loop->new_pre[t * n + i] = (float)(sigmoid(mixed) + config->hc_eps);
        else if (part == 1)
            loop->new_post[t * n + i - n] = (float)(2 * sigmoid(mixed));
        else
            C[i - 2 * n] = mixed;
    }
    sinkhorn(config, C, loop->new_comb + t * n * n);
}

static void mix_part(void *context, int64_t item, int worker)
{
    const row_loop *loop = context;
    int64_t n = loop->c->config->hc_mult;
    for (int64_t t = item * loop->part; t < end_of(loop, item); t++)
        mix_row(loop, t, loop->room + worker * n * n);
}

static double *room_for_threads(const fast_context *c)
{
    int64_t n = c->config->hc_mult;
    return FAST_TAKE(c, double, fast_pool_threads(c->pool) * n * n);
}

void fast_mhc_mix(const fast_context *c, const dsv4_hc *hc, const float *x, int64_t T, float *pre,
                  float *post, float *comb)
{
    int64_t n = c->config->hc_mult;
    fast_place mark = fast_mark(c->memory);
    float *m = FAST_TAKE(c, float, T * (2 + n) * n);
    fast_linear_f32(c, &hc->fn, x, T, m);
    row_loop loop = {.c = c, .T = T, .m = m, .base = fast_vector(c, &hc->base),
                     .scale = fast_vector(c, &hc->scale), .room = room_for_threads(c),
                     .x = x, .new_pre = pre, .new_post = post, .new_comb = comb};
    run(&loop, n * c->config->hidden_size, mix_part);
    fast_release(c->memory, mark);
}

static void sinkhorn_part(void *context, int64_t item, int worker)
{
    const row_loop *loop = context;
    int64_t size = loop->c->config->hc_mult * loop->c->config->hc_mult;
    double *C = loop->room + worker * size;
    for (int64_t t = item * loop->part; t < end_of(loop, item); t++) {
        for (int64_t i = 0; i < size; i++)
            C[i] = loop->new_comb[t * size + i];
        sinkhorn(loop->c->config, C, loop->new_comb + t * size);
    }
}

/* comb [T, n, n], in place: logits -> matrices whose columns sum to 1 and whose rows nearly do. */
void fast_mhc_sinkhorn(const fast_context *c, float *comb, int64_t T)
{
    int64_t n = c->config->hc_mult;
    fast_place mark = fast_mark(c->memory);
    row_loop loop = {.c = c, .T = T, .room = room_for_threads(c), .new_comb = comb};
    run(&loop, n * n * c->config->hc_sinkhorn_iters, sinkhorn_part);
    fast_release(c->memory, mark);
}

static void pre_part(void *context, int64_t item, int worker)
{
    const row_loop *loop = context;
    int64_t n = loop->c->config->hc_mult, D = loop->c->config->hidden_size;
    (void)worker;
    for (int64_t t = item * loop->part; t < end_of(loop, item); t++)
        loop->c->kernels->mhc->pre(loop->pre + t * n, loop->x + t * n * D, n, D,
                                   loop->c->released, loop->u + t * D);
}

void fast_mhc_pre(const fast_context *c, const float *pre, const float *x, int64_t T, float *u)
{
    row_loop loop = {.c = c, .T = T, .pre = pre, .x = x, .u = u};
    run(&loop, c->config->hc_mult * c->config->hidden_size, pre_part);
}

static void post_part(void *context, int64_t item, int worker)
{
    const row_loop *loop = context;
    int64_t n = loop->c->config->hc_mult, D = loop->c->config->hidden_size;
    (void)worker;
    for (int64_t t = item * loop->part; t < end_of(loop, item); t++)
        loop->c->kernels->mhc->post(loop->post + t * n, loop->comb + t * n * n, loop->y + t * D, n,
                                    D, loop->c->released, loop->new_x + t * n * D);
}

/* y [T, D], the sublayer's output; x [T, n, D], the streams before it, replaced by those after
 * it. */
void fast_mhc_post(const fast_context *c, const float *post, const float *comb, const float *y,
                   int64_t T, float *x)
{
    row_loop loop = {.c = c, .T = T, .post = post, .comb = comb, .y = y, .new_x = x};
    run(&loop, c->config->hc_mult * c->config->hidden_size, post_part);
}
