/* spec/linear.md: y = M x, with the weights as the checkpoint stores them. Several products are cut
 * into items of rows, which the threads take in one loop. */
#include "fast/fast.h"

#include <string.h>

enum {
    SHARES = 16,          /* items for a thread, so that all end at about the same time */
    LEAST = 1 << 16,      /* multiply-adds of an item, at least: more than handing it out costs */
    FEW_TOKENS = 4,       /* for more, kernels decode weights once for all tokens .. */
    PANEL_ROWS = 24,      /* .. and read all of x for each panel: no fewer rows, if there are */
    LEAST_COPIED = 1 << 15 /* values of x, from which on threads prepare them */
};

/* x in another form: the same for all jobs that take the same. */
typedef struct {
    const float *x;
    int64_t T, x_stride, cols, stride;
    bool quantised, arranged;
    float *values; /* [T, cols] at stride */
} prepared;

typedef struct {
    fast_product product;
    const fast_linear_job *job;
    int64_t rows_of_item;
    int64_t first_item;
} task;

typedef struct {
    const fast_context *c;
    task *tasks;     /* [count] */
    int64_t count;
    prepared *inputs;
    int64_t inputs_count;
    int64_t rows_to_prepare;
    bool *bad;       /* [items]: an output is not finite */
    int64_t items;
    float *scratch;  /* [threads, scratch_size] */
    int64_t scratch_size;
} plan;

/* ---- inputs ---- */

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
    while (item >= input->T)
        item -= input++->T;
    prepare_row(all->c, input, item, all->scratch + worker * all->scratch_size);
}

/* What a job's input has to become; NULL where it stays as it is. */
static const prepared *input_of(plan *all, const fast_linear_job *job)
{
    const fast_context *c = all->c;
    prepared wanted = {.x = job->x, .T = job->T, .x_stride = job->x_stride, .cols = job->w->cols};
    wanted.quantised = c->released && job->kind == FAST_LINEAR && job->w->scale != NULL;
    wanted.arranged = job->w->dtype == DSV4_I8 && c->kernels->linear->arrange != NULL;
    if (!wanted.quantised && !wanted.arranged)
        return NULL;
    for (int64_t i = all->inputs_count; i-- > 0;) {
        const prepared *have = &all->inputs[i];
        if (have->x == wanted.x && have->T == wanted.T && have->x_stride == wanted.x_stride &&
            have->cols == wanted.cols && have->quantised == wanted.quantised &&
            have->arranged == wanted.arranged)
            return have;
    }
    wanted.stride = wanted.cols + 16; /* rows in different cache sets */
    wanted.values = FAST_TAKE(c, float, wanted.T * wanted.stride);
    all->rows_to_prepare += wanted.T;
    all->inputs[all->inputs_count] = wanted;
    return &all->inputs[all->inputs_count++];
}

static void prepare_inputs(plan *all)
{
    int64_t values = 0;
    for (int64_t i = 0; i < all->inputs_count; i++)
        values += all->inputs[i].T * all->inputs[i].cols;
    if (values >= LEAST_COPIED)
        fast_pool_run(all->c->pool, all->rows_to_prepare, prepare_item, all);
    else
        for (int64_t i = 0; i < all->rows_to_prepare; i++)
            prepare_item(all, i, 0);
}

/* ---- products ---- */

static fast_product product_of(plan *all, const fast_linear_job *job)
{
    const bool released = all->c->released;
    const prepared *input = input_of(all, job);
    return (fast_product){
        .w = job->w,
        /* linear.plain.1, linear.grouped.2 */
        .as_bf16 = released && (job->kind == FAST_GROUPED ||
                                (job->kind == FAST_LINEAR && job->w->scale == NULL)),
        .round = released && job->kind != FAST_MAP, /* linear.round.1, linear.f32.1 */
        .x = input != NULL ? input->values : job->x,
        .x_stride = input != NULL ? input->stride : job->x_stride,
        .T = job->T,
        .y = job->y,
        .y_stride = job->y_stride,
        .first = job->first};
}

static void multiply(void *context, int64_t item, int worker)
{
    const plan *all = context;
    const task *found = all->tasks;
    int64_t low = 0, high = all->count; /* the last task whose first_item is not above item */
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (all->tasks[middle].first_item <= item)
            low = middle;
        else
            high = middle;
    }
    found += low;
    const fast_product *p = &found->product;
    int64_t begin = p->first + (item - found->first_item) * found->rows_of_item;
    int64_t end = p->first + found->job->rows;
    end = end - begin > found->rows_of_item ? begin + found->rows_of_item : end;
    all->c->kernels->linear->product(p, begin, end, all->scratch + worker * all->scratch_size);
    bool finite = true;
    for (int64_t t = 0; t < p->T && finite; t++)
        finite = all->c->kernels->quant->finite(p->y + t * p->y_stride + begin - p->first,
                                                end - begin);
    all->bad[item] = !finite;
}

/* Items of about equal work, `share` multiply-adds. Rows come in fours, as kernels like them. */
static int64_t rows_of_item(const plan *all, const fast_linear_job *job, int64_t share)
{
    int64_t threads = fast_pool_threads(all->c->pool);
    int64_t work = job->w->cols * job->T; /* of a row */
    int64_t rows = work > 0 ? share / work : job->rows;
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
        each->rows_of_item = rows_of_item(all, each->job, share);
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
        if (all->inputs[i].cols > all->scratch_size)
            all->scratch_size = all->inputs[i].cols;
    for (int64_t i = 0; i < all->count; i++) {
        int64_t size = c->kernels->linear->scratch_size(&all->tasks[i].product);
        all->scratch_size = size > all->scratch_size ? size : all->scratch_size;
    }
    all->scratch_size = (all->scratch_size + 15) / 16 * 16; /* threads share no cache line */
    all->scratch = FAST_TAKE(c, float, fast_pool_threads(c->pool) * all->scratch_size);
}

void fast_linear_jobs(const fast_context *c, const fast_linear_job *jobs, int64_t count)
{
    fast_place mark = fast_mark(c->memory);
    plan all = {.c = c,
                .tasks = FAST_TAKE(c, task, count),
                .inputs = FAST_TAKE(c, prepared, count)};
    for (int64_t i = 0; i < count; i++) {
        if (jobs[i].T == 0 || jobs[i].rows == 0)
            continue;
        all.tasks[all.count++] = (task){.product = product_of(&all, &jobs[i]), .job = &jobs[i]};
    }
    divide(&all);
    take_scratch(&all);
    all.bad = FAST_TAKE(c, bool, all.items);
    prepare_inputs(&all);
    fast_pool_run(c->pool, all.items, multiply, &all);
    report_bad(&all);
    fast_release(c->memory, mark);
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
