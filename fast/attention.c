/* spec/attention.md: the attention sublayer of SWA, CSA and HCA layers. */
#include "fast/fast.h"

#include <math.h>
#include <string.h>

/* Rows attend together as long as their scores, or what they select, are no more values than
 * this. */
enum { MOST_SCORES = 1 << 24, KEYS_PER_ITEM = 4096 };
enum { TILE = 16 }; /* heads that tiles take at once */

/* What is computed for all rows of a call before any of them attends. */
typedef struct {
    const fast_context *c;
    const fast_call *call;
    const dsv4_layer *layer;
    fast_layer_state *const *state;
    const int64_t *segment_of; /* [T] */
    float *q, *kv, *core;      /* [T, H, d], [T, d], [T, H, d] */
    float *iq, *w;             /* CSA: [T, n_i, d_i], [T, n_i] */
    float *angles;             /* [T, R] */
    float *sink;               /* [H] */
    const fast_row_kernels *tiles; /* that attend, from rows: NULL where none do */
    int64_t row_size;
    uint16_t *kv_rows;         /* [T] */
    uint16_t **window_rows;    /* of each segment [window]: NULL where few would take them */
} sublayer;

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- queries and keys ---- */

/* One row's heads: normalised and rotated (attention.query.2, attention.query.3). */
static void finish_query(void *context, int64_t row, int worker)
{
    const sublayer *s = context;
    const dsv4_config *config = s->c->config;
    int64_t H = config->num_attention_heads, d = config->head_dim;
    float *q = s->q + row * H * d;
    (void)worker;
    for (int64_t h = 0; h < H; h++)
        s->c->kernels->rmsnorm->head(q + h * d, d, config->rms_norm_eps, s->c->released);
    fast_rope(s->c, s->angles + row * config->qk_rope_head_dim, false, q, d, H);
}

static void make_keys(const sublayer *s, int64_t T)
{
    const dsv4_config *config = s->c->config;
    int64_t d = config->head_dim, R = config->qk_rope_head_dim;
    fast_rmsnorm(s->c, &s->layer->attn.kv_norm, s->kv, T, s->kv);
    for (int64_t t = 0; t < T; t++)
        fast_rope(s->c, s->angles + t * R, false, s->kv + t * d, d, 1);
    fast_qdq_kv(s->c, s->kv, T);
}

static fast_linear_job job(fast_linear_kind kind, const dsv4_matrix *w, const float *x, int64_t T,
                           float *y)
{
    return (fast_linear_job){kind, w, 0, w->rows, x, T, w->cols, y, w->rows};
}

/* All that follows from x [T, D] alone: queries, keys, and what the compressors are about to
 * pool. */
