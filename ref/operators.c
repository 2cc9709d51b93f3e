/* Golden cases answered by the reference: from named arrays to the functions of the chapters, and
 * back. Not a chapter. Who adapts an engine of his own to the vectors finds here, operator by
 * operator, which input goes where. */
#include "ref.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A case in progress. What an operator keeps is released after it. */
typedef struct {
    const dsv4_case *c;
    dsv4_case *answer;
    dsv4_config config; /* parameters, and the sizes of the inputs */
    ref_context ref;
    void *kept[16];
    int kept_count;
} task;

/* ---- inputs ---- */

static void *keep(task *t, void *memory)
{
    return t->kept[t->kept_count++] = memory;
}

static int64_t size(const task *t, const char *input, int dim)
{
    return dsv4_case_in(t->c, input)->shape[dim];
}

static double param(const task *t, const char *name)
{
    return dsv4_case_param(t->c, name, 0);
}

static double *values(task *t, const char *input)
{
    return keep(t, dsv4_case_values(t->c, input));
}

/* Indices from `least` to `end` - 1. Others are an error, and become `least` for the rest of this
 * case. The padding rows of a schedule (or NULL) may hold anything. */
static int64_t *indices(task *t, const char *input, const dsv4_schedule *schedule, int64_t least,
                        int64_t end)
{
    int64_t *index = keep(t, dsv4_case_indices(t->c, input));
    for (int64_t i = 0; i < dsv4_case_in(t->c, input)->count; i++) {
        if (index[i] >= least && index[i] < end)
            continue;
        if (schedule == NULL || schedule->sequence[i] >= 0)
            dsv4_fail(t->ref.error, "%s/%s: %s: value %lld is %lld, expected %lld..%lld",
                      t->c->op->name, t->c->name, input, (long long)i, (long long)index[i],
                      (long long)least, (long long)(end - 1));
        index[i] = least;
    }
    return index;
}

static int64_t *positions(task *t)
{
    return indices(t, "positions", NULL, 0, INT64_MAX);
}

static dsv4_matrix matrix(const task *t, const char *input)
{
    return dsv4_case_matrix(t->c, input);
}

static dsv4_hc hyper_connection(const task *t, const char *fn, const char *base, const char *scale)
{
    return (dsv4_hc){matrix(t, fn), matrix(t, base), matrix(t, scale)};
}

static double *frequencies(task *t, bool compressed)
{
    double *freq = keep(t, ref_new(t->config.qk_rope_head_dim / 2));
    ref_rope_frequencies(&t->ref, compressed, freq);
    return freq;
}

/* ---- outputs ---- */

#define RANK(...) (int)(sizeof (int64_t[]){__VA_ARGS__} / sizeof(int64_t))
#define OUT(t, name, ...) out(t, name, RANK(__VA_ARGS__), (int64_t[]){__VA_ARGS__})
#define OUT_INDICES(t, name, ...) out_indices(t, name, RANK(__VA_ARGS__), (int64_t[]){__VA_ARGS__})

/* Begins as NaN: rows that nobody fills, those of padding, stay so. */
static double *out(task *t, const char *name, int rank, const int64_t *shape)
{
    const dsv4_array *array =
        dsv4_case_add_out(t->answer, name, DSV4_FORMAT_F64, rank, shape);
    double *data = array->data;
    for (int64_t i = 0; i < array->count; i++)
        data[i] = NAN;
    return data;
}

/* Begins as a copy of an input, for functions that work in place. */
static double *out_of(task *t, const char *name, const char *input)
{
    const dsv4_array *in = dsv4_case_in(t->c, input);
    double *data = out(t, name, in->rank, in->shape);
    return memcpy(data, values(t, input), (size_t)in->count * sizeof *data);
}

static int64_t *out_indices(task *t, const char *name, int rank, const int64_t *shape)
{
    return dsv4_case_add_out(t->answer, name, DSV4_FORMAT_I64, rank, shape)->data;
}

/* ---- quant ---- */

