/* Golden cases answered by the fast path: named arrays to binary32, through the functions that a
 * forward pass is made of, and back. Not a chapter. */
#include "fast/fast.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A case in progress. What is taken from its memory stays until it is done. */
typedef struct {
    const dsv4_case *c;
    dsv4_case *answer;
    dsv4_config config; /* parameters, and the sizes of the inputs */
    fast_context fast;
} task;

static bool failed(const task *t)
{
    return t->fast.error->text[0] != '\0';
}

/* ---- inputs ---- */

static int64_t size(const task *t, const char *input, int dim)
{
    return dsv4_case_in(t->c, input)->shape[dim];
}

static double param(const task *t, const char *name)
{
    return dsv4_case_param(t->c, name, 0);
}

static void copy_values(const dsv4_array *from, float *to)
{
    for (int64_t i = 0; i < from->count; i++)
        to[i] = (float)dsv4_array_value(from, i);
}

static float *values(task *t, const char *input)
{
    const dsv4_array *array = dsv4_case_in(t->c, input);
    dsv4_part before = fast_enter(&t->fast, DSV4_PART_OTHER);
    float *x = FAST_TAKE(&t->fast, float, array->count);
    copy_values(array, x);
    fast_enter(&t->fast, before);
    return x;
}

static dsv4_matrix matrix(const task *t, const char *input)
{
    return dsv4_case_matrix(t->c, input);
}

static dsv4_hc hyper_connection(const task *t, const char *fn, const char *base, const char *scale)
{
    return (dsv4_hc){matrix(t, fn), matrix(t, base), matrix(t, scale)};
}

/* Indices must lie in [least, end); the rest of the case goes on with `least` in place of one that
 * does not. Rows of padding, where a schedule has such, may hold anything. */
static int64_t *indices(task *t, const char *input, const dsv4_schedule *schedule, int64_t least,
                        int64_t end)
{
    const dsv4_array *array = dsv4_case_in(t->c, input);
    const int64_t *given = array->data;
    dsv4_part before = fast_enter(&t->fast, DSV4_PART_OTHER);
    int64_t *index = FAST_TAKE(&t->fast, int64_t, array->count);
    for (int64_t i = 0; i < array->count; i++) {
        bool padding = schedule != NULL && schedule->sequence[i] < 0;
        bool good = given[i] >= least && given[i] < end;
        index[i] = good ? given[i] : least;
        if (!good && !padding)
            dsv4_fail(t->fast.error, "%s/%s: %s: value %lld is %lld, expected %lld..%lld",
                      t->c->op->name, t->c->name, input, (long long)i, (long long)given[i],
                      (long long)least, (long long)(end - 1));
    }
    fast_enter(&t->fast, before);
    return index;
}

static const double *frequencies(task *t, bool compressed)
{
    double *freq = FAST_TAKE(&t->fast, double, t->config.qk_rope_head_dim / 2);
    fast_rope_frequencies(&t->fast, compressed, freq);
    return freq;
}

/* Of the rows at the input `positions`. */
static const float *angles(task *t)
{
    int64_t T = size(t, "positions", 0);
    const int64_t *position = indices(t, "positions", NULL, 0, INT64_MAX);
    float *turns = FAST_TAKE(&t->fast, float, T * t->config.qk_rope_head_dim);
    fast_rope_angles(&t->fast, frequencies(t, param(t, "compressed") != 0), position, T, turns);
    return turns;
}

/* ---- outputs ---- */

#define RANK(...) (int)(sizeof (int64_t[]){__VA_ARGS__} / sizeof(int64_t))
#define OUT(t, name, ...) out(t, name, RANK(__VA_ARGS__), (int64_t[]){__VA_ARGS__})
#define OUT_AS(t, format, name, ...) \
    dsv4_case_add_out((t)->answer, name, format, RANK(__VA_ARGS__), (int64_t[]){__VA_ARGS__})->data

/* NaN to begin with: rows of padding stay so. */
static float *out(task *t, const char *name, int rank, const int64_t *shape)
{
    dsv4_part before = fast_enter(&t->fast, DSV4_PART_OTHER);
    const dsv4_array *array = dsv4_case_add_out(t->answer, name, DSV4_FORMAT_F32, rank, shape);
    float *data = array->data;
    for (int64_t i = 0; i < array->count; i++)
        data[i] = NAN;
    fast_enter(&t->fast, before);
    return data;
}

/* A copy of an input, for what works in place. */
static float *out_of(task *t, const char *name, const char *input)
{
    const dsv4_array *in = dsv4_case_in(t->c, input);
    float *data = out(t, name, in->rank, in->shape);
    dsv4_part before = fast_enter(&t->fast, DSV4_PART_OTHER);
    copy_values(in, data);
    fast_enter(&t->fast, before);
    return data;
}

/* ---- quant: codes ---- */

enum { TILE = 256, FP4_BLOCK = 32 };

/* The values of a stored matrix of one row, TILE wide, as products see them: by multiplying it with
 * unit vectors. */