static void project(sublayer *s, const double *freq, const float *x)
{
    const fast_context *c = s->c;
    const dsv4_config *config = c->config;
    const dsv4_layer *layer = s->layer;
    int64_t T = s->call->T, H = config->num_attention_heads, d = config->head_dim;
    bool compressed = layer->kind != DSV4_SWA, indexed = layer->kind == DSV4_CSA;
    const dsv4_compressor *main = &layer->attn.compressor, *keys = &layer->attn.indexer.compressor;
    float *qr = FAST_TAKE(c, float, T * config->q_lora_rank);
    float *a = NULL, *z = NULL, *index_a = NULL, *index_z = NULL;
    static const dsv4_part part[] = {
        DSV4_PART_PROJECTIONS, DSV4_PART_PROJECTIONS, DSV4_PART_COMPRESSOR, DSV4_PART_COMPRESSOR,
        DSV4_PART_INDEXER,     DSV4_PART_INDEXER,     DSV4_PART_INDEXER};
    static const dsv4_part part_of_query[] = {DSV4_PART_PROJECTIONS, DSV4_PART_INDEXER};
    fast_linear_job jobs[8];
    int count = 0;

    jobs[count++] = job(FAST_LINEAR, &layer->attn.wq_a, x, T, qr);
    jobs[count++] = job(FAST_LINEAR, &layer->attn.wkv, x, T, s->kv);
    if (compressed) {
        a = FAST_TAKE(c, float, T * main->wkv.rows);
        z = FAST_TAKE(c, float, T * main->wgate.rows);
        jobs[count++] = job(FAST_MAP, &main->wkv, x, T, a);
        jobs[count++] = job(FAST_MAP, &main->wgate, x, T, z);
    }
    if (indexed) {
        index_a = FAST_TAKE(c, float, T * keys->wkv.rows);
        index_z = FAST_TAKE(c, float, T * keys->wgate.rows);
        jobs[count++] = job(FAST_MAP, &keys->wkv, x, T, index_a);
        jobs[count++] = job(FAST_MAP, &keys->wgate, x, T, index_z);
        jobs[count++] = job(FAST_LINEAR, &layer->attn.indexer.weights_proj, x, T, s->w);
    }
    fast_linear_parts(c, jobs, part, count);

    fast_enter(c, DSV4_PART_PROJECTIONS);
    fast_rmsnorm(c, &layer->attn.q_norm, qr, T, qr);
    count = 0;
    jobs[count++] = job(FAST_LINEAR, &layer->attn.wq_b, qr, T, s->q);
    if (indexed)
        jobs[count++] = job(FAST_LINEAR, &layer->attn.indexer.wq_b, qr, T, s->iq);
    fast_linear_parts(c, jobs, part_of_query, count);

    fast_enter(c, DSV4_PART_PROJECTIONS);
    fast_pool_run(c->pool, T, finish_query, s);
    fast_tap(c, s->call, "q", H, d, s->q);
    make_keys(s, T);
    fast_tap(c, s->call, "kv", d, 0, s->kv);

    /* attention.compressed.1: from the same input; all entries of a call come before its tokens
     * attend. */
    fast_compressor_state **states =
        FAST_TAKE(c, fast_compressor_state *, s->call->segments);
    if (compressed) {
        fast_enter(c, DSV4_PART_COMPRESSOR);
        for (int64_t i = 0; i < s->call->segments; i++)
            states[i] = &s->state[i]->compressor;
        fast_compress(c, s->call, main, states, freq, a, z);
    }
    if (indexed) {
        fast_enter(c, DSV4_PART_INDEXER);
        fast_index_query(c, s->angles, T, s->iq);
        fast_tap(c, s->call, "index_q", config->index_n_heads, config->index_head_dim, s->iq);
        for (int64_t i = 0; i < s->call->segments; i++)
            states[i] = &s->state[i]->index;
        fast_compress(c, s->call, keys, states, freq, index_a, index_z);
        fast_index_weights(c, T, s->w);
    }
}

/* ---- choosing compressed entries ---- */

/* Rows [first, first + rows) of the call, which are dealt with together. */
typedef struct {
    const sublayer *s;
    int64_t first, rows;
    int64_t width;      /* the most entries that one of these rows may see */
    int64_t teams;      /* rows that follow one another in a sequence score their keys together .. */
    int64_t *team;      /* .. [teams + 1]: the first row of each, less `first` */
    int64_t key_items;  /* items that the keys of one team are cut into */
    float *score;       /* [rows, width] */
    int64_t kept;       /* the most entries that a row keeps */
    int64_t *selected;  /* [rows, kept] */
    int64_t *count;     /* [rows] */
    int64_t groups;     /* items that the heads of one row are cut into, .. */
    int64_t heads;      /* .. so many at a time */
    uint32_t *select_scratch;
    float *index_scratch, *attend_scratch;
    int64_t index_scratch_size, attend_scratch_size;
    uint16_t **entry_rows;  /* of each segment [width], or NULL: as window_rows */
    int64_t *slot, *index; /* a list for each worker */
    const float **entry;
    const uint16_t **row;
    int64_t list_room;
} batch;

static const fast_segment *segment_of(const sublayer *s, int64_t row)
{
    return &s->call->segment[s->segment_of[row]];
}

static fast_layer_state *state_of(const sublayer *s, int64_t row)
{
    return s->state[s->segment_of[row]];
}

static int64_t visible_to(const sublayer *s, int64_t row)
{
    return fast_visible(s->call->position[row], s->layer->ratio);
}

static void score_keys(void *context, int64_t item, int worker)
{
    const batch *b = context;
    const sublayer *s = b->s;
    const dsv4_config *config = s->c->config;
    int64_t i = b->team[item / b->key_items], end = b->team[item / b->key_items + 1];
    int64_t row = b->first + i, n_i = config->index_n_heads;
    int64_t first = item % b->key_items * KEYS_PER_ITEM, count[FAST_INDEX_ROWS];
    for (int64_t j = i; j < end; j++)
        count[j - i] = smaller(visible_to(s, b->first + j) - first, KEYS_PER_ITEM);
    const fast_index_rows rows = {end - i, s->iq + row * n_i * config->index_head_dim,
                                  s->w + row * n_i, count, b->score + i * b->width + first,
                                  b->width};
    fast_index_scores(s->c, &rows, &state_of(s, row)->index.entries, first,
                      b->index_scratch + worker * b->index_scratch_size);
}