static void decode(task *t, double (*value)(int))
{
    const dsv4_array *codes = dsv4_case_in(t->c, "codes");
    double *y = OUT(t, "values", codes->count);
    for (int64_t i = 0; i < codes->count; i++)
        y[i] = value(((const uint8_t *)codes->data)[i]);
}

static void quant_e4m3_decode(task *t)
{
    decode(t, ref_decode_e4m3);
}

static void quant_e8m0_decode(task *t)
{
    decode(t, ref_decode_e8m0);
}

static void quant_e2m1_decode(task *t)
{
    const dsv4_array *codes = dsv4_case_in(t->c, "codes");
    double *y = OUT(t, "values", 2 * codes->count);
    for (int64_t i = 0; i < codes->count; i++) {
        int byte = ((const uint8_t *)codes->data)[i];
        y[2 * i] = ref_decode_e2m1(byte & 15);
        y[2 * i + 1] = ref_decode_e2m1(byte >> 4);
    }
}

static void encode(task *t, double (*nearest)(double))
{
    double *y = out_of(t, "values", "x");
    for (int64_t i = 0; i < size(t, "x", 0); i++)
        y[i] = nearest(y[i]);
}

static void quant_e4m3_encode(task *t)
{
    encode(t, ref_encode_e4m3);
}

static void quant_e2m1_encode(task *t)
{
    encode(t, ref_encode_e2m1);
}

static void quant_act(task *t)
{
    double *y = out_of(t, "y", "x");
    if (t->ref.numerics == DSV4_RELEASED)
        ref_act_quant(y, size(t, "x", 0) * size(t, "x", 1), (int64_t)param(t, "block"));
}

static void quant_kv(task *t)
{
    double *y = out_of(t, "y", "x");
    for (int64_t i = 0; i < size(t, "x", 0); i++)
        ref_qdq_kv(&t->ref, y + i * t->config.head_dim);
}

static void quant_index(task *t)
{
    double *y = out_of(t, "y", "x");
    for (int64_t i = 0; i < size(t, "x", 0); i++)
        ref_qdq_index(&t->ref, y + i * t->config.index_head_dim);
}

/* ---- linear ---- */

static void linear(task *t)
{
    dsv4_matrix w = matrix(t, "w");
    int64_t T = size(t, "x", 0);
    ref_linear(&t->ref, &w, values(t, "x"), T, OUT(t, "y", T, w.rows));
}

static void linear_f32(task *t)
{
    dsv4_matrix w = matrix(t, "w");
    int64_t T = size(t, "x", 0);
    ref_linear_f32(&t->ref, &w, values(t, "x"), T, OUT(t, "y", T, w.rows));
}

static void linear_grouped(task *t)
{
    dsv4_matrix w = matrix(t, "w");
    int64_t T = size(t, "x", 0), groups = size(t, "x", 1);
    ref_linear_grouped(&t->ref, &w, groups, values(t, "x"), T, OUT(t, "y", T, w.rows));
}

/* ---- rmsnorm, rope, hadamard, embed ---- */

static void rmsnorm(task *t)
{
    dsv4_matrix weight = matrix(t, "weight");
    int64_t T = size(t, "x", 0);
    ref_rmsnorm(&t->ref, &weight, values(t, "x"), T, OUT(t, "y", T, weight.cols));
}

static void rmsnorm_head(task *t)
{
    ref_rmsnorm_head(&t->ref, out_of(t, "y", "x"), size(t, "x", 0) * size(t, "x", 1));
}

static void rope_frequencies(task *t)
{
    ref_rope_frequencies(&t->ref, param(t, "compressed") != 0,
                         OUT(t, "freq", t->config.qk_rope_head_dim / 2));
}

static void rotate(task *t, void (*turn)(const ref_context *, const double *, int64_t, double *,
                                         int64_t))
{
    const double *freq = frequencies(t, param(t, "compressed") != 0);
    const int64_t *position = positions(t);
    int64_t d = size(t, "x", 1);
    double *y = out_of(t, "y", "x");
    for (int64_t i = 0; i < size(t, "x", 0); i++)
        turn(&t->ref, freq, position[i], y + i * d, d);
}