static void read_tile(task *t, dsv4_dtype dtype, const uint8_t *codes, const uint8_t *scale,
                      float weight[TILE])
{
    const dsv4_matrix w = {.name = "codes", .file = t->c->name, .dtype = dtype, .rows = 1,
                           .cols = TILE, .data = codes, .scale = scale};
    fast_place mark = fast_mark(t->fast.memory);
    float *unit = FAST_TAKE(&t->fast, float, TILE * TILE);
    for (int i = 0; i < TILE * TILE; i++)
        unit[i] = i / TILE == i % TILE;
    fast_linear_f32(&t->fast, &w, unit, TILE, weight);
    fast_release(t->fast.memory, mark);
}

/* Tile after tile of what `codes` holds: as codes under scales of 1 or, of E8M0, as scales of codes
 * that are 1. */
static void decode(task *t, dsv4_dtype dtype, int64_t per_tile, int64_t values_per_byte)
{
    enum { E8M0_ONE = 127, E2M1_ONES = 0x22 };
    const dsv4_array *codes = dsv4_case_in(t->c, "codes");
    bool scales = dtype == DSV4_F8_E8M0;
    float *y = OUT(t, "values", values_per_byte * codes->count), weight[TILE];
    for (int64_t first = 0; first < codes->count; first += per_tile) {
        uint8_t code[TILE] = {0}, scale[TILE / FP4_BLOCK];
        int64_t count = codes->count - first < per_tile ? codes->count - first : per_tile;
        memset(scale, E8M0_ONE, sizeof scale);
        if (scales)
            memset(code, E2M1_ONES, sizeof code);
        memcpy(scales ? scale : code, (const uint8_t *)codes->data + first, (size_t)count);
        read_tile(t, scales ? DSV4_I8 : dtype, code, scale, weight);
        for (int64_t i = 0; i < values_per_byte * count; i++)
            y[values_per_byte * first + i] = weight[scales ? FP4_BLOCK * i : i];
    }
}

static void quant_e4m3_decode(task *t)
{
    decode(t, DSV4_F8_E4M3, TILE, 1);
}

static void quant_e2m1_decode(task *t)
{
    decode(t, DSV4_I8, TILE / 2, 2);
}

static void quant_e8m0_decode(task *t)
{
    decode(t, DSV4_F8_E8M0, TILE / FP4_BLOCK, 1);
}

/* A forward pass encodes nothing but blocks with scales of their own. A block whose largest
 * magnitude is the format's largest has the scale 1, so such a value stands in front of the others.
 * One beyond it would make the scale larger: a pass never has to saturate, so it is done here. */
static void encode(task *t, float top, void (*quantise)(const fast_quant_kernels *, float *))
{
    const dsv4_array *x = dsv4_case_in(t->c, "x");
    float *y = out_of(t, "values", "x"), block[FP4_BLOCK];
    for (int64_t first = 0; first < x->count; first += FP4_BLOCK - 1) {
        int64_t rest = x->count - first, count = rest < FP4_BLOCK - 1 ? rest : FP4_BLOCK - 1;
        memset(block, 0, sizeof block);
        block[0] = top;
        for (int64_t i = 0; i < count; i++)
            block[1 + i] = y[first + i] > top ? top : y[first + i] < -top ? -top : y[first + i];
        quantise(t->fast.kernels->quant, block);
        memcpy(y + first, block + 1, (size_t)count * sizeof *y);
    }
}

static void through_e4m3(const fast_quant_kernels *kernels, float *block)
{
    kernels->act_quant(block, FP4_BLOCK, FP4_BLOCK);
}

static void through_e2m1(const fast_quant_kernels *kernels, float *block)
{
    kernels->qdq_index(block, FP4_BLOCK);
}

static void quant_e4m3_encode(task *t)
{
    encode(t, 448, through_e4m3);
}

static void quant_e2m1_encode(task *t)
{
    encode(t, 6, through_e2m1);
}

/* ---- quant: activations ---- */

static void quant_act(task *t)
{
    float *y = out_of(t, "y", "x");
    if (t->fast.released)
        fast_act_quant(&t->fast, y, dsv4_case_in(t->c, "x")->count, (int64_t)param(t, "block"));
}

static void quant_kv(task *t)
{
    fast_qdq_kv(&t->fast, out_of(t, "y", "x"), size(t, "x", 0));
}

static void quant_index(task *t)
{
    fast_qdq_index(&t->fast, out_of(t, "y", "x"), size(t, "x", 0));
}

/* ---- linear ---- */

static void linear(task *t)
{
    dsv4_matrix w = matrix(t, "w");
    int64_t T = size(t, "x", 0);
    fast_linear(&t->fast, &w, values(t, "x"), T, OUT(t, "y", T, w.rows));
}

static void linear_f32(task *t)
{
    dsv4_matrix w = matrix(t, "w");
    int64_t T = size(t, "x", 0);
    fast_linear_f32(&t->fast, &w, values(t, "x"), T, OUT(t, "y", T, w.rows));
}

static void linear_grouped(task *t)
{
    dsv4_matrix w = matrix(t, "w");
    int64_t T = size(t, "x", 0);
    fast_linear_grouped(&t->fast, &w, size(t, "x", 1), values(t, "x"), T, OUT(t, "y", T, w.rows));
}

/* ---- rmsnorm, rope, hadamard, embed ---- */

static void rmsnorm(task *t)
{
    dsv4_matrix weight = matrix(t, "weight");
    int64_t T = size(t, "x", 0);
    fast_rmsnorm(&t->fast, &weight, values(t, "x"), T, OUT(t, "y", T, weight.cols));
}