/* As many teams, or more, as keep all threads at work. */
static void form_teams(batch *b)
{
    const sublayer *s = b->s;
    int64_t most = b->rows * b->key_items / (4 * fast_pool_threads(s->c->pool));
    most = most < 1 ? 1 : smaller(most, FAST_INDEX_ROWS);
    b->team = FAST_TAKE(s->c, int64_t, b->rows + 1);
    b->teams = 0;
    for (int64_t i = 0; i < b->rows; i++)
        if (i == 0 || i - b->team[b->teams - 1] == most ||
            s->segment_of[b->first + i] != s->segment_of[b->first + i - 1])
            b->team[b->teams++] = i;
    b->team[b->teams] = b->rows;
}

static void select_keys(void *context, int64_t i, int worker)
{
    const batch *b = context;
    b->count[i] = fast_select(b->score + i * b->width, visible_to(b->s, b->first + i),
                              b->s->c->config->index_topk, b->selected + i * b->kept,
                              b->select_scratch + worker * b->width);
}

static bool watched(const sublayer *s)
{
    for (int64_t i = 0; i < s->call->segments; i++)
        if (s->call->segment[i].tap != NULL)
            return true;
    return false;
}

/* attention.swa.1, attention.hca.1, attention.csa.1: the compressed entries of every row. */
static void choose(batch *b)
{
    const sublayer *s = b->s;
    const fast_context *c = s->c;
    int threads = fast_pool_threads(c->pool);
    bool indexed = s->layer->kind == DSV4_CSA;
    b->count = FAST_TAKE(c, int64_t, b->rows);
    for (int64_t i = 0; i < b->rows; i++)
        b->count[i] = 0;
    if (s->layer->kind == DSV4_SWA)
        return;
    b->kept = indexed ? smaller(b->width, c->config->index_topk) : b->width;
    b->selected = FAST_TAKE(c, int64_t, b->rows * b->kept);
    if (indexed) {
        b->score = FAST_TAKE(c, float, b->rows * b->width);
        b->key_items = (b->width + KEYS_PER_ITEM - 1) / KEYS_PER_ITEM;
        b->index_scratch_size = fast_index_scratch(c);
        b->index_scratch = FAST_TAKE(c, float, threads * b->index_scratch_size);
        b->select_scratch = FAST_TAKE(c, uint32_t, threads * b->width);
        form_teams(b);
        fast_pool_run(c->pool, b->teams * b->key_items, score_keys, b);
        if (!watched(s))
            fast_pool_run(c->pool, b->rows, select_keys, b);
    }
    for (int64_t i = 0; i < b->rows; i++) {
        int64_t row = b->first + i, t = s->call->position[row], visible = visible_to(s, row);
        int64_t *selected = b->selected + i * b->kept;
        if (indexed) {
            fast_tap_rows(c, segment_of(s, row), "index_score", t, 1, visible, 0,
                          b->score + i * b->width);
            if (watched(s)) /* the tap may have other scores to choose by */
                select_keys(b, i, 0);
        } else {
            for (b->count[i] = 0; b->count[i] < visible; b->count[i]++)
                selected[b->count[i]] = b->count[i];
        }
        fast_tap_indices(c, segment_of(s, row), "selected", t, 1, b->count[i], selected);
    }
}

/* ---- entries as rows for tiles ---- */

/* What several rows of a call attend to is made into rows once, MOST_ROWS of them for all sequences
 * together: of Flash, 143 MB. One row's results are the same where it is not. */
enum { FEW_ROWS = 4, ENTRIES_PER_ITEM = 16, MOST_ROWS = 1 << 17 };

static void convert_keys(void *context, int64_t row, int worker)
{
    const sublayer *s = context;
    int64_t d = s->c->config->head_dim;
    (void)worker;
    s->tiles->row(s->kv + row * d, d, s->kv_rows + row * s->row_size);
}

typedef struct {
    const sublayer *s;
    int64_t segment, count;
    const fast_entries *entries; /* NULL: of the window */
    uint16_t *rows;
} conversion;