static void rope(task *t)
{
    rotate(t, ref_rope);
}

static void rope_inverse(task *t)
{
    rotate(t, ref_rope_inverse);
}

static void hadamard(task *t)
{
    double *y = out_of(t, "y", "x");
    for (int64_t i = 0; i < size(t, "x", 0); i++)
        ref_hadamard(&t->ref, y + i * size(t, "x", 1), size(t, "x", 1));
}

static void embed(task *t)
{
    dsv4_matrix weight = matrix(t, "embed");
    int64_t T = size(t, "token_ids", 0), D = weight.cols;
    double *e = keep(t, ref_new(T * D));
    ref_embed(&t->ref, &weight, indices(t, "token_ids", NULL, 0, weight.rows), T, e);
    ref_streams(&t->ref, e, T, OUT(t, "h", T, t->config.hc_mult, D));
}

/* ---- mhc ---- */

static void mhc_mix(task *t)
{
    dsv4_hc hc = hyper_connection(t, "fn", "base", "scale");
    int64_t T = size(t, "x", 0), n = size(t, "x", 1), D = size(t, "x", 2);
    const double *x = values(t, "x");
    double *pre = OUT(t, "pre", T, n), *post = OUT(t, "post", T, n);
    double *comb = OUT(t, "comb", T, n, n);
    for (int64_t i = 0; i < T; i++)
        ref_mhc_mix(&t->ref, &hc, x + i * n * D, pre + i * n, post + i * n, comb + i * n * n);
}

static void mhc_sinkhorn(task *t)
{
    int64_t n = size(t, "logits", 1);
    double *comb = out_of(t, "comb", "logits");
    for (int64_t i = 0; i < size(t, "logits", 0); i++)
        ref_mhc_sinkhorn(&t->ref, comb + i * n * n);
}

static void mhc_pre(task *t)
{
    int64_t T = size(t, "x", 0), n = size(t, "x", 1), D = size(t, "x", 2);
    const double *pre = values(t, "pre"), *x = values(t, "x");
    double *u = OUT(t, "u", T, D);
    for (int64_t i = 0; i < T; i++)
        ref_mhc_pre(&t->ref, pre + i * n, x + i * n * D, u + i * D);
}

static void mhc_post(task *t)
{
    int64_t n = size(t, "x", 1), D = size(t, "x", 2);
    const double *post = values(t, "post"), *comb = values(t, "comb"), *y = values(t, "y");
    double *x = out_of(t, "x_new", "x");
    for (int64_t i = 0; i < size(t, "x", 0); i++)
        ref_mhc_post(&t->ref, post + i * n, comb + i * n * n, y + i * D, x + i * n * D);
}

/* ---- sequences: operators with a state ---- */

/* Every sequence has its state. The rows of one sequence in one call are a piece, and are computed
 * in one go. */
typedef struct {
    dsv4_schedule schedule;
    ref_state **state;    /* [sequences] */
    int64_t first, rows;  /* the piece */
    int64_t position;     /* of its first row in its sequence */
    ref_state *now;       /* of its sequence */
    double *q, *kv;       /* outputs that the tap fills, or NULL */
    dsv4_tap tap;
} sequences;

/* With one layer of the case's `ratio`: a layer of the model, or its MTP layer. */
static bool sequences_open(task *t, sequences *s, bool mtp)
{
    *s = (sequences){.state = NULL};
    if (dsv4_case_schedule(t->c, &s->schedule, t->ref.error) != 0)
        return false;
    s->state = dsv4_alloc((size_t)s->schedule.sequences, sizeof *s->state);
    for (int64_t i = 0; i < s->schedule.sequences; i++)
        s->state[i] = ref_state_new(&t->config, mtp, s->schedule.length[i]);
    return true;
}

