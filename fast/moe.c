/* spec/moe.md: the mixture of experts of one layer, its rows grouped by expert. */
#include "fast/fast.h"
#include "fast/lanes.h"

/* Rows that are taken through the experts at once. More would read the experts less often, and ask
 * for more memory: about 4 (k + 1) (2 D + 2 I) bytes a row. */
enum { SLAB = 1024 };

/* What the experts make of rows 0 .. T - 1. A place is one row of one chosen expert; the places of
 * an expert are together, experts in ascending order. */
typedef struct {
    const fast_context *c;
    int64_t k, D;
    const int64_t *place;        /* [T, k]: ascending within a row */
    const float *part, *shared;  /* [T k, D] by place, [T, D] */
    float *y;                    /* [T, D] */
} mixture;

/* moe.sum.1, moe.shared.1, moe.round.1: one row. */
static void add_row(void *context, int64_t t, int worker)
{
    const mixture *m = context;
    int64_t D = m->D, i = 0;
    const int64_t *place = m->place + t * m->k;
    const float *shared = m->shared + t * D;
    float *y = m->y + t * D;
    (void)worker;
    for (; i + LANES <= D; i += LANES) {
        lanes sum = {0};
        for (int64_t e = 0; e < m->k; e++)
            sum += lanes_load(m->part + place[e] * D + i);
        lanes_store(y + i, sum + lanes_load(shared + i));
    }
    for (; i < D; i++) {
        float sum = 0;
        for (int64_t e = 0; e < m->k; e++)
            sum += m->part[place[e] * D + i];
        y[i] = sum + shared[i];
    }
    if (m->c->released)
        m->c->kernels->quant->bf16(y, D);
}

static void sort_ascending(int64_t *x, int64_t count)
{
    for (int64_t i = 1; i < count; i++) {
        int64_t value = x[i], at = i;
        for (; at > 0 && x[at - 1] > value; at--)
            x[at] = x[at - 1];
        x[at] = value;
    }
}

/* The places of the choices chosen [T, k] -> place [T, k], in the order of `chosen`; begin [E + 1]:
 * where the places of each expert begin. An expert that stands twice in a choice has two places. */
static void group(const int64_t *chosen, int64_t count, int64_t E, int64_t *place, int64_t *begin)
{
    for (int64_t e = 0; e <= E; e++)
        begin[e] = 0;
    for (int64_t i = 0; i < count; i++)
        begin[chosen[i] + 1]++;
    for (int64_t e = 0; e < E; e++)
        begin[e + 1] += begin[e];
    for (int64_t i = 0; i < count; i++)
        place[i] = begin[chosen[i]]++;
    for (int64_t e = E; e > 0; e--) /* each one has moved to where the next one began */
        begin[e] = begin[e - 1];
    begin[0] = 0;
}

/* The rows of x that the places hold -> rows [T k, D]. */
typedef struct { const float *x; float *rows; const int64_t *source; int64_t D; } copies;

static void copy_row(void *context, int64_t place, int worker)
{
    const copies *all = context;
    (void)worker;
    memcpy(all->rows + place * all->D, all->x + all->source[place] * all->D,
           (size_t)all->D * sizeof *all->x);
}

/* T rows through their experts. */
static void mix(const fast_context *c, const dsv4_layer *layer, const int64_t *chosen,
                const float *weight, const float *x, int64_t T, float *y)
{
    int64_t D = c->config->hidden_size, E = c->config->n_routed_experts;
    int64_t k = c->config->num_experts_per_tok, count = 0;
    fast_place mark = fast_mark(c->memory);
    int64_t *place = FAST_TAKE(c, int64_t, T * k), *begin = FAST_TAKE(c, int64_t, E + 1);
    int64_t *source = FAST_TAKE(c, int64_t, T * k);
    float *weight_at = FAST_TAKE(c, float, T * k);
    float *rows = FAST_TAKE(c, float, T * k * D), *shared = FAST_TAKE(c, float, T * D);
    fast_expert_job *jobs = FAST_TAKE(c, fast_expert_job, (T * k < E ? T * k : E) + 1);

    group(chosen, T * k, E, place, begin);
    for (int64_t i = 0; i < T * k; i++) {
        source[place[i]] = i / k;
        weight_at[place[i]] = weight[i];
    }
    bool copied = false;
    for (int64_t e = 0; e < E; e++) {
        int64_t at = begin[e], n = begin[e + 1] - at;
        if (n == 0)
            continue;
        /* A row that is alone stays where it is; the outputs take the place of the inputs. */
        jobs[count++] = (fast_expert_job){
            .w = &layer->ffn.experts[e], .rows = n,
            .x = n == 1 ? x + source[at] * D : rows + at * D,
            .weight = weight_at + at, .y = rows + at * D};
        copied |= n > 1;
    }
    if (copied)
        fast_pool_run(c->pool, T * k, copy_row, &(copies){x, rows, source, D});
    jobs[count++] = (fast_expert_job){.w = &layer->ffn.shared_experts, .rows = T, .x = x,
                                      .y = shared};
    fast_experts(c, jobs, count);
    for (int64_t t = 0; t < T; t++)
        sort_ascending(place + t * k, k);
    fast_pool_run(c->pool, T, add_row, &(mixture){c, k, D, place, rows, shared, y});
    fast_release(c->memory, mark);
}

void fast_moe(const fast_context *c, const fast_call *call, const dsv4_layer *layer,
              const int64_t *ids, const float *x, float *y)
{
    int64_t T = call->T, D = c->config->hidden_size;
    int64_t E = c->config->n_routed_experts, k = c->config->num_experts_per_tok;
    fast_place mark = fast_mark(c->memory);
    float *s = FAST_TAKE(c, float, T * E), *weight = FAST_TAKE(c, float, T * k);
    int64_t *chosen = FAST_TAKE(c, int64_t, T * k);
    fast_enter(c, DSV4_PART_ROUTER);
    fast_gate_scores(c, layer, x, T, s);
    fast_gate_choose(c, layer, s, ids, T, chosen);
    /* The tap may put other experts in place; they are weighed by the scores found here. */
    for (int64_t i = 0; i < call->segments; i++) {
        const fast_segment *segment = call->segment + i;
        fast_tap_indices(c, segment, "route_index", segment->position, segment->rows, k,
                         chosen + segment->first * k);
    }
    fast_gate_weigh(c, s, chosen, T, weight);
    fast_tap(c, call, "route_weight", k, 0, weight);
    fast_enter(c, DSV4_PART_EXPERTS);
    for (int64_t t = 0; t < T; t += SLAB)
        mix(c, layer, chosen + t * k, weight + t * k, x + t * D, T - t < SLAB ? T - t : SLAB,
            y + t * D);
    fast_tap(c, call, "ffn_out", D, 0, y);
    fast_release(c->memory, mark);
}
