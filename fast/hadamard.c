/* spec/hadamard.md: the Walsh-Hadamard transform of indexer queries and keys. */
#include "fast/fast.h"

typedef struct {
    const fast_context *c;
    float *x;
    int64_t width, rows, part; /* `part` rows an item */
} transform_loop;

static void transform_part(void *context, int64_t item, int worker)
{
    const transform_loop *loop = context;
    (void)worker;
    int64_t end = (item + 1) * loop->part;
    for (int64_t i = item * loop->part; i < end && i < loop->rows; i++)
        loop->c->kernels->hadamard->transform(loop->x + i * loop->width, loop->width,
                                              loop->c->released);
}

/* x [rows, width], in place. Few values are not worth the way to other threads. */
void fast_hadamard(const fast_context *c, float *x, int64_t width, int64_t rows)
{
    enum { PART = 32768 };
    transform_loop loop = {.c = c, .x = x, .width = width, .rows = rows,
                           .part = (PART + width - 1) / width};
    fast_pool_run(c->pool, (rows + loop.part - 1) / loop.part, transform_part, &loop);
}