static void sequences_close(sequences *s)
{
    for (int64_t i = 0; i < s->schedule.sequences; i++)
        ref_state_free(s->state[i]);
    free(s->state);
    dsv4_schedule_free(&s->schedule);
}

/* The next piece: rows s->first to s->first + s->rows - 1. False after the last. */
static bool next_piece(sequences *s)
{
    const dsv4_schedule *all = &s->schedule;
    int64_t first = s->first + s->rows, end;
    while (first < all->rows && all->sequence[first] < 0)
        first++;
    for (end = first; end < all->rows; end++)
        if (all->sequence[end] != all->sequence[first] || all->call[end] != all->call[first])
            break;
    s->first = first;
    s->rows = end - first;
    if (s->rows == 0)
        return false;
    s->position = all->position[first];
    s->now = s->state != NULL ? s->state[all->sequence[first]] : NULL;
    return true;
}

static void see_row(void *context, const dsv4_point *point)
{
    const sequences *s = context;
    double *all = strcmp(point->name, "q") == 0    ? s->q
                  : strcmp(point->name, "kv") == 0 ? s->kv
                                                   : NULL;
    int64_t width = point->rank == 2 ? point->dim[0] * point->dim[1] : point->dim[0];
    if (all != NULL)
        memcpy(all + (s->first + point->row - s->position) * width, point->values,
               (size_t)(point->rows * width) * sizeof *all);
}

/* Outputs q and kv, which lie inside the attention. */
static void watch_q_and_kv(task *t, sequences *s)
{
    int64_t N = s->schedule.rows, d = t->config.head_dim;
    s->q = OUT(t, "q", N, t->config.num_attention_heads, d);
    s->kv = OUT(t, "kv", N, d);
    s->tap = (dsv4_tap){see_row, s};
    t->ref.tap = &s->tap;
}

/* ---- compressor ---- */

static void compressor_entry(task *t)
{
    dsv4_matrix norm = matrix(t, "norm");
    const double *freq = frequencies(t, true);
    const int64_t *group = indices(t, "group", NULL, 0, INT64_C(1) << 32);
    int64_t d = norm.cols, ratio = (int64_t)param(t, "ratio");
    double *entries = out_of(t, "entries", "pooled");
    for (int64_t i = 0; i < size(t, "pooled", 0); i++) {
        double *entry = entries + i * d;
        ref_bf16_all(&t->ref, entry, d);
        ref_rmsnorm(&t->ref, &norm, entry, 1, entry);
        ref_rope(&t->ref, freq, group[i] * ratio, entry, d);
        if (param(t, "index") != 0) {
            ref_hadamard(&t->ref, entry, d);
            ref_qdq_index(&t->ref, entry);
        } else {
            ref_qdq_kv(&t->ref, entry);
        }
    }
}

static void compressor(task *t)
{
    dsv4_compressor w = {matrix(t, "ape"), matrix(t, "norm"), matrix(t, "wkv"), matrix(t, "wgate")};
    int64_t d = w.norm.cols, D = size(t, "x", 1), total = 0;
    const double *x = values(t, "x"), *freq = frequencies(t, true);
    sequences s;
    if (!sequences_open(t, &s, false))
        return;
    while (next_piece(&s)) {
        ref_compressor_state *state = &s.now->layer->compressor;
        state->index = param(t, "index") != 0; /* either kind is d wide here */
        ref_compress(&t->ref, &w, state, freq, s.position, x + s.first * D, s.rows);
    }
    for (int64_t i = 0; i < s.schedule.sequences; i++)
        total += s.state[i]->layer->compressor.count;
    double *entries = OUT(t, "entries", total, d);
    for (int64_t i = 0; i < s.schedule.sequences; i++) {
        int64_t count = s.state[i]->layer->compressor.count * d;
        memcpy(entries, s.state[i]->layer->compressor.entries, (size_t)count * sizeof *entries);
        entries += count;
    }
    sequences_close(&s);
}

