/* spec/linear.md: y = M x, with the weights as the checkpoint stores them. Several products are cut
 * into items of rows, which the threads take in one loop. */
#include "fast/fast.h"

#include <string.h>

enum {
    SHARES = 16,          /* items for a thread, so that all end at about the same time */
    LEAST = 1 << 16,      /* multiply-adds of an item, at least: more than handing it out costs */
    FEW_TOKENS = 4,       /* for more, kernels decode weights once for all tokens .. */
    PANEL_ROWS = 24,      /* .. and read all of x for each panel: no fewer rows, if there are */
    TILED_ROWS = 64,      /* the same where kernels work in tiles, and twice that in large matrices */
    LEAST_COPIED = 1 << 15 /* values of x, from which on threads prepare them */
};

/* x in another form: the same for all jobs that take the same. */
typedef struct {
    const float *x;
    int64_t T, x_stride, cols, stride;
    bool quantised, arranged;
    float *values; /* [T, cols] at stride */
    const fast_tile_kernels *kernels; /* NULL, or for these, in tiles: */
    uint16_t *tiles; /* [tiles of T, arranged_size] */
    int *lowest_bit; /* [tiles of T] */
} prepared;

typedef struct {
    fast_product product;
    const fast_linear_job *job;
    const fast_tile_kernels *tiles; /* NULL: rows */
    int64_t rows_of_item;
    int64_t first_item;
} task;

typedef struct {
    const fast_context *c;
    task *tasks;     /* [count] */
    int64_t count;
    prepared *inputs;
    int64_t inputs_count;
    int64_t items_to_prepare;
    bool *bad;       /* [items]: an output is not finite */
    bool *left;      /* [items]: tiles could not represent the operands */
    int64_t items;
    float *scratch;  /* [threads, scratch_size] */
    int64_t scratch_size;
} plan;

/* ---- inputs ---- */

static int64_t items_of(const prepared *input)
{
    int64_t tokens = input->kernels != NULL ? input->kernels->tokens : 1;
    return (input->T + tokens - 1) / tokens;
}

/* Values of scratch that preparing it takes. */
static int64_t scratch_of(const prepared *input)
{
    return input->kernels != NULL ? input->kernels->tokens * input->cols : input->cols;
}

/* Tile `tile` of an input. */
static void prepare_tile(const fast_context *c, const prepared *input, int64_t tile, float *scratch)
{
    const fast_tile_kernels *kernels = input->kernels;
    int64_t first = tile * kernels->tokens, stride = input->x_stride;
    int64_t tokens = input->T - first < kernels->tokens ? input->T - first : kernels->tokens;
    const float *x = input->x + first * stride;
    if (input->quantised) {
        for (int64_t t = 0; t < tokens; t++) {
            float *row = scratch + t * input->cols;
            memcpy(row, x + t * stride, (size_t)input->cols * sizeof *x);
            c->kernels->quant->act_quant(row, input->cols, 128); /* linear.quant.1 */
        }
        x = scratch;
        stride = input->cols;
    }
    uint16_t *out = input->tiles + tile * kernels->arranged_size(input->cols);
    input->lowest_bit[tile] = kernels->arrange(x, stride, tokens, input->cols, out);
}

/* Row `row` of an input, through scratch [cols] where it changes its order. */
static void prepare_row(const fast_context *c, const prepared *input, int64_t row, float *scratch)
{
    const float *x = input->x + row * input->x_stride;
    float *values = input->values + row * input->stride;
    float *quantised = input->arranged ? scratch : values;
    if (input->quantised) {
        memcpy(quantised, x, (size_t)input->cols * sizeof *x);
        c->kernels->quant->act_quant(quantised, input->cols, 128); /* linear.quant.1 */
        x = quantised;
    }
    if (input->arranged)
        c->kernels->linear->arrange(x, input->cols, values);
}

static void prepare_item(void *context, int64_t item, int worker)
{
    const plan *all = context;
    const prepared *input = all->inputs;
    while (item >= items_of(input))
        item -= items_of(input++);
    float *scratch = all->scratch + worker * all->scratch_size;
    if (input->kernels != NULL)
        prepare_tile(all->c, input, item, scratch);
    else
        prepare_row(all->c, input, item, scratch);
}