static void rmsnorm_head(task *t)
{
    fast_rmsnorm_head(&t->fast, out_of(t, "y", "x"), size(t, "x", 0) * size(t, "x", 1));
}

/* Binary64, as the rotations of EXACT take them. */
static void rope_frequencies(task *t)
{
    double *freq = OUT_AS(t, DSV4_FORMAT_F64, "freq", t->config.qk_rope_head_dim / 2);
    fast_rope_frequencies(&t->fast, param(t, "compressed") != 0, freq);
}

static void rotate(task *t, bool inverse)
{
    int64_t d = size(t, "x", 1), R = t->config.qk_rope_head_dim;
    const float *turns = angles(t);
    float *y = out_of(t, "y", "x");
    for (int64_t i = 0; i < size(t, "x", 0); i++)
        fast_rope(&t->fast, turns + i * R, inverse, y + i * d, d, 1);
}

static void rope(task *t)
{
    rotate(t, false);
}

static void rope_inverse(task *t)
{
    rotate(t, true);
}

static void hadamard(task *t)
{
    fast_hadamard(&t->fast, out_of(t, "y", "x"), size(t, "x", 1), size(t, "x", 0));
}

static void embed(task *t)
{
    dsv4_matrix weight = matrix(t, "embed");
    int64_t T = size(t, "token_ids", 0), D = weight.cols;
    const int64_t *ids = indices(t, "token_ids", NULL, 0, weight.rows);
    float *e = FAST_TAKE(&t->fast, float, T * D);
    fast_embed(&t->fast, &weight, ids, T, e);
    fast_streams(&t->fast, e, T, OUT(t, "h", T, t->config.hc_mult, D));
}

/* ---- mhc ---- */

static void mhc_mix(task *t)
{
    dsv4_hc hc = hyper_connection(t, "fn", "base", "scale");
    int64_t T = size(t, "x", 0), n = size(t, "x", 1);
    float *pre = OUT(t, "pre", T, n), *post = OUT(t, "post", T, n), *comb = OUT(t, "comb", T, n, n);
    fast_mhc_mix(&t->fast, &hc, values(t, "x"), T, pre, post, comb);
}

static void mhc_sinkhorn(task *t)
{
    fast_mhc_sinkhorn(&t->fast, out_of(t, "comb", "logits"), size(t, "logits", 0));
}

static void mhc_pre(task *t)
{
    int64_t T = size(t, "x", 0);
    fast_mhc_pre(&t->fast, values(t, "pre"), values(t, "x"), T, OUT(t, "u", T, size(t, "x", 2)));
}

static void mhc_post(task *t)
{
    fast_mhc_post(&t->fast, values(t, "post"), values(t, "comb"), values(t, "y"), size(t, "x", 0),
                  out_of(t, "x_new", "x"));
}

/* ---- sequences: operators with a state ---- */

/* A schedule on its way, call by call. Every sequence has its state; its rows in a call are a
 * segment, and those of all sequences are computed at once. Rows of padding are left out. */
typedef struct sequences sequences;

/* Where the tap of a sequence finds the rows of the call in progress. */
typedef struct {
    sequences *all;
    const fast_segment *segment;
} watch;

struct sequences {
    dsv4_schedule schedule;
    int64_t next;             /* row of the case that the next call begins with */
    fast_call call;
    int64_t *row;             /* [T]: where in the case the call's rows come from */
    int64_t *position;        /* [T] */
    fast_segment *segment;
    int64_t *number;          /* [segments]: of the sequence */
    fast_layer_state **layer; /* [segments] */
    fast_state **state;       /* [sequences], or NULL */
    watch *watches;           /* [sequences] */
    dsv4_tap *taps;           /* [sequences] */
    float *q, *kv;            /* outputs that the taps fill, or NULL */
};

static bool schedule_open(task *t, sequences *s)
{
    *s = (sequences){.next = 0};
    if (dsv4_case_schedule(t->c, &s->schedule, t->fast.error) != 0)
        return false;
    int64_t rows = s->schedule.rows;
    s->row = FAST_TAKE(&t->fast, int64_t, rows);
    s->position = FAST_TAKE(&t->fast, int64_t, rows);
    s->segment = FAST_TAKE(&t->fast, fast_segment, rows);
    s->number = FAST_TAKE(&t->fast, int64_t, rows);
    s->layer = FAST_TAKE(&t->fast, fast_layer_state *, rows);
    s->call = (fast_call){.segment = s->segment, .position = s->position};
    return true;
}

static void sequences_close(sequences *s)
{
    for (int64_t i = 0; i < s->schedule.sequences && s->state != NULL; i++)
        fast_state_free(s->state[i]);
    free(s->state);
    free(s->watches);
    free(s->taps);
    dsv4_schedule_free(&s->schedule);
}

static void see(void *context, const dsv4_point *point)
{
    const watch *w = context;
    float *all = strcmp(point->name, "q") == 0    ? w->all->q
                 : strcmp(point->name, "kv") == 0 ? w->all->kv
                                                  : NULL;
    int64_t width = point->dim[0] * (point->rank == 2 ? point->dim[1] : 1);
    for (int64_t i = 0; i < point->rows && all != NULL; i++) {
        int64_t in_call = w->segment->first + point->row + i - w->segment->position;
        for (int64_t j = 0; j < width; j++)
            all[w->all->row[in_call] * width + j] = (float)point->values[i * width + j];
    }
}