/* ---- indexer ---- */

static void indexer_query(task *t)
{
    dsv4_layer layer = {.attn.indexer.wq_b = matrix(t, "wq_b")};
    const double *qr = values(t, "qr"), *freq = frequencies(t, param(t, "compressed") != 0);
    const int64_t *position = positions(t);
    int64_t T = size(t, "qr", 0), Q = size(t, "qr", 1);
    int64_t n_i = t->config.index_n_heads, d_i = t->config.index_head_dim;
    double *iq = OUT(t, "iq", T, n_i, d_i);
    for (int64_t i = 0; i < T; i++)
        ref_index_query(&t->ref, &layer, freq, position[i], qr + i * Q, 1, iq + i * n_i * d_i);
}

static void indexer_weights(task *t)
{
    dsv4_layer layer = {.attn.indexer.weights_proj = matrix(t, "weights_proj")};
    int64_t T = size(t, "x", 0);
    ref_index_weights(&t->ref, &layer, values(t, "x"), T, OUT(t, "w", T, t->config.index_n_heads));
}

static void indexer_score(task *t)
{
    int64_t T = size(t, "iq", 0), n_i = size(t, "iq", 1), d_i = size(t, "iq", 2);
    int64_t G = size(t, "keys", 0);
    const double *iq = values(t, "iq"), *w = values(t, "w"), *keys = values(t, "keys");
    double *score = OUT(t, "score", T, G);
    for (int64_t i = 0; i < T; i++)
        ref_index_scores(&t->ref, iq + i * n_i * d_i, w + i * n_i, keys, G, score + i * G);
}

static void indexer_select(task *t)
{
    int64_t T = size(t, "score", 0), G = size(t, "score", 1), k = t->config.index_topk;
    int64_t width = k < G ? k : G, ratio = (int64_t)param(t, "ratio");
    const double *score = values(t, "score");
    const int64_t *position = positions(t);
    int64_t *selected = OUT_INDICES(t, "selected", T, width);
    for (int64_t i = 0; i < T; i++, score += G, selected += width) {
        int64_t visible = ref_visible(position[i], ratio);
        int64_t count = ref_select(score, visible < G ? visible : G, k, selected);
        for (; count < width; count++)
            selected[count] = -1;
    }
}

/* ---- attention ---- */

static void core_attn(task *t)
{
    int64_t T = size(t, "q", 0), H = size(t, "q", 1), d = size(t, "q", 2), L = size(t, "list", 1);
    const double *q = values(t, "q"), *entries = values(t, "entries");
    const double *sink = values(t, "attn_sink");
    const int64_t *slots = indices(t, "list", NULL, -1, size(t, "entries", 0));
    ref_entry *list = keep(t, dsv4_alloc((size_t)L, sizeof *list));
    double *y = OUT(t, "out", T, H, d);
    for (int64_t i = 0; i < T; i++) {
        int64_t count = 0;
        for (int64_t slot = 0; slot < L; slot++)
            if (slots[i * L + slot] >= 0)
                list[count++] = (ref_entry){entries + slots[i * L + slot] * d, slot};
        ref_core_attn(&t->ref, q + i * H * d, sink, list, count, y + i * H * d);
    }
}

static void attention_output(task *t)
{
    dsv4_matrix wo_a = matrix(t, "wo_a"), wo_b = matrix(t, "wo_b");
    int64_t T = size(t, "core", 0), H = size(t, "core", 1), d = size(t, "core", 2);
    double *core = values(t, "core"), *grouped = keep(t, ref_new(T * wo_a.rows));
    const double *freq = frequencies(t, param(t, "compressed") != 0);
    const int64_t *position = positions(t);
    for (int64_t i = 0; i < T * H; i++)
        ref_rope_inverse(&t->ref, freq, position[i / H], core + i * d, d);
    ref_linear_grouped(&t->ref, &wo_a, t->config.o_groups, core, T, grouped);
    ref_linear(&t->ref, &wo_b, grouped, T, OUT(t, "y", T, wo_b.rows));
}