static void convert_entries(void *context, int64_t item, int worker)
{
    const conversion *v = context;
    const sublayer *s = v->s;
    int64_t d = s->c->config->head_dim, first = item * ENTRIES_PER_ITEM;
    int64_t end = smaller(first + ENTRIES_PER_ITEM, v->count);
    (void)worker;
    if (v->entries != NULL)
        fast_core_attn_rows(s->c, v->entries, first, end - first, v->rows + first * s->row_size);
    else
        for (int64_t i = first; i < end; i++)
            s->tiles->row(s->state[v->segment]->window + i * d, d, v->rows + i * s->row_size);
}

static uint16_t *convert(const sublayer *s, int64_t segment, const fast_entries *entries,
                         int64_t count)
{
    conversion v = {s, segment, count, entries, FAST_TAKE(s->c, uint16_t, count * s->row_size)};
    fast_pool_run(s->c->pool, (count + ENTRIES_PER_ITEM - 1) / ENTRIES_PER_ITEM, convert_entries,
                  &v);
    return v.rows;
}

/* The call's keys, and the windows that stand before them. */
static void make_rows(sublayer *s)
{
    const fast_context *c = s->c;
    s->tiles = fast_core_attn_tiles(c);
    if (s->tiles == NULL)
        return;
    s->row_size = s->tiles->row_size(c->config->head_dim);
    s->kv_rows = FAST_TAKE(c, uint16_t, s->call->T * s->row_size);
    fast_pool_run(c->pool, s->call->T, convert_keys, s);
    s->window_rows = FAST_TAKE(c, uint16_t *, s->call->segments);
    for (int64_t i = 0; i < s->call->segments; i++) {
        const fast_segment *segment = &s->call->segment[i];
        int64_t count = smaller(segment->position, c->config->sliding_window);
        s->window_rows[i] = segment->rows < FEW_ROWS ? NULL : convert(s, i, NULL, count);
    }
}

/* Compressed entries, if those that the rows have chosen are twice as many as there are. */
static void make_entry_rows(batch *b)
{
    const sublayer *s = b->s;
    int64_t room = MOST_ROWS;
    if (s->tiles == NULL)
        return;
    b->entry_rows = FAST_TAKE(s->c, uint16_t *, s->call->segments);
    for (int64_t i = 0; i < s->call->segments; i++)
        b->entry_rows[i] = NULL;
    for (int64_t j = 0, end; j < b->rows; j = end) {
        const int64_t i = s->segment_of[b->first + j];
        int64_t visible = 0, taken = 0;
        for (end = j; end < b->rows && s->segment_of[b->first + end] == i; end++) {
            int64_t seen = b->count[end] > 0 ? visible_to(s, b->first + end) : 0;
            visible = seen > visible ? seen : visible;
            taken += b->count[end];
        }
        if (visible > 0 && visible <= room && taken >= 2 * visible) {
            b->entry_rows[i] = convert(s, i, &s->state[i]->compressor.entries, visible);
            room -= visible;
        }
    }
}

/* ---- attending ---- */

/* The list of a row, core_attn.list.1 to 3: its window, from this call's keys and from those
 * before, then the chosen entries. */
static fast_list list_of(const batch *b, int64_t row, int worker)
{
    const sublayer *s = b->s;
    const fast_segment *segment = segment_of(s, row);
    int64_t W = s->c->config->sliding_window, d = s->c->config->head_dim;
    int64_t t = s->call->position[row], oldest = t - W + 1 > 0 ? t - W + 1 : 0, count = 0;
    const float **e = b->entry + worker * b->list_room;
    int64_t *index = b->index + worker * b->list_room, *slot = b->slot + worker * b->list_room;
    for (int64_t token = oldest; token <= t; token++, count++) {
        e[count] = token >= segment->position
                       ? s->kv + (segment->first + token - segment->position) * d
                       : state_of(s, row)->window + token % W * d;
        slot[count] = token - oldest;
    }
    const int64_t *selected = b->selected + (row - b->first) * b->kept;
    for (int64_t i = 0; i < b->count[row - b->first]; i++, count++) {
        e[count] = NULL;
        index[count] = selected[i];
        slot[count] = W + i;
    }
    return (fast_list){.count = count, .e = e, .index = index, .slot = slot,
                       .entries = &state_of(s, row)->compressor.entries};
}

/* Row `at` of some, if there are any. */
static const uint16_t *row_at(const sublayer *s, const uint16_t *rows, int64_t at)
{
    return rows == NULL ? NULL : rows + at * s->row_size;
}