/* States of the case's only layer, or of an MTP layer. False with an error; close in any case. */
static bool sequences_open(task *t, sequences *s, bool mtp)
{
    if (!schedule_open(t, s))
        return false;
    size_t count = (size_t)s->schedule.sequences;
    s->state = dsv4_alloc(count, sizeof *s->state);
    s->watches = dsv4_alloc(count, sizeof *s->watches);
    s->taps = dsv4_alloc(count, sizeof *s->taps);
    for (int64_t i = 0; i < s->schedule.sequences; i++) {
        s->state[i] = fast_state_new(&t->config, t->fast.released, mtp, s->schedule.length[i],
                                     t->fast.error);
        if (s->state[i] == NULL)
            return false;
        s->watches[i] = (watch){.all = s};
        s->taps[i] = (dsv4_tap){see, &s->watches[i]};
    }
    return true;
}

/* Outputs q and kv, which lie inside the attention. */
static void watch_q_and_kv(task *t, sequences *s)
{
    int64_t N = s->schedule.rows, d = t->config.head_dim;
    s->q = OUT(t, "q", N, t->config.num_attention_heads, d);
    s->kv = OUT(t, "kv", N, d);
}

static void join_call(sequences *s, int64_t row)
{
    const dsv4_schedule *all = &s->schedule;
    int64_t sequence = all->sequence[row], in_call = s->call.T++;
    s->row[in_call] = row;
    s->position[in_call] = all->position[row];
    if (all->position[row] == all->start[row]) {
        fast_segment *segment = &s->segment[s->call.segments];
        s->number[s->call.segments] = sequence;
        *segment = (fast_segment){.first = in_call, .position = all->position[row]};
        if (s->state != NULL) {
            segment->state = s->state[sequence];
            segment->tap = s->q != NULL ? &s->taps[sequence] : NULL;
            s->layer[s->call.segments] = s->state[sequence]->layer;
            s->watches[sequence].segment = segment;
        }
        s->call.segments++;
    }
    s->segment[s->call.segments - 1].rows++;
}

/* The next call that has more than padding. False after the last, and after an error. */
static bool next_call(const task *t, sequences *s)
{
    const dsv4_schedule *all = &s->schedule;
    s->call.T = s->call.segments = 0;
    while (s->next < all->rows && s->call.T == 0 && !failed(t)) {
        int64_t number = all->call[s->next];
        for (; s->next < all->rows && all->call[s->next] == number; s->next++)
            if (all->sequence[s->next] >= 0)
                join_call(s, s->next);
    }
    return s->call.T > 0;
}

/* Rows of the call, from those of the case. */
static float *gather(task *t, const sequences *s, const float *x, int64_t width)
{
    float *rows = FAST_TAKE(&t->fast, float, s->call.T * width);
    for (int64_t i = 0; i < s->call.T; i++)
        memcpy(rows + i * width, x + s->row[i] * width, (size_t)width * sizeof *x);
    return rows;
}

static const int64_t *gather_ids(task *t, const sequences *s, const int64_t *ids)
{
    int64_t *rows = FAST_TAKE(&t->fast, int64_t, s->call.T);
    for (int64_t i = 0; i < s->call.T; i++)
        rows[i] = ids[s->row[i]];
    return rows;
}

static void scatter(const sequences *s, const float *rows, int64_t width, float *y)
{
    for (int64_t i = 0; i < s->call.T; i++)
        memcpy(y + s->row[i] * width, rows + i * width, (size_t)width * sizeof *y);
}

/* ---- compressor ---- */

static void compressor_entry(task *t)
{
    dsv4_matrix norm = matrix(t, "norm");
    const double *freq = frequencies(t, true);
    const int64_t *group = indices(t, "group", NULL, 0, INT64_C(1) << 32);
    const float *weight = fast_vector(&t->fast, &norm);
    float *entries = out_of(t, "entries", "pooled");
    for (int64_t i = 0; i < size(t, "pooled", 0); i++)
        fast_compressor_finish(&t->fast, weight, param(t, "index") != 0, norm.cols, freq,
                               group[i] * (int64_t)param(t, "ratio"), entries + i * norm.cols);
}

/* All entries: sequence after sequence. */
static void show_entries(task *t, const sequences *s, fast_compressor_state *const *state,
                         int64_t d)
{
    int64_t total = 0;
    for (int64_t i = 0; i < s->schedule.sequences; i++)
        total += state[i]->entries.count;
    float *entries = OUT(t, "entries", total, d);
    for (int64_t i = 0; i < s->schedule.sequences; i++) {
        fast_entries_get(&t->fast, &state[i]->entries, 0, state[i]->entries.count, entries);
        entries += state[i]->entries.count * d;
    }
}