static void take_prepared(const fast_context *c, prepared *input)
{
    if (input->kernels != NULL) {
        int64_t tiles = items_of(input), size = input->kernels->arranged_size(input->cols);
        input->tiles = FAST_TAKE(c, uint16_t, tiles * size);
        input->lowest_bit = FAST_TAKE(c, int, tiles);
    } else {
        input->stride = input->cols + 16; /* rows in different cache sets */
        input->values = FAST_TAKE(c, float, input->T * input->stride);
    }
}

/* What a job's input has to become; NULL where it stays as it is. */
static const prepared *input_of(plan *all, const fast_linear_job *job,
                                const fast_tile_kernels *tiles)
{
    const fast_context *c = all->c;
    prepared wanted = {.x = job->x, .T = job->T, .x_stride = job->x_stride, .cols = job->w->cols};
    wanted.quantised = c->released && job->kind == FAST_LINEAR && job->w->scale != NULL;
    wanted.kernels = tiles;
    wanted.arranged = tiles == NULL && job->w->dtype == DSV4_I8 &&
                      c->kernels->linear->arrange != NULL;
    if (!wanted.quantised && !wanted.arranged && tiles == NULL)
        return NULL;
    for (int64_t i = all->inputs_count; i-- > 0;) {
        const prepared *have = &all->inputs[i];
        if (have->x == wanted.x && have->T == wanted.T && have->x_stride == wanted.x_stride &&
            have->cols == wanted.cols && have->quantised == wanted.quantised &&
            have->arranged == wanted.arranged && have->kernels == wanted.kernels)
            return have;
    }
    take_prepared(c, &wanted);
    all->items_to_prepare += items_of(&wanted);
    all->inputs[all->inputs_count] = wanted;
    return &all->inputs[all->inputs_count++];
}

static void prepare_inputs(plan *all)
{
    int64_t values = 0;
    for (int64_t i = 0; i < all->inputs_count; i++)
        values += all->inputs[i].T * all->inputs[i].cols;
    if (values >= LEAST_COPIED)
        fast_pool_run(all->c->pool, all->items_to_prepare, prepare_item, all);
    else
        for (int64_t i = 0; i < all->items_to_prepare; i++)
            prepare_item(all, i, 0);
}

/* ---- products ---- */

/* The kernels whose operands are bf16 numbers or whole numbers, where they may be able to represent
 * these: inputs are bf16 numbers in RELEASED, and so are weights that are rounded or have codes.
 * Whether all of them can be represented is seen later. NULL: the others are to be used. */
static const fast_tile_kernels *tiles_for(const fast_context *c, const fast_linear_job *job)
{
    dsv4_dtype dtype = job->w->dtype;
    bool exact = job->kind != FAST_MAP || (dtype != DSV4_F32 && dtype != DSV4_F16);
    if (!c->released || c->deterministic)
        return NULL;
    if (job->T > FEW_TOKENS)
        return exact ? c->kernels->tiles : NULL;
    if (dtype == DSV4_F8_E4M3 && job->w->cols % 128 == 0)
        return c->kernels->few_fp8;
    return job->kind == FAST_LINEAR && dtype == DSV4_I8 ? c->kernels->few_fp4 : NULL;
}

static fast_product product_of(plan *all, const fast_linear_job *job,
                               const fast_tile_kernels *tiles)
{
    const bool released = all->c->released;
    const prepared *input = input_of(all, job, tiles);
    return (fast_product){
        .w = job->w,
        /* linear.plain.1, linear.grouped.2 */
        .as_bf16 = released && (job->kind == FAST_GROUPED ||
                                (job->kind == FAST_LINEAR && job->w->scale == NULL)),
        .round = released && job->kind != FAST_MAP, /* linear.round.1, linear.f32.1 */
        .x = input != NULL ? input->values : job->x,
        .x_stride = input != NULL ? input->stride : job->x_stride,
        .arranged = input != NULL ? input->tiles : NULL,
        .lowest_bit = input != NULL ? input->lowest_bit : NULL,
        .T = job->T,
        .y = job->y,
        .y_stride = job->y_stride,
        .first = job->first};
}

