/* spec/rmsnorm.md: root-mean-square normalisation, with a weight, and per query head without. */
#include "fast/fast.h"

typedef struct {
    const fast_context *c;
    const float *w, *x;
    float *y;
    int64_t rows, width, part; /* `part` rows an item */
} norm_loop;

static void weighted_part(void *context, int64_t item, int worker)
{
    const norm_loop *loop = context;
    (void)worker;
    int64_t end = (item + 1) * loop->part;
    for (int64_t t = item * loop->part; t < end && t < loop->rows; t++)
        loop->c->kernels->rmsnorm->rmsnorm(loop->x + t * loop->width, loop->w, loop->width,
                                           loop->c->config->rms_norm_eps, loop->c->released,
                                           loop->y + t * loop->width);
}

static void head_part(void *context, int64_t item, int worker)
{
    const norm_loop *loop = context;
    (void)worker;
    int64_t end = (item + 1) * loop->part;
    for (int64_t h = item * loop->part; h < end && h < loop->rows; h++)
        loop->c->kernels->rmsnorm->head(loop->y + h * loop->width, loop->width,
                                        loop->c->config->rms_norm_eps, loop->c->released);
}

/* Few values are not worth the way to other threads. */
static void run(norm_loop *loop, void (*part)(void *, int64_t, int))
{
    enum { PART = 32768 };
    loop->part = (PART + loop->width - 1) / loop->width;
    fast_pool_run(loop->c->pool, (loop->rows + loop->part - 1) / loop->part, part, loop);
}

/* x [T, cols], y [T, cols], which may be the same; w is a vector [cols]. */
void fast_rmsnorm(const fast_context *c, const dsv4_matrix *w, const float *x, int64_t T, float *y)
{
    fast_place mark = fast_mark(c->memory);
    norm_loop loop = {.c = c, .w = fast_vector(c, w), .x = x, .y = y, .rows = T, .width = w->cols};
    run(&loop, weighted_part);
    fast_release(c->memory, mark);
}

void fast_rmsnorm_head(const fast_context *c, float *x, int64_t count)
{
    norm_loop loop = {.c = c, .y = x, .rows = count, .width = c->config->head_dim};
    run(&loop, head_part);
}