static void run_compressor(task *t, sequences *s, bool index)
{
    dsv4_compressor w = {matrix(t, "ape"), matrix(t, "norm"), matrix(t, "wkv"), matrix(t, "wgate")};
    const float *x = values(t, "x");
    const double *freq = frequencies(t, true);
    fast_compressor_state **state, **of_call;
    state = FAST_TAKE(&t->fast, fast_compressor_state *, s->schedule.sequences);
    of_call = FAST_TAKE(&t->fast, fast_compressor_state *, s->schedule.sequences);
    for (int64_t i = 0; i < s->schedule.sequences; i++)
        state[i] = index ? &s->state[i]->layer->index : &s->state[i]->layer->compressor;
    while (next_call(t, s)) {
        fast_place mark = fast_mark(t->fast.memory);
        int64_t T = s->call.T;
        const float *rows = gather(t, s, x, size(t, "x", 1));
        float *a = FAST_TAKE(&t->fast, float, T * w.wkv.rows);
        float *z = FAST_TAKE(&t->fast, float, T * w.wgate.rows);
        for (int64_t i = 0; i < s->call.segments; i++)
            of_call[i] = state[s->number[i]];
        fast_linear_f32(&t->fast, &w.wkv, rows, T, a);
        fast_linear_f32(&t->fast, &w.wgate, rows, T, z);
        fast_compress(&t->fast, &s->call, &w, of_call, freq, a, z);
        fast_release(t->fast.memory, mark);
    }
    show_entries(t, s, state, w.norm.cols);
}

static void compressor(task *t)
{
    sequences s;
    bool index = param(t, "index") != 0;
    if (index && param(t, "ratio") != 4) {
        dsv4_fail(t->fast.error, "%s/%s: index: an indexer's compressor has the ratio 4, not %g",
                  t->c->op->name, t->c->name, param(t, "ratio"));
        return;
    }
    if (sequences_open(t, &s, false))
        run_compressor(t, &s, index);
    sequences_close(&s);
}

/* ---- indexer ---- */

static void indexer_query(task *t)
{
    dsv4_matrix wq_b = matrix(t, "wq_b");
    int64_t T = size(t, "qr", 0);
    float *iq = OUT(t, "iq", T, t->config.index_n_heads, t->config.index_head_dim);
    fast_linear(&t->fast, &wq_b, values(t, "qr"), T, iq);
    fast_index_query(&t->fast, angles(t), T, iq);
}

static void indexer_weights(task *t)
{
    dsv4_matrix weights_proj = matrix(t, "weights_proj");
    int64_t T = size(t, "x", 0);
    float *w = OUT(t, "w", T, t->config.index_n_heads);
    fast_linear(&t->fast, &weights_proj, values(t, "x"), T, w);
    fast_index_weights(&t->fast, T, w);
}

/* Keys of the case as a state keeps them. In RELEASED that is as codes, for QDQ has made them; keys
 * that it has not made stay as they are. */
static fast_entries code_keys(task *t)
{
    int64_t G = size(t, "keys", 0), d_i = size(t, "keys", 1);
    float *keys = values(t, "keys");
    fast_entries plain = {.index = true, .head = d_i, .count = G, .values = keys};
    if (!t->fast.released || d_i % FP4_BLOCK != 0)
        return plain;
    fast_entries coded = {.index = true, .head = d_i};
    float *back = FAST_TAKE(&t->fast, float, G * d_i);
    coded.codes = FAST_TAKE(&t->fast, uint8_t, G * d_i / 2);
    coded.scales = FAST_TAKE(&t->fast, uint8_t, G * d_i / FP4_BLOCK);
    for (int64_t g = 0; g < G; g++)
        fast_entries_push(&t->fast, &coded, keys + g * d_i);
    fast_entries_get(&t->fast, &coded, 0, G, back);
    for (int64_t i = 0; i < G * d_i; i++)
        if (back[i] != keys[i])
            return plain;
    return coded;
}

static fast_entries store_keys(task *t)
{
    dsv4_part before = fast_enter(&t->fast, DSV4_PART_OTHER); /* a pass finds them so */
    fast_entries keys = code_keys(t);
    fast_enter(&t->fast, before);
    return keys;
}

/* The keys of some rows are shared out among the threads, as in a pass. */
typedef struct {
    const task *t;
    const fast_entries *keys;
    const float *iq, *w;
    int64_t T, n_i, d_i, items; /* of FAST_INDEX_ROWS rows */
    float *score, *scratch;
    int64_t scratch_size;
} scan;

enum { KEYS_PER_ITEM = 4096 };

static int64_t at_most(int64_t count, int64_t most)
{
    return count < most ? count : most;
}

static void scan_keys(void *context, int64_t item, int worker)
{
    const scan *s = context;
    int64_t row = item / s->items * FAST_INDEX_ROWS, first = item % s->items * KEYS_PER_ITEM;
    int64_t G = s->keys->count, count[FAST_INDEX_ROWS];
    for (int i = 0; i < FAST_INDEX_ROWS; i++)
        count[i] = at_most(G - first, KEYS_PER_ITEM);
    const fast_index_rows rows = {at_most(s->T - row, FAST_INDEX_ROWS),
                                  s->iq + row * s->n_i * s->d_i, s->w + row * s->n_i, count,
                                  s->score + row * G + first, G};
    fast_index_scores(&s->t->fast, &rows, s->keys, first, s->scratch + worker * s->scratch_size);
}