/* The task that an item belongs to, and its rows. */
typedef struct { const task *task; int64_t begin, end; } part;

static part part_of(const plan *all, int64_t item)
{
    int64_t low = 0, high = all->count; /* the last task whose first_item is not above item */
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (all->tasks[middle].first_item <= item)
            low = middle;
        else
            high = middle;
    }
    const task *found = all->tasks + low;
    int64_t begin = found->job->first + (item - found->first_item) * found->rows_of_item;
    int64_t end = found->job->first + found->job->rows;
    return (part){found, begin,
                  end - begin > found->rows_of_item ? begin + found->rows_of_item : end};
}

static void multiply(void *context, int64_t item, int worker)
{
    const plan *all = context;
    const part here = part_of(all, item);
    const fast_product *p = &here.task->product;
    const int64_t begin = here.begin, end = here.end;
    float *scratch = all->scratch + worker * all->scratch_size;
    if (here.task->tiles != NULL)
        all->left[item] = !here.task->tiles->product(p, begin, end, scratch);
    else
        all->c->kernels->linear->product(p, begin, end, scratch);
    bool finite = true;
    for (int64_t t = 0; t < p->T && finite && !all->left[item]; t++)
        finite = all->c->kernels->quant->finite(p->y + t * p->y_stride + begin - p->first,
                                                end - begin);
    all->bad[item] = !finite;
}

/* Items of about equal work, `share` multiply-adds. Rows come in numbers that kernels like. */
static int64_t rows_of_item(const plan *all, const task *each, int64_t share)
{
    const fast_linear_job *job = each->job;
    int64_t threads = fast_pool_threads(all->c->pool);
    int64_t work = job->w->cols * job->T; /* of a row */
    int64_t rows = work > 0 ? share / work : job->rows;
    if (each->tiles != NULL && job->T > FEW_TOKENS) {
        int64_t least = job->rows >= 8 * TILED_ROWS * threads ? 2 * TILED_ROWS : TILED_ROWS;
        return rows < least ? least : rows / TILED_ROWS * TILED_ROWS;
    }
    if (job->T > FEW_TOKENS && rows < PANEL_ROWS) {
        int64_t even = (job->rows + threads - 1) / threads;
        rows = even < PANEL_ROWS ? even : PANEL_ROWS;
    }
    rows = (rows + 3) / 4 * 4;
    return rows < 4 ? 4 : rows;
}

static void divide(plan *all)
{
    int64_t total = 0;
    for (int64_t i = 0; i < all->count; i++) {
        const fast_linear_job *job = all->tasks[i].job;
        total += job->rows * job->w->cols * job->T;
    }
    int64_t share = total / (SHARES * fast_pool_threads(all->c->pool));
    if (share < LEAST)
        share = LEAST;
    for (int64_t i = 0; i < all->count; i++) {
        task *each = &all->tasks[i];
        each->rows_of_item = rows_of_item(all, each, share);
        each->first_item = all->items;
        all->items += (each->job->rows + each->rows_of_item - 1) / each->rows_of_item;
    }
}

/* quant.nan.1. Where no weight is to blame, the named tensor that this leads to is. */
static void report_bad(const plan *all)
{
    for (int64_t i = 0; i < all->count && all->c->error->text[0] == '\0'; i++) {
        const task *each = &all->tasks[i];
        int64_t end = i + 1 < all->count ? each[1].first_item : all->items;
        bool bad = false;
        for (int64_t item = each->first_item; item < end; item++)
            bad |= all->bad[item];
        if (bad)
            fast_find_bad_weight(all->c, each->job->w, each->job->first, each->job->rows);
    }
}