static void attention(task *t)
{
    int64_t D = size(t, "x", 1);
    const double *x = values(t, "x");
    sequences s;
    dsv4_layer layer;
    if (!sequences_open(t, &s, false))
        return;
    dsv4_case_layer(t->c, &t->config, &layer);
    double *y = OUT(t, "y", s.schedule.rows, D);
    watch_q_and_kv(t, &s);
    while (next_piece(&s))
        ref_attention(&t->ref, &layer, s.now->layer, s.position, x + s.first * D, s.rows,
                      y + s.first * D);
    dsv4_case_layer_free(&layer);
    sequences_close(&s);
}

/* ---- experts ---- */

static void gate(task *t, dsv4_layer *layer, const int64_t *ids)
{
    const double *x = values(t, "x");
    int64_t T = size(t, "x", 0), D = size(t, "x", 1), k = t->config.num_experts_per_tok;
    layer->ffn.gate.weight = matrix(t, "weight");
    int64_t *chosen = OUT_INDICES(t, "route_index", T, k);
    double *weight = OUT(t, "route_weight", T, k);
    for (int64_t i = 0; i < T; i++)
        ref_gate(&t->ref, layer, x + i * D, ids != NULL ? ids[i] : 0, chosen + i * k,
                 weight + i * k);
}

/* `biased` is what the choice is judged by. */
static void gate_score(task *t)
{
    dsv4_layer layer = {.ffn.gate.bias = matrix(t, "bias")};
    gate(t, &layer, NULL);
    int64_t T = size(t, "x", 0), D = size(t, "x", 1), E = size(t, "bias", 0);
    const double *x = values(t, "x"), *bias = values(t, "bias");
    double *biased = OUT(t, "biased", T, E);
    for (int64_t i = 0; i < T; i++, biased += E) {
        ref_gate_scores(&t->ref, &layer, x + i * D, biased);
        for (int64_t e = 0; e < E; e++)
            biased[e] = ref_f32(&t->ref, biased[e] + bias[e]);
    }
}

static void gate_hash(task *t)
{
    dsv4_layer layer = {.hash = true, .ffn.gate.tid2eid = matrix(t, "tid2eid")};
    gate(t, &layer, indices(t, "token_ids", NULL, 0, layer.ffn.gate.tid2eid.rows));
}

static void expert(task *t)
{
    dsv4_expert w = {matrix(t, "w1"), matrix(t, "w2"), matrix(t, "w3")};
    int64_t T = size(t, "x", 0), D = size(t, "x", 1);
    const double *x = values(t, "x");
    const double *weight = dsv4_case_in(t->c, "weight") != NULL ? values(t, "weight") : NULL;
    double *y = OUT(t, "y", T, D);
    for (int64_t i = 0; i < T; i++)
        ref_expert(&t->ref, &w, weight != NULL ? weight + i : NULL, x + i * D, y + i * D);
}

/* Token ids matter to a layer only where it looks experts up by them. */
static int64_t id_end(const dsv4_layer *layer)
{
    return layer->hash ? layer->ffn.gate.tid2eid.rows : INT64_MAX;
}

static void moe(task *t)
{
    int64_t T = size(t, "x", 0), D = size(t, "x", 1);
    dsv4_layer layer;
    dsv4_case_layer(t->c, &t->config, &layer);
    ref_moe(&t->ref, &layer, indices(t, "token_ids", NULL, 0, id_end(&layer)), 0, values(t, "x"), T,
            OUT(t, "y", T, D));
    dsv4_case_layer_free(&layer);
}

/* ---- the whole ---- */