static void indexer_score(task *t)
{
    int64_t T = size(t, "iq", 0), G = size(t, "keys", 0);
    const fast_entries keys = store_keys(t);
    scan s = {.t = t, .keys = &keys, .iq = values(t, "iq"), .w = values(t, "w"), .T = T,
              .n_i = size(t, "iq", 1), .d_i = size(t, "iq", 2), .score = OUT(t, "score", T, G)};
    s.items = (G + KEYS_PER_ITEM - 1) / KEYS_PER_ITEM;
    s.scratch_size = fast_index_scratch(&t->fast);
    s.scratch = FAST_TAKE(&t->fast, float, s.scratch_size * fast_pool_threads(t->fast.pool));
    int64_t groups = (T + FAST_INDEX_ROWS - 1) / FAST_INDEX_ROWS;
    fast_pool_run(t->fast.pool, groups * s.items, scan_keys, &s);
}

static void indexer_select(task *t)
{
    int64_t T = size(t, "score", 0), G = size(t, "score", 1), k = t->config.index_topk;
    int64_t width = k < G ? k : G, ratio = (int64_t)param(t, "ratio");
    const float *score = values(t, "score");
    const int64_t *position = indices(t, "positions", NULL, 0, INT64_MAX);
    int64_t *selected = OUT_AS(t, DSV4_FORMAT_I64, "selected", T, width);
    uint32_t *scratch = FAST_TAKE(&t->fast, uint32_t, G);
    for (int64_t i = 0; i < T; i++, selected += width) {
        int64_t visible = fast_visible(position[i], ratio);
        int64_t count = fast_select(score + i * G, visible < G ? visible : G, k, selected, scratch);
        for (; count < width; count++)
            selected[count] = -1;
    }
}

/* ---- attention ---- */

static void core_attn(task *t)
{
    int64_t T = size(t, "q", 0), H = size(t, "q", 1), d = size(t, "q", 2), L = size(t, "list", 1);
    const float *q = values(t, "q"), *entries = values(t, "entries");
    const float *sink = values(t, "attn_sink");
    const int64_t *place = indices(t, "list", NULL, -1, size(t, "entries", 0));
    const float **e = FAST_TAKE(&t->fast, const float *, L);
    int64_t *slot = FAST_TAKE(&t->fast, int64_t, L);
    int64_t part = (H + 1) / 2; /* heads at a time, as threads share them */
    float *scratch = FAST_TAKE(&t->fast, float, fast_core_attn_scratch(&t->fast, part));
    float *y = OUT(t, "out", T, H, d);
    for (int64_t i = 0; i < T; i++) {
        fast_list list = {.e = e, .slot = slot};
        for (int64_t j = 0; j < L; j++) {
            if (place[i * L + j] < 0)
                continue;
            e[list.count] = entries + place[i * L + j] * d;
            slot[list.count++] = j;
        }
        for (int64_t first = 0; first < H; first += part)
            fast_core_attn(&t->fast, q + i * H * d, sink, &list, first,
                           H - first < part ? H - first : part, y + i * H * d, scratch);
    }
}

static void attention_output(task *t)
{
    dsv4_matrix wo_a = matrix(t, "wo_a"), wo_b = matrix(t, "wo_b");
    int64_t T = size(t, "core", 0);
    fast_attention_output(&t->fast, &wo_a, &wo_b, angles(t), values(t, "core"), T,
                          OUT(t, "y", T, wo_b.rows));
}

static void attention(task *t)
{
    int64_t D = size(t, "x", 1);
    const float *x = values(t, "x");
    sequences s;
    dsv4_layer layer;
    dsv4_case_layer(t->c, &t->config, &layer);
    if (sequences_open(t, &s, false)) {
        float *y = OUT(t, "y", s.schedule.rows, D);
        watch_q_and_kv(t, &s);
        while (next_call(t, &s)) {
            fast_place mark = fast_mark(t->fast.memory);
            float *rows = FAST_TAKE(&t->fast, float, s.call.T * D);
            fast_attention(&t->fast, &s.call, &layer, s.layer, gather(t, &s, x, D), rows);
            scatter(&s, rows, D, y);
            fast_release(t->fast.memory, mark);
        }
    }
    sequences_close(&s);
    dsv4_case_layer_free(&layer);
}

/* ---- experts ---- */

/* -> s [T, E] */
static const float *gate(task *t, dsv4_layer *layer, const int64_t *ids)
{
    int64_t T = size(t, "x", 0), k = t->config.num_experts_per_tok;
    float *s = FAST_TAKE(&t->fast, float, T * t->config.n_routed_experts);
    int64_t *chosen = OUT_AS(t, DSV4_FORMAT_I64, "route_index", T, k);
    float *weight = OUT(t, "route_weight", T, k);
    layer->ffn.gate.weight = matrix(t, "weight");
    fast_gate_scores(&t->fast, layer, values(t, "x"), T, s);
    fast_gate_choose(&t->fast, layer, s, ids, T, chosen);
    fast_gate_weigh(&t->fast, s, chosen, T, weight);
    return s;
}

/* `biased` is what the choice is judged by. */
static void gate_score(task *t)
{
    dsv4_layer layer = {.ffn.gate.bias = matrix(t, "bias")};
    int64_t T = size(t, "x", 0), E = size(t, "bias", 0);
    int64_t *no_ids = FAST_TAKE(&t->fast, int64_t, T);
    memset(no_ids, 0, (size_t)T * sizeof *no_ids);
    const float *s = gate(t, &layer, no_ids), *bias = fast_vector(&t->fast, &layer.ffn.gate.bias);
    float *biased = OUT(t, "biased", T, E);
    for (int64_t i = 0; i < T * E; i++)
        biased[i] = s[i] + bias[i % E];
}

