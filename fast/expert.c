/* spec/expert.md: experts, each a clamped SwiGLU over rows of its own. */
#include "fast/fast.h"

/* g [I], v [I] of one row of one expert, and its routing weight. */
typedef struct { float *g, *v; float weight; int64_t I; } inner_row;

typedef struct { const fast_context *c; const inner_row *row; } inner_rows;

/* expert.clamp.1, expert.act.1, expert.act.2 */
static void activate(void *context, int64_t item, int worker)
{
    const inner_rows *all = context;
    const inner_row *row = all->row + item;
    const fast_context *c = all->c;
    (void)worker;
    c->kernels->expert->swiglu(row->g, row->v, row->weight, c->config->swiglu_limit, row->I,
                               c->released);
}

static fast_linear_job product(const dsv4_matrix *w, const float *x, int64_t rows, float *y)
{
    return (fast_linear_job){.kind = FAST_LINEAR, .w = w, .first = 0, .rows = w->rows, .x = x,
                             .T = rows, .x_stride = w->cols, .y = y, .y_stride = w->rows};
}

/* The inner products of all jobs, then all activations, then the outer products. A job's y may be
 * its x: the outputs are written last. */
void fast_experts(const fast_context *c, const fast_expert_job *jobs, int64_t count)
{
    fast_place mark = fast_mark(c->memory);
    int64_t rows = 0, values = 0, at = 0, jobs_in = 0, jobs_out = 0;
    for (int64_t j = 0; j < count; j++) {
        rows += jobs[j].rows;
        values += jobs[j].rows * jobs[j].w->w1.rows;
    }
    float *g = FAST_TAKE(c, float, values), *v = FAST_TAKE(c, float, values);
    inner_row *row = FAST_TAKE(c, inner_row, rows);
    fast_linear_job *in = FAST_TAKE(c, fast_linear_job, 2 * count);
    fast_linear_job *out = FAST_TAKE(c, fast_linear_job, count);
    for (int64_t j = 0; j < count; j++) {
        const fast_expert_job *job = jobs + j;
        int64_t I = job->w->w1.rows;
        if (job->rows == 0)
            continue;
        in[jobs_in++] = product(&job->w->w1, job->x, job->rows, g); /* expert.in.1 */
        in[jobs_in++] = product(&job->w->w3, job->x, job->rows, v);
        out[jobs_out++] = product(&job->w->w2, g, job->rows, job->y); /* expert.out.1 */
        for (int64_t r = 0; r < job->rows; r++, g += I, v += I)
            row[at++] = (inner_row){g, v, job->weight != NULL ? job->weight[r] : 1, I};
    }
    inner_rows all = {c, row};
    fast_linear_jobs(c, in, jobs_in);
    fast_pool_run(c->pool, rows, activate, &all);
    fast_linear_jobs(c, out, jobs_out);
    fast_release(c->memory, mark);
}