/* The rows that have been made of such a list. */
static const uint16_t *const *rows_of(const batch *b, int64_t row, const fast_list *list, int worker)
{
    const sublayer *s = b->s;
    const int64_t i = s->segment_of[row], W = s->c->config->sliding_window;
    const fast_segment *segment = &s->call->segment[i];
    int64_t t = s->call->position[row], oldest = t - W + 1 > 0 ? t - W + 1 : 0, count = 0;
    const uint16_t **rows = b->row + worker * b->list_room;
    for (int64_t token = oldest; token <= t; token++, count++)
        rows[count] = token >= segment->position
                          ? row_at(s, s->kv_rows, segment->first + token - segment->position)
                          : row_at(s, s->window_rows[i], token % W);
    for (; count < list->count; count++)
        rows[count] = row_at(s, b->entry_rows[i], list->index[count]);
    return rows;
}

static void attend_heads(void *context, int64_t item, int worker)
{
    const batch *b = context;
    const sublayer *s = b->s;
    int64_t H = s->c->config->num_attention_heads, d = s->c->config->head_dim;
    int64_t row = b->first + item / b->groups, group = item % b->groups;
    int64_t first = smaller(group * b->heads, H), end = smaller(first + b->heads, H);
    fast_list list = list_of(b, row, worker);
    if (s->tiles != NULL)
        list.row = rows_of(b, row, &list, worker);
    fast_core_attn(s->c, s->q + row * H * d, s->sink, &list, first, end - first,
                   s->core + row * H * d, b->attend_scratch + worker * b->attend_scratch_size);
}

/* Few rows: each is cut into groups of heads, so that all threads have work. By tiles two groups of 16
 * heads are multiplied for little more than one, and every item takes all entries. */
static void cut_heads(batch *b)
{
    int64_t H = b->s->c->config->num_attention_heads, threads = fast_pool_threads(b->s->c->pool);
    int64_t groups = b->rows >= 4 * threads ? 1 : smaller(H, 2 * threads);
    if (b->s->tiles != NULL && groups > 1) {
        groups = b->rows < threads ? (threads + b->rows - 1) / b->rows : 2;
        groups = b->rows % threads == 0 ? 1 : smaller(groups, H);
        int64_t unit = H / (2 * TILE) >= groups ? 2 * TILE : TILE;
        b->heads = ((H + groups - 1) / groups + unit - 1) / unit * unit;
    } else {
        b->heads = (H + groups - 1) / groups;
    }
    b->heads = smaller(b->heads, H);
    b->groups = (H + b->heads - 1) / b->heads;
}

static void attend(const sublayer *s, int64_t first, int64_t rows, int64_t width)
{
    const fast_context *c = s->c;
    fast_place mark = fast_mark(c->memory);
    int64_t threads = fast_pool_threads(c->pool);
    batch b = {.s = s, .first = first, .rows = rows, .width = width};
    fast_enter(c, s->layer->kind == DSV4_CSA ? DSV4_PART_INDEXER : DSV4_PART_CORE);
    choose(&b);
    fast_enter(c, DSV4_PART_CORE);
    int64_t in_window = 0; /* the longest window that one of the rows sees */
    for (int64_t row = first; row < first + rows; row++)
        if (s->call->position[row] >= in_window)
            in_window = s->call->position[row] + 1;
    b.list_room = smaller(in_window, c->config->sliding_window) + b.kept;
    b.entry = FAST_TAKE(c, const float *, threads * b.list_room);
    b.index = FAST_TAKE(c, int64_t, threads * b.list_room);
    b.slot = FAST_TAKE(c, int64_t, threads * b.list_room);
    cut_heads(&b);
    make_entry_rows(&b);
    b.row = FAST_TAKE(c, const uint16_t *, threads * b.list_room);
    b.attend_scratch_size = (fast_core_attn_scratch(c, b.heads) + 15) / 16 * 16;
    b.attend_scratch = FAST_TAKE(c, float, threads * b.attend_scratch_size);
    fast_pool_run(c->pool, rows * b.groups, attend_heads, &b);
    fast_release(c->memory, mark);
}