static void gate_hash(task *t)
{
    dsv4_layer layer = {.hash = true, .ffn.gate.tid2eid = matrix(t, "tid2eid")};
    gate(t, &layer, indices(t, "token_ids", NULL, 0, layer.ffn.gate.tid2eid.rows));
}

static void expert(task *t)
{
    dsv4_expert w = {matrix(t, "w1"), matrix(t, "w2"), matrix(t, "w3")};
    int64_t T = size(t, "x", 0);
    bool weighed = dsv4_case_in(t->c, "weight") != NULL;
    const fast_expert_job job = {&w, T, values(t, "x"), weighed ? values(t, "weight") : NULL,
                                 OUT(t, "y", T, size(t, "x", 1))};
    fast_experts(&t->fast, &job, 1);
}

/* Token ids matter to a layer only where it looks experts up by them. */
static int64_t id_end(const dsv4_layer *layer)
{
    return layer->hash ? layer->ffn.gate.tid2eid.rows : INT64_MAX;
}

static void moe(task *t)
{
    int64_t T = size(t, "x", 0);
    int64_t *position = FAST_TAKE(&t->fast, int64_t, T);
    for (int64_t i = 0; i < T; i++)
        position[i] = i;
    const fast_segment all = {.rows = T};
    const fast_call call = {.T = T, .segments = 1, .segment = &all, .position = position};
    dsv4_layer layer;
    dsv4_case_layer(t->c, &t->config, &layer);
    const int64_t *ids = indices(t, "token_ids", NULL, 0, id_end(&layer));
    fast_moe(&t->fast, &call, &layer, ids, values(t, "x"), OUT(t, "y", T, size(t, "x", 1)));
    dsv4_case_layer_free(&layer);
}

/* ---- the whole ---- */

static void block(task *t)
{
    int64_t n = size(t, "h", 1), D = size(t, "h", 2);
    const float *h = values(t, "h");
    sequences s;
    dsv4_layer layer;
    dsv4_case_layer(t->c, &t->config, &layer);
    if (sequences_open(t, &s, false)) {
        const int64_t *ids = indices(t, "token_ids", &s.schedule, 0, id_end(&layer));
        float *h_new = OUT(t, "h_new", s.schedule.rows, n, D);
        while (next_call(t, &s)) {
            fast_place mark = fast_mark(t->fast.memory);
            float *rows = gather(t, &s, h, n * D);
            fast_block(&t->fast, &s.call, &layer, s.layer, gather_ids(t, &s, ids), rows);
            scatter(&s, rows, n * D, h_new);
            fast_release(t->fast.memory, mark);
        }
    }
    sequences_close(&s);
    dsv4_case_layer_free(&layer);
}

static void head(task *t)
{
    dsv4_hc hc = hyper_connection(t, "hc_head_fn", "hc_head_base", "hc_head_scale");
    dsv4_matrix norm = matrix(t, "norm"), weight = matrix(t, "head");
    int64_t T = size(t, "h", 0);
    fast_head(&t->fast, &hc, &norm, &weight, values(t, "h"), T, OUT(t, "logits", T, weight.rows));
}

static void mtp(task *t)
{
    int64_t nD = size(t, "h", 1) * size(t, "h", 2);
    const float *h = values(t, "h");
    sequences s;
    dsv4_layer layer;
    dsv4_case_layer(t->c, &t->config, &layer);
    dsv4_model model = {.embed = matrix(t, "embed"), .head = matrix(t, "head"), .mtp = &layer};
    if (sequences_open(t, &s, true)) {
        int64_t V = model.head.rows;
        const int64_t *ids = indices(t, "next_ids", &s.schedule, 0, model.embed.rows);
        float *logits = OUT(t, "logits", s.schedule.rows, V);
        watch_q_and_kv(t, &s);
        while (next_call(t, &s)) {
            fast_place mark = fast_mark(t->fast.memory);
            float *x = FAST_TAKE(&t->fast, float, s.call.T * nD);
            float *rows = FAST_TAKE(&t->fast, float, s.call.T * V);
            fast_mtp(&t->fast, &s.call, &model, gather_ids(t, &s, ids), gather(t, &s, h, nD), x);
            fast_head(&t->fast, &layer.hc_head, &layer.norm, &model.head, x, s.call.T, rows);
            scatter(&s, rows, V, logits);
            fast_release(t->fast.memory, mark);
        }
    }
    sequences_close(&s);
    dsv4_case_layer_free(&layer);
}

/* The id behind each row in its sequence. Behind the last it is unknown, and MTP's row free: 0. */
static const int64_t *following(task *t, const dsv4_schedule *schedule, const int64_t *ids)
{
    int64_t *next = FAST_TAKE(&t->fast, int64_t, schedule->rows);
    int64_t *later = FAST_TAKE(&t->fast, int64_t, schedule->sequences);
    memset(later, 0, (size_t)schedule->sequences * sizeof *later);
    for (int64_t i = schedule->rows - 1; i >= 0; i--) {
        int64_t sequence = schedule->sequence[i];
        next[i] = 0;
        if (sequence < 0)
            continue;
        next[i] = later[sequence];
        later[sequence] = ids[i];
    }
    return next;
}