static void take_scratch(plan *all)
{
    const fast_context *c = all->c;
    for (int64_t i = 0; i < all->inputs_count; i++)
        if (scratch_of(&all->inputs[i]) > all->scratch_size)
            all->scratch_size = scratch_of(&all->inputs[i]);
    for (int64_t i = 0; i < all->count; i++) {
        const task *each = &all->tasks[i];
        int64_t size = each->tiles != NULL ? each->tiles->scratch_size(&each->product)
                                           : c->kernels->linear->scratch_size(&each->product);
        all->scratch_size = size > all->scratch_size ? size : all->scratch_size;
    }
    all->scratch_size = (all->scratch_size + 15) / 16 * 16; /* threads share no cache line */
    all->scratch = FAST_TAKE(c, float, fast_pool_threads(c->pool) * all->scratch_size);
}

/* The jobs of which an item is left; returns how many. They are done again as a whole, for items depend on
 * the number of threads, and a row's bits may not. */
static int64_t jobs_left(const plan *all, fast_linear_job *jobs)
{
    int64_t count = 0;
    const task *last = NULL;
    for (int64_t item = 0; item < all->items; item++) {
        const part here = part_of(all, item);
        if (!all->left[item] || here.task == last)
            continue;
        last = here.task;
        jobs[count++] = *last->job;
    }
    return count;
}

static void run_jobs(const fast_context *c, const fast_linear_job *jobs, int64_t count, bool tiles)
{
    fast_place mark = fast_mark(c->memory);
    plan all = {.c = c,
                .tasks = FAST_TAKE(c, task, count),
                .inputs = FAST_TAKE(c, prepared, count)};
    for (int64_t i = 0; i < count; i++) {
        if (jobs[i].T == 0 || jobs[i].rows == 0)
            continue;
        const fast_tile_kernels *kernels = tiles ? tiles_for(c, &jobs[i]) : NULL;
        all.tasks[all.count++] = (task){.product = product_of(&all, &jobs[i], kernels),
                                        .job = &jobs[i], .tiles = kernels};
    }
    divide(&all);
    take_scratch(&all);
    all.bad = FAST_TAKE(c, bool, all.items);
    all.left = FAST_TAKE(c, bool, all.items);
    memset(all.left, 0, (size_t)all.items);
    prepare_inputs(&all);
    fast_pool_run(c->pool, all.items, multiply, &all);
    fast_linear_job *left = FAST_TAKE(c, fast_linear_job, all.items);
    int64_t left_count = jobs_left(&all, left);
    if (left_count > 0)
        run_jobs(c, left, left_count, false);
    report_bad(&all);
    fast_release(c->memory, mark);
}

void fast_linear_jobs(const fast_context *c, const fast_linear_job *jobs, int64_t count)
{
    run_jobs(c, jobs, count, true);
}

/* ---- single products ---- */

static void whole(const fast_context *c, fast_linear_kind kind, const dsv4_matrix *w,
                  const float *x, int64_t T, float *y)
{
    fast_linear_job job = {.kind = kind, .w = w, .rows = w->rows, .x = x, .T = T,
                           .x_stride = w->cols, .y = y, .y_stride = w->rows};
    fast_linear_jobs(c, &job, 1);
}

void fast_linear(const fast_context *c, const dsv4_matrix *w, const float *x, int64_t T, float *y)
{
    whole(c, FAST_LINEAR, w, x, T, y);
}

void fast_linear_f32(const fast_context *c, const dsv4_matrix *w, const float *x, int64_t T,
                     float *y)
{
    whole(c, FAST_MAP, w, x, T, y);
}

void fast_linear_grouped(const fast_context *c, const dsv4_matrix *w, int64_t groups,
                         const float *x, int64_t T, float *y)
{
    fast_place mark = fast_mark(c->memory);
    fast_linear_job *jobs = FAST_TAKE(c, fast_linear_job, groups);
    int64_t rows = w->rows / groups;
    for (int64_t g = 0; g < groups; g++) /* linear.grouped.1 */
        jobs[g] = (fast_linear_job){.kind = FAST_GROUPED, .w = w, .first = g * rows, .rows = rows,
                                    .x = x + g * w->cols, .T = T, .x_stride = groups * w->cols,
                                    .y = y + g * rows, .y_stride = w->rows};
    fast_linear_jobs(c, jobs, groups);
    fast_release(c->memory, mark);
}