/* All rows, as many at a time as their scores leave room for. */
static void attend_all(const sublayer *s)
{
    int64_t T = s->call->T;
    for (int64_t first = 0, end; first < T; first = end) {
        int64_t width = 0;
        for (end = first; end < T; end++) {
            int64_t visible = s->layer->kind == DSV4_SWA ? 0 : visible_to(s, end);
            int64_t wider = visible > width ? visible : width;
            if (end > first && (end - first + 1) * wider > MOST_SCORES)
                break;
            width = wider;
        }
        attend(s, first, end - first, width);
    }
}

/* state.window.1, after all rows have attended. */
static void push_window(const sublayer *s)
{
    int64_t W = s->c->config->sliding_window, d = s->c->config->head_dim;
    for (int64_t i = 0; i < s->call->segments; i++) {
        const fast_segment *segment = &s->call->segment[i];
        int64_t row = segment->rows > W ? segment->rows - W : 0;
        for (; row < segment->rows; row++)
            memcpy(s->state[i]->window + (segment->position + row) % W * d,
                   s->kv + (segment->first + row) * d, (size_t)d * sizeof *s->kv);
    }
}

/* ---- output ---- */

typedef struct {
    const fast_context *c;
    const float *angles;
    float *core;
} rotation;

static void rotate_back(void *context, int64_t row, int worker)
{
    const rotation *r = context;
    const dsv4_config *config = r->c->config;
    int64_t H = config->num_attention_heads, d = config->head_dim;
    (void)worker;
    fast_rope(r->c, r->angles + row * config->qk_rope_head_dim, true, r->core + row * H * d, d, H);
}

void fast_attention_output(const fast_context *c, const dsv4_matrix *wo_a, const dsv4_matrix *wo_b,
                           const float *angles, float *core, int64_t T, float *y)
{
    fast_place mark = fast_mark(c->memory);
    rotation r = {c, angles, core};
    fast_pool_run(c->pool, T, rotate_back, &r); /* attention.out.1 */
    float *grouped = FAST_TAKE(c, float, T * wo_a->rows);
    fast_linear_grouped(c, wo_a, c->config->o_groups, core, T, grouped); /* attention.out.2 */
    fast_linear(c, wo_b, grouped, T, y);                                 /* attention.out.3 */
    fast_release(c->memory, mark);
}

static int64_t *number_segments(const fast_context *c, const fast_call *call)
{
    int64_t *of = FAST_TAKE(c, int64_t, call->T);
    for (int64_t i = 0; i < call->segments; i++)
        for (int64_t row = 0; row < call->segment[i].rows; row++)
            of[call->segment[i].first + row] = i;
    return of;
}

void fast_attention(const fast_context *c, const fast_call *call, const dsv4_layer *layer,
                    fast_layer_state *const *state, const float *x, float *y)
{
    fast_place mark = fast_mark(c->memory);
    const dsv4_config *config = c->config;
    int64_t T = call->T, H = config->num_attention_heads, d = config->head_dim;
    int64_t R = config->qk_rope_head_dim, n_i = config->index_n_heads;
    bool indexed = layer->kind == DSV4_CSA;
    sublayer s = {
        .c = c, .call = call, .layer = layer, .state = state,
        .segment_of = number_segments(c, call),
        .q = FAST_TAKE(c, float, T * H * d), .kv = FAST_TAKE(c, float, T * d),
        .core = FAST_TAKE(c, float, T * H * d),
        .iq = indexed ? FAST_TAKE(c, float, T * n_i * config->index_head_dim) : NULL,
        .w = indexed ? FAST_TAKE(c, float, T * n_i) : NULL,
        .angles = FAST_TAKE(c, float, T * R),
        .sink = fast_vector(c, &layer->attn.attn_sink),
    };
    double *freq = FAST_TAKE(c, double, R / 2);
    fast_enter(c, DSV4_PART_PROJECTIONS);
    fast_rope_frequencies(c, layer->kind != DSV4_SWA, freq);
    fast_rope_angles(c, freq, call->position, T, s.angles);

    fast_place before = fast_mark(c->memory);
    project(&s, freq, x);
    fast_release(c->memory, before);
    make_rows(&s);
    attend_all(&s);
    fast_tap(c, call, "attn_core", H, d, s.core);
    push_window(&s);
    fast_enter(c, DSV4_PART_PROJECTIONS);
    fast_attention_output(c, &layer->attn.wo_a, &layer->attn.wo_b, s.angles, s.core, T, y);
    fast_tap(c, call, "attn_out", config->hidden_size, 0, y);
    fast_release(c->memory, mark);
}