/* One call on the runs of its sequences, all at once where there are several. logits [N, V]. */
static int present(task *t, const sequences *s, dsv4_run **run, bool mtp_layer, const int64_t *ids,
                   int64_t V, double *logits)
{
    int64_t count = s->call.segments;
    dsv4_run **runs = FAST_TAKE(&t->fast, dsv4_run *, count);
    const int64_t **of = FAST_TAKE(&t->fast, const int64_t *, count);
    int64_t *n = FAST_TAKE(&t->fast, int64_t, count);
    double **to = FAST_TAKE(&t->fast, double *, count);
    for (int64_t i = 0; i < count; i++) { /* rows of a segment stand together in the case */
        int64_t first = s->row[s->segment[i].first];
        runs[i] = run[s->number[i]];
        of[i] = ids + first;
        n[i] = s->segment[i].rows;
        to[i] = logits + first * V;
    }
    const dsv4_path *path = &dsv4_path_fast;
    if (count == 1)
        return (mtp_layer ? path->mtp : path->forward)(runs[0], of[0], n[0], to[0], t->fast.error);
    return (mtp_layer ? path->mtp_batch : path->forward_batch)(runs, count, of, n, to,
                                                               t->fast.error);
}

static double *out_logits(task *t, const char *name, int64_t rows, int64_t V)
{
    double *logits = OUT_AS(t, DSV4_FORMAT_F64, name, rows, V);
    for (int64_t i = 0; i < rows * V; i++)
        logits[i] = NAN;
    return logits;
}

static void run_model(task *t, const dsv4_model *model, sequences *s, dsv4_run **run)
{
    const dsv4_schedule *all = &s->schedule;
    int64_t V = model->config.vocab_size;
    const int64_t *ids = indices(t, "token_ids", all, 0, V), *next = following(t, all, ids);
    double *logits = out_logits(t, "logits", all->rows, V);
    double *mtp_logits =
        model->mtp != NULL ? out_logits(t, "mtp_logits", all->rows, V) : NULL;
    for (int64_t i = 0; i < all->sequences; i++)
        if ((run[i] = dsv4_path_fast.open(model, t->c->numerics, all->length[i], NULL,
                                          t->fast.error)) == NULL)
            return;
    while (next_call(t, s))
        if (present(t, s, run, false, ids, V, logits) != 0 ||
            (mtp_logits != NULL && present(t, s, run, true, next, V, mtp_logits) != 0))
            return;
}

static void forward(task *t)
{
    char dir[sizeof t->c->directory + sizeof t->c->checkpoint + 1];
    dsv4_model model;
    sequences s; /* the runs have the states */
    snprintf(dir, sizeof dir, "%s/%s", t->c->directory, t->c->checkpoint);
    if (!schedule_open(t, &s))
        return;
    if (dsv4_model_open(&model, dir, t->c->numerics, true, t->fast.error) == 0) {
        dsv4_run **run = dsv4_alloc((size_t)s.schedule.sequences, sizeof *run);
        run_model(t, &model, &s, run);
        for (int64_t i = 0; i < s.schedule.sequences; i++)
            dsv4_path_fast.close(run[i]);
        free(run);
        dsv4_model_close(&model);
    }
    sequences_close(&s);
}

static void muon(task *t)
{
    const fast_muon_options options = {param(t, "momentum"), param(t, "learning_rate"),
                                       param(t, "weight_decay"), param(t, "rescale")};
    fast_muon_step(&t->fast, &options, size(t, "G", 0), size(t, "G", 1), values(t, "G"),
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

/* The operator, and the seconds that it took but for what is `other`: operands and outputs. */
static double timed(task *t, void (*answer)(task *))
{
    dsv4_profile sum = {{{0}}};
    fast_profile profile = fast_profile_start(&sum);
    double seconds = 0;
    t->fast.profile = &profile;
    fast_enter(&t->fast, DSV4_PART_EMBED); /* any part but `other` */
    answer(t);
    fast_enter(&t->fast, DSV4_PART_OTHER);
    for (int kind = 0; kind < DSV4_PROFILE_KINDS; kind++)
        for (int part = DSV4_PART_OTHER + 1; part < DSV4_PARTS; part++)
            seconds += sum.seconds[kind][part];
    return seconds;
}

/* A dsv4_answer_function, the context of which is a double or NULL: see dsv4_path. */
int fast_answer(void *context, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    const fast_kernels *kernels = fast_configured_kernels(); /* sets up the others too */
    if (kernels == NULL)
        return dsv4_fail(err, "the fast path cannot be set up as DSV4_ISA asks");
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        if (strcmp(operators[i].name, c->op->name) != 0)
            continue;
        task t = {.c = c, .answer = answer};
        dsv4_case_config(c, &t.config);
        t.fast = (fast_context){
            .config = &t.config,
            .released = c->numerics == DSV4_RELEASED,
            .deterministic = fast_configured_deterministic(),
            .kernels = kernels,
            .pool = fast_configured_pool(),
            .memory = fast_memory_new(),
            .error = err,
        };
        if (context != NULL)
            *(double *)context += timed(&t, operators[i].answer);
        else
            operators[i].answer(&t);
        fast_memory_free(t.fast.memory);
        dsv4_config_free(&t.config);
        return err->text[0] == '\0' ? 0 : -1;
    }
    return 1;
}