static void block(task *t)
{
    int64_t nD = size(t, "h", 1) * size(t, "h", 2);
    const double *h = values(t, "h");
    sequences s;
    dsv4_layer layer;
    if (!sequences_open(t, &s, false))
        return;
    dsv4_case_layer(t->c, &t->config, &layer);
    const int64_t *ids = indices(t, "token_ids", &s.schedule, 0, id_end(&layer));
    double *h_new = OUT(t, "h_new", s.schedule.rows, size(t, "h", 1), size(t, "h", 2));
    while (next_piece(&s)) {
        double *rows = h_new + s.first * nD;
        memcpy(rows, h + s.first * nD, (size_t)(s.rows * nD) * sizeof *rows);
        ref_block(&t->ref, &layer, s.now->layer, ids + s.first, s.position, rows, s.rows);
    }
    dsv4_case_layer_free(&layer);
    sequences_close(&s);
}

static void head(task *t)
{
    dsv4_hc hc = hyper_connection(t, "hc_head_fn", "hc_head_base", "hc_head_scale");
    dsv4_matrix norm = matrix(t, "norm"), weight = matrix(t, "head");
    int64_t T = size(t, "h", 0);
    ref_head(&t->ref, &hc, &norm, &weight, values(t, "h"), T, OUT(t, "logits", T, weight.rows));
}

static void mtp(task *t)
{
    int64_t nD = size(t, "h", 1) * size(t, "h", 2);
    const double *h = values(t, "h");
    sequences s;
    dsv4_layer layer;
    if (!sequences_open(t, &s, true))
        return;
    dsv4_case_layer(t->c, &t->config, &layer);
    dsv4_model model = {.embed = matrix(t, "embed"), .head = matrix(t, "head"), .mtp = &layer};
    const int64_t *next_ids = indices(t, "next_ids", &s.schedule, 0, model.embed.rows);
    double *logits = OUT(t, "logits", s.schedule.rows, model.head.rows);
    watch_q_and_kv(t, &s);
    while (next_piece(&s))
        ref_mtp(&t->ref, &model, s.now, next_ids + s.first, h + s.first * nD, s.rows,
                logits + s.first * model.head.rows);
    dsv4_case_layer_free(&layer);
    sequences_close(&s);
}

/* The id after each row in its sequence; 0 after the last. */
static int64_t *following(task *t, const dsv4_schedule *schedule, const int64_t *ids)
{
    int64_t *next = keep(t, dsv4_alloc((size_t)schedule->rows, sizeof *next));
    int64_t *after = keep(t, dsv4_alloc((size_t)schedule->sequences, sizeof *after));
    for (int64_t i = schedule->rows - 1; i >= 0; i--) {
        if (schedule->sequence[i] < 0)
            continue;
        next[i] = after[schedule->sequence[i]];
        after[schedule->sequence[i]] = ids[i];
    }
    return next;
}

/* All of a schedule through runs of the model, one run per sequence. */
static int run_model(task *t, const dsv4_model *model, sequences *s, dsv4_run **run)
{
    const dsv4_schedule *all = &s->schedule;
    int64_t V = model->config.vocab_size;
    const int64_t *ids = indices(t, "token_ids", all, 0, V), *next = following(t, all, ids);
    double *logits = OUT(t, "logits", all->rows, V), *mtp_logits = NULL;
    if (model->mtp != NULL)
        mtp_logits = OUT(t, "mtp_logits", all->rows, V);
    for (int64_t i = 0; i < all->sequences; i++)
        if ((run[i] = dsv4_path_ref.open(model, t->ref.numerics, all->length[i], NULL,
                                         t->ref.error)) == NULL)
            return -1;
    while (next_piece(s)) {
        int64_t sequence = all->sequence[s->first];
        if (dsv4_path_ref.forward(run[sequence], ids + s->first, s->rows, logits + s->first * V,
                                  t->ref.error) != 0 ||
            (mtp_logits != NULL &&
             dsv4_path_ref.mtp(run[sequence], next + s->first, s->rows, mtp_logits + s->first * V,
                               t->ref.error) != 0))
            return -1;
    }
    /* Nobody knows what follows the last token of a sequence: its row is free. */
    for (int64_t i = 0; i < all->rows && mtp_logits != NULL; i++)
        if (all->sequence[i] >= 0 && all->position[i] == all->length[all->sequence[i]] - 1)
            for (int64_t v = 0; v < V; v++)
                mtp_logits[i * V + v] = NAN;
    return 0;
}

static void forward(task *t)
{
    char dir[sizeof t->c->directory + sizeof t->c->checkpoint + 1];
    dsv4_model model;
    sequences s = {.state = NULL}; /* the runs keep theirs */
    snprintf(dir, sizeof dir, "%s/%s", t->c->directory, t->c->checkpoint);
    if (dsv4_case_schedule(t->c, &s.schedule, t->ref.error) != 0)
        return;
    if (dsv4_model_open(&model, dir, t->ref.numerics, true, t->ref.error) == 0) {
        dsv4_run **run = dsv4_alloc((size_t)s.schedule.sequences, sizeof *run);
        run_model(t, &model, &s, run);
        for (int64_t i = 0; i < s.schedule.sequences; i++)
            dsv4_path_ref.close(run[i]);
        free(run);
        dsv4_model_close(&model);
    }
    dsv4_schedule_free(&s.schedule);
}

static void muon(task *t)
{
    const ref_muon_options options = {param(t, "momentum"), param(t, "learning_rate"),
                                      param(t, "weight_decay"), param(t, "rescale")};
    ref_muon_step(&options, size(t, "G", 0), size(t, "G", 1), values(t, "G"),
                  out_of(t, "B_new", "B"), out_of(t, "M_new", "M"));
}

static const struct { const char *name; void (*answer)(task *); } operators[] = {
    {"quant_e4m3_decode", quant_e4m3_decode},
    {"quant_e4m3_encode", quant_e4m3_encode},
    {"quant_e2m1_decode", quant_e2m1_decode},
    {"quant_e2m1_encode", quant_e2m1_encode},
    {"quant_e8m0_decode", quant_e8m0_decode},
    {"quant_act", quant_act},
    {"quant_kv", quant_kv},
    {"quant_index", quant_index},
    {"linear_fp8", linear},
    {"linear_fp4", linear},
    {"linear_plain", linear},
    {"linear_f32", linear_f32},
    {"linear_grouped", linear_grouped},
    {"rmsnorm", rmsnorm},
    {"rmsnorm_head", rmsnorm_head},
    {"rope_frequencies", rope_frequencies},
    {"rope", rope},
    {"rope_inverse", rope_inverse},
    {"hadamard", hadamard},
    {"embed", embed},
    {"mhc_mix", mhc_mix},
    {"mhc_sinkhorn", mhc_sinkhorn},
    {"mhc_pre", mhc_pre},
    {"mhc_post", mhc_post},
    {"compressor_entry", compressor_entry},
    {"compressor_csa", compressor},
    {"compressor_hca", compressor},
    {"indexer_query", indexer_query},
    {"indexer_weights", indexer_weights},
    {"indexer_score", indexer_score},
    {"indexer_select", indexer_select},
    {"core_attn", core_attn},
    {"attention_output", attention_output},
    {"attention_swa", attention},
    {"attention_csa", attention},
    {"attention_hca", attention},
    {"gate_score", gate_score},
    {"gate_hash", gate_hash},
    {"expert", expert},
    {"moe", moe},
    {"block", block},
    {"head", head},
    {"mtp", mtp},
    {"forward", forward},
    {"muon", muon},
};

/* A dsv4_answer_function without a context. */
int ref_answer(void *context, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    (void)context;
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        if (strcmp(operators[i].name, c->op->name) != 0)
            continue;
        task t = {.c = c, .answer = answer};
        dsv4_case_config(c, &t.config);
        t.ref = (ref_context){.config = &t.config, .numerics = c->numerics, .error = err};
        operators[i].answer(&t);
        for (int j = 0; j < t.kept_count; j++)
            free(t.kept[j]);
        dsv4_config_free(&t.config);
        return err->text[0] == '\0' ? 0 : -1;
    }
    return 1;
}
