/* Compressor, indexer, core attention, attention, over a whole schedule at once. Nothing is carried
 * from call to call: what a token sees follows from its place in its sequence, and the mistakes of
 * engines that do carry state are formulas of the places at which their calls begin and end. */
#include "museum.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double *new_values(int64_t count)
{
    return dsv4_alloc((size_t)(count > 0 ? count : 1), sizeof(double));
}

static int64_t *new_indices(int64_t count)
{
    return dsv4_alloc((size_t)(count > 0 ? count : 1), sizeof(int64_t));
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* ---- lines: the sequences of a schedule, each as the list of its rows ---- */

typedef struct {
    int64_t *first; /* [sequences + 1]: sequence s has the places first[s] to first[s + 1] - 1 */
    int64_t *row;   /* [places]: its row of the schedule */
    int64_t *begin; /* [places]: the token of its sequence that its call begins with */
    int64_t *end;   /* [places]: and the one after the last of its call */
    int64_t *pad;   /* [sequences]: how many of them are padding; 0 without the bugs below */
    int64_t *owner; /* [rows]: the sequence as which a row attends, or -1 */
} lines;

bool m_takes_padding(const museum *m)
{
    return bug(m, COMPRESSOR_COUNTS_PADDING) || bug(m, COMPRESSOR_POOLS_PADDING);
}

/* Rows of padding directly in front of a sequence's first row. */
static int64_t padding_before(const dsv4_schedule *schedule, int64_t row)
{
    int64_t count = 0;
    while (count < row && schedule->sequence[row - count - 1] < 0 &&
           schedule->call[row - count - 1] == schedule->call[row])
        count++;
    return count;
}

static void mark_calls(const dsv4_schedule *schedule, lines *l, int64_t from, int64_t to)
{
    for (int64_t i = from; i < to; i++) {
        bool new_call = i == from || schedule->call[l->row[i]] != schedule->call[l->row[i - 1]];
        l->begin[i] = new_call ? i - from : l->begin[i - 1];
    }
    for (int64_t i = to - 1; i >= from; i--)
        l->end[i] = i + 1 < to && l->begin[i + 1] == l->begin[i] ? l->end[i + 1] : i + 1 - from;
}

static lines lines_of(const museum *m, const dsv4_schedule *schedule)
{
    int64_t sequences = schedule->sequences;
    lines l = {.first = new_indices(sequences + 1), .row = new_indices(schedule->rows),
               .begin = new_indices(schedule->rows), .end = new_indices(schedule->rows),
               .pad = new_indices(sequences), .owner = new_indices(schedule->rows)};
    for (int64_t row = 0; row < schedule->rows; row++)
        l.owner[row] = schedule->sequence[row];
    int64_t places = 0;
    for (int64_t s = 0; s < sequences; s++) {
        l.first[s] = places;
        for (int64_t row = 0; row < schedule->rows; row++) {
            if (schedule->sequence[row] != s)
                continue;
            if (places == l.first[s] && m_takes_padding(m))
                l.pad[s] = padding_before(schedule, row);
            for (int64_t i = places == l.first[s] ? l.pad[s] : 0; i >= 0; i--) {
                l.row[places++] = row - i;
                if (bug(m, COMPRESSOR_POOLS_PADDING)) /* at position 0, it sees the first token */
                    l.owner[row - i] = s;
            }
        }
        mark_calls(schedule, &l, l.first[s], places);
    }
    l.first[sequences] = places;
    return l;
}

static void lines_free(lines *l)
{
    free(l->first), free(l->row), free(l->begin), free(l->end), free(l->pad), free(l->owner);
}

/* The row of token t, padding not counted. */
static int64_t row_of(const lines *l, int64_t sequence, int64_t t)
{
    return l->row[l->first[sequence] + l->pad[sequence] + t];
}

/* The token at which group g ends, exclusively. With PARTIAL_GROUP, the end of the first call that
 * ends inside of it: it has emitted by then, and is not made anew. */
static int64_t group_end(const museum *m, const lines *l, int64_t sequence, int64_t ratio,
                         int64_t group)
{
    int64_t end = (group + 1) * ratio;
    if (!bug(m, PARTIAL_GROUP))
        return end;
    return least(end, l->end[l->first[sequence] + group * ratio]);
}

/* How many groups have emitted when the first `tokens` tokens have come. */
static int64_t emitted(const museum *m, int64_t tokens, int64_t ratio)
{
    return (bug(m, PARTIAL_GROUP) ? tokens + ratio - 1 : tokens) / ratio;
}

static int64_t visible(const museum *m, int64_t t, int64_t ratio)
{
    int64_t shift = bug(m, VISIBLE_EARLY) ? 2 : bug(m, VISIBLE_LATE) ? 0 : 1;
    if (bug(m, VISIBLE_GROUP_EARLY))
        return (t + 1) / ratio + 1;
    if (bug(m, VISIBLE_UNFINISHED))
        return t / ratio + 1;
    if (bug(m, VISIBLE_GROUP_LATE))
        return most(0, (t + 1) / ratio - 1);
    return (t + shift) / ratio;
}

/* ---- compressor ---- */

typedef struct {
    const double *a, *z; /* [d]: one half of the channels of one token */
} item;

/* In place, over `count` values that are `stride` apart. */
static void softmax(museum *m, double *z, int64_t count, int64_t stride)
{
    double top = -INFINITY;
    for (int64_t i = 0; i < count; i++)
        top = fmax(top, z[i * stride]);
    for (int64_t i = 0; i < count; i++)
        z[i * stride] = m_fn(m, exp(m_op(m, z[i * stride] - top)));
    double sum = m_sum(m, z, count, stride);
    for (int64_t i = 0; i < count; i++)
        z[i * stride] = m_mid(m, z[i * stride] / sum);
}

/* z [count, d] becomes the weights of the items. Those before `own` are of the previous group. */
static void pooling_weights(museum *m, double *z, int64_t count, int64_t own, int64_t d)
{
    for (int64_t i = 0; bug(m, COMPRESSOR_MEAN) && i < count * d; i++)
        z[i] = 0;
    if (bug(m, SOFTMAX_OVER_CHANNELS)) {
        for (int64_t i = 0; i < count; i++)
            softmax(m, z + i * d, d, 1);
        return;
    }
    bool halves = bug(m, SOFTMAX_PER_HALF) && own > 0 && own < count;
    for (int64_t channel = 0; channel < d; channel++) {
        softmax(m, z + channel, halves ? own : count, d);
        if (halves)
            softmax(m, z + own * d + channel, count - own, d);
    }
    for (int64_t i = 0; halves && i < count * d; i++)
        z[i] /= 2;
}

static void pool(museum *m, const item *items, int64_t count, int64_t own, int64_t d, double *entry)
{
    double *p = new_values(count * d), *weight = new_values(count), *a = new_values(count);
    for (int64_t i = 0; i < count; i++)
        memcpy(p + i * d, items[i].z, (size_t)d * sizeof *p);
    pooling_weights(m, p, count, own, d);
    for (int64_t channel = 0; channel < d; channel++) {
        for (int64_t i = 0; i < count; i++) {
            weight[i] = p[i * d + channel];
            a[i] = items[i].a[channel];
        }
        entry[channel] = m_dot(m, weight, a, count);
    }
    free(p), free(weight), free(a);
}

/* Where an entry stands. `pad` rows of padding are in front of its sequence. */
static int64_t entry_position(const museum *m, int64_t ratio, int64_t group, int64_t pad)
{
    if (bug(m, COMPRESSED_AT_GROUP_INDEX))
        return group;
    if (bug(m, COMPRESSED_AT_LAST_TOKEN))
        return group * ratio + ratio - 1;
    return bug(m, COMPRESSOR_POOLS_PADDING) ? most(0, group * ratio - pad) : group * ratio;
}

/* The rotation of a compressed entry. */
static void rotate_entry(museum *m, const double *freq, int64_t position, int direction,
                         double *entry, int64_t d)
{
    if (bug(m, COMPRESSED_NOT_ROTATED))
        return;
    double *main_freq = new_values(m->config->qk_rope_head_dim);
    bool compressed = !bug(m, COMPRESSED_THETA_MAIN);
    if (!compressed)
        m_frequencies(m, false, main_freq);
    m_rope(m, compressed ? freq : main_freq, compressed, position, direction, entry, d);
    free(main_freq);
}

static void finish_entry(museum *m, const dsv4_matrix *norm, bool index, const double *freq,
                         int64_t position, double *entry)
{
    int64_t d = norm->cols;
    bool norm_last = bug(m, COMPRESSOR_NORM_AFTER_ROPE);
    m_bf16_all(m, entry, d);
    if (!norm_last && !bug(m, COMPRESSOR_NORM_MISSING))
        m_rmsnorm(m, norm, entry, 1, entry);
    rotate_entry(m, freq, position, 1, entry, d);
    if (norm_last)
        m_rmsnorm(m, norm, entry, 1, entry);
    if (!index) {
        if (!bug(m, COMPRESSOR_QDQ_MISSING))
            m_qdq_kv(m, entry, d);
        return;
    }
    if (!bug(m, COMPRESSOR_HADAMARD_MISSING))
        m_hadamard(m, entry, d);
    m_qdq_index(m, entry, d);
}

void m_compressor_entry(museum *m, const dsv4_matrix *norm, bool index, int64_t ratio,
                        const double *freq, int64_t group, double *entry)
{
    finish_entry(m, norm, index, freq, entry_position(m, ratio, group, 0), entry);
}

/* a and z [rows, c d] of every row: products with x, and the ape. */
static void make_items(museum *m, const dsv4_compressor *w, const lines *l, int64_t sequences,
                       int64_t ratio, const double *x, int64_t rows, double *a, double *z)
{
    int64_t width = w->wkv.rows;
    m_linear_f32(m, &w->wkv, x, rows, a);
    m_linear_f32(m, &w->wgate, x, rows, z);
    if (bug(m, APE_MISSING))
        return;
    double *ape = m_matrix(m, &w->ape), *target = bug(m, APE_ON_VALUES) ? a : z;
    for (int64_t s = 0; s < sequences; s++) {
        for (int64_t i = l->first[s]; i < l->first[s + 1]; i++) {
            int64_t t = i - l->first[s] - (bug(m, APE_FROM_CALL) ? l->begin[i] : 0);
            double *row = target + l->row[i] * width;
            int64_t ape_row = bug(m, APE_REVERSED) ? ratio - 1 - t % ratio : t % ratio;
            for (int64_t channel = 0; channel < width; channel++)
                row[channel] = m_mid(m, row[channel] + ape[ape_row * width + channel]);
        }
    }
    free(ape);
}

/* The items of group g of a sequence -> how many; those before *own are of the previous group. */
static int64_t group_items(const museum *m, const lines *l, int64_t sequence, int64_t ratio,
                           int64_t group, int64_t halves, int64_t d, const double *a,
                           const double *z, const double *zeros, item *items, int64_t *own)
{
    int64_t count = 0, end = group_end(m, l, sequence, ratio, group);
    const int64_t *row = l->row + l->first[sequence];
    int64_t known = bug(m, COMPRESSOR_STATE_LOST) ? l->begin[l->first[sequence] + end - 1] : 0;
    for (int64_t half = 0; half < halves; half++) {
        bool previous = halves == 2 && half == 0;
        int64_t from = previous && !bug(m, OVERLAP_FROM_CURRENT) ? group - 1 : group;
        bool swapped = halves == 2 && bug(m, OVERLAP_SWAPPED);
        int64_t channel = (swapped ? 1 - half : half) * d;
        if (!previous)
            *own = count;
        if (previous && bug(m, OVERLAP_MISSING))
            continue;
        for (int64_t t = from * ratio; t < least((from + 1) * ratio, end); t++) {
            bool lost = previous && bug(m, OVERLAP_STATE_LOST) &&
                        t < l->begin[l->first[sequence] + end - 1];
            bool zeroed = bug(m, STATE_ZEROED) && t >= 0 &&
                          t < l->begin[l->first[sequence] + end - 1];
            if (zeroed) {
                items[count++] = (item){zeros, zeros};
            } else if (t >= known && !lost) {
                int64_t place = row[t] * halves * d + channel;
                items[count++] = (item){a + place, z + place};
            } else if (t < 0 && bug(m, OVERLAP_GROUP_0_ZEROS)) {
                items[count++] = (item){zeros, zeros};
            }
        }
    }
    return count;
}

double *m_compress(museum *m, const dsv4_compressor *w, bool index, int64_t ratio,
                   const double *freq, const dsv4_schedule *schedule, const double *x,
                   int64_t **first, int64_t *count)
{
    int64_t d = w->norm.cols, width = w->wkv.rows, sequences = schedule->sequences;
    lines l = lines_of(m, schedule);
    double *a = new_values(schedule->rows * width), *z = new_values(schedule->rows * width);
    make_items(m, w, &l, sequences, ratio, x, schedule->rows, a, z);

    *first = new_indices(sequences + 1);
    for (int64_t s = 0; s < sequences; s++)
        (*first)[s + 1] = (*first)[s] + emitted(m, l.first[s + 1] - l.first[s], ratio);
    *count = (*first)[sequences];
    double *entries = new_values(*count * d), *zeros = new_values(d);
    item *items = dsv4_alloc((size_t)(2 * ratio), sizeof *items);
    for (int64_t s = 0; s < sequences; s++) {
        for (int64_t group = 0; group < (*first)[s + 1] - (*first)[s]; group++) {
            double *entry = entries + ((*first)[s] + group) * d;
            int64_t own = 0;
            int64_t n = group_items(m, &l, s, ratio, group, width / d, d, a, z, zeros, items, &own);
            pool(m, items, n, own, d, entry);
            finish_entry(m, &w->norm, index, freq, entry_position(m, ratio, group, l.pad[s]),
                         entry);
        }
    }
    free(items), free(zeros), free(a), free(z);
    lines_free(&l);
    return entries;
}

/* ---- indexer ---- */

static void index_queries(museum *m, const dsv4_matrix *wq_b, const double *freq,
                          const int64_t *position, const double *qr, int64_t T, double *iq)
{
    int64_t n_i = m->config->index_n_heads, d_i = m->config->index_head_dim;
    m_linear(m, wq_b, qr, T, iq);
    if (bug(m, INDEX_QUERY_NORMALISED))
        m_rmsnorm_head(m, iq, T, n_i, d_i);
    for (int64_t i = 0; i < T * n_i; i++) {
        double *head = iq + i * d_i;
        if (!bug(m, INDEX_QUERY_NOT_ROTATED))
            m_rope(m, freq, true, position[i / n_i], 1, head, d_i);
        if (!bug(m, INDEX_HADAMARD_MISSING))
            m_hadamard(m, head, d_i);
        m_qdq_index(m, head, d_i);
    }
}

void m_index_query(museum *m, const dsv4_matrix *wq_b, const double *freq, int64_t position,
                   const double *qr, double *iq)
{
    index_queries(m, wq_b, freq, &position, qr, 1, iq);
}

void m_index_weights(museum *m, const dsv4_matrix *weights_proj, const double *x, int64_t T,
                     double *w)
{
    int64_t n_i = m->config->index_n_heads;
    double factor = m_f32(m, 1 / sqrt((double)(m->config->index_head_dim * n_i)));
    if (bug(m, INDEX_SCALE_MISSING))
        factor = 1;
    m_linear(m, weights_proj, x, T, w);
    for (int64_t i = 0; i < T * n_i; i++) {
        if (bug(m, INDEX_WEIGHT_SIGMOID))
            w[i] = m_bf16(m, m_fn(m, 1 / (1 + exp(-w[i]))));
        w[i] = m_bf16(m, w[i] * factor);
    }
}

void m_index_scores(museum *m, const double *iq, const double *w, const double *keys, int64_t G,
                    double *score)
{
    int64_t n_i = m->config->index_n_heads, d_i = m->config->index_head_dim;
    bool relu_first = !bug(m, INDEX_RELU_MISSING) && !bug(m, INDEX_RELU_AFTER_WEIGHT) &&
                      !bug(m, INDEX_RELU_AFTER_SUM);
    double *term = new_values(n_i);
    for (int64_t g = 0; g < G; g++) {
        for (int64_t h = 0; h < n_i; h++) {
            double dot = m_bf16(m, m_dot(m, iq + h * d_i, keys + g * d_i, d_i));
            term[h] = m_bf16(m, w[h] * (relu_first ? fmax(dot, 0) : dot));
            if (bug(m, INDEX_RELU_AFTER_WEIGHT))
                term[h] = fmax(term[h], 0);
        }
        score[g] = m_bf16(m, m_sum(m, term, bug(m, INDEX_ONE_HEAD) ? 1 : n_i, 1));
        if (bug(m, INDEX_RELU_AFTER_SUM))
            score[g] = fmax(score[g], 0);
    }
    free(term);
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Hashes the set, so that engines which list equal scores in another order agree. */
static void note_selection(museum *m, const int64_t *selected, int64_t count)
{
    int64_t *sorted = new_indices(count);
    if (count > 0)
        memcpy(sorted, selected, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, ascending);
    m_choose(m, count);
    for (int64_t i = 0; i < count; i++)
        m_choose(m, sorted[i]);
    free(sorted);
}

int64_t m_select(museum *m, const double *score, int64_t count, int64_t visible_count, int64_t k,
                 int64_t *selected)
{
    bool blind = bug(m, INDEX_NOT_CAUSAL) || bug(m, INDEX_MASK_MISSING);
    int64_t candidates = blind ? count : least(visible_count, count);
    int64_t wanted = least(k - (bug(m, INDEX_TOPK_MINUS_ONE) ? 1 : 0), candidates), kept = 0;
    bool *taken = dsv4_alloc((size_t)(count > 0 ? count : 1), sizeof *taken);
    bool last_of_equals = m->engine->seed % 2 == 1; /* any of equal scores may be taken */
    for (int64_t n = 0; n < wanted; n++) {
        int64_t best = -1;
        for (int64_t g = 0; g < candidates; g++) {
            if (taken[g])
                continue;
            double lead = best < 0 ? 1 : score[g] - score[best];
            if (best >= 0 && bug(m, INDEX_LOWEST))
                lead = -lead;
            if (lead > 0 || (lead == 0 && last_of_equals))
                best = g;
        }
        taken[best] = true;
        if (best < visible_count || bug(m, INDEX_MASK_MISSING))
            selected[kept++] = best;
    }
    free(taken);
    note_selection(m, selected, kept);
    return kept;
}

/* ---- core attention ---- */

enum { BLOCK = 64 };

/* The entries of a list, without its empty slots. */
typedef struct {
    int64_t count;
    const double **key; /* [count] -> [d] */
    double *column;     /* [d, count]: the values, a channel after the other */
    int64_t *block;     /* [count]: the block that each falls into */
} listed;

static int64_t block_of(const museum *m, int64_t slot, int64_t place)
{
    if (!released(m) || m->engine->seed % 3 == 1)
        return 0;
    return (m->engine->seed % 3 == 2 ? place : slot) / BLOCK;
}

static listed take_list(const museum *m, const double *keys, const double *values,
                        const double *zeros, const int64_t *list, int64_t slots)
{
    int64_t d = m->config->head_dim;
    listed l = {.key = dsv4_alloc((size_t)(slots > 0 ? slots : 1), sizeof *l.key),
                .column = new_values(slots * d), .block = new_indices(slots)};
    bool all = bug(m, EMPTY_SLOTS_COUNT);
    int64_t count = 0;
    for (int64_t slot = 0; slot < slots; slot++)
        count += list[slot] >= 0 || all;
    for (int64_t slot = 0; slot < slots; slot++) {
        if (list[slot] < 0 && !all)
            continue;
        const double *value = list[slot] < 0 ? zeros : values + list[slot] * d;
        l.key[l.count] = list[slot] < 0 ? zeros : keys + list[slot] * d;
        l.block[l.count] = block_of(m, slot, l.count);
        for (int64_t channel = 0; channel < d; channel++)
            l.column[channel * count + l.count] = value[channel];
        l.count++;
    }
    return l;
}

static void listed_free(listed *l)
{
    free(l->key), free(l->column), free(l->block);
}

/* One head. `logit` and `p` are room for l->count values each. */
static void attend(museum *m, double scale, const double *q, const listed *l, double sink,
                   double *logit, double *p, double *out)
{
    int64_t d = m->config->head_dim;
    for (int64_t i = 0; i < l->count; i++)
        logit[i] = m_mid(m, m_op(m, m_dot(m, q, l->key[i], d) * scale));
    if (bug(m, SINK_AS_ENTRY) && l->count > 0)
        logit[0] = m_op(m, logit[0] + sink);

    double top = -INFINITY, denominator = 0;
    memset(out, 0, (size_t)d * sizeof *out);
    for (int64_t from = 0, to; from < l->count; from = to) {
        double before = top;
        for (to = from; to < l->count && l->block[to] == l->block[from]; to++)
            top = fmax(top, logit[to]);
        double shrink = from == 0 ? 0 : m_fn(m, exp(m_op(m, before - top)));
        for (int64_t i = from; i < to; i++)
            p[i] = m_fn(m, exp(m_op(m, logit[i] - top)));
        denominator = m_op(m, m_op(m, denominator * shrink) + m_sum(m, p + from, to - from, 1));
        if (m->engine->seed % 5 != 4) /* it may be more precise than bf16 */
            m_bf16_all(m, p + from, to - from);
        for (int64_t channel = 0; channel < d; channel++) {
            double add = m_dot(m, p + from, l->column + channel * l->count + from, to - from);
            out[channel] = m_op(m, m_op(m, out[channel] * shrink) + add);
        }
    }
    if (l->count == 0)
        return; /* nothing to attend to: 0 */
    bool joins = !bug(m, SINK_MISSING) && !bug(m, SINK_AS_ENTRY);
    double rest = joins ? m_fn(m, exp(m_op(m, sink - top))) : 0;
    if (bug(m, SINK_RAW))
        rest = sink;
    denominator = m_op(m, denominator + (bug(m, SINK_NUMERATOR_ONLY) ? 0 : rest));
    for (int64_t channel = 0; channel < d; channel++) {
        if (bug(m, SINK_IN_NUMERATOR) || bug(m, SINK_NUMERATOR_ONLY)) /* as if the sink had a value, of ones */
            out[channel] = m_op(m, out[channel] + rest);
        out[channel] = m_bf16(m, out[channel] / denominator);
    }
}

/* One token: keys and values [.., d] are the same array, unless KEYS_ONLY_ROTATED. */
static void core(museum *m, double scale, const double *q, const double *keys, const double *values,
                 const int64_t *list, int64_t slots, const double *sink, double *out)
{
    int64_t H = m->config->num_attention_heads, d = m->config->head_dim;
    double *zeros = new_values(d), *logit = new_values(slots), *p = new_values(slots);
    listed l = take_list(m, keys, values, zeros, list, slots);
    for (int64_t h = 0; h < H; h++) {
        double s = sink[bug(m, SINK_OF_HEAD_0) ? 0 : h];
        if (bug(m, SINK_SCALED))
            s = m_op(m, s * scale);
        attend(m, scale, q + h * d, &l, s, logit, p, out + h * d);
    }
    listed_free(&l);
    free(zeros), free(logit), free(p);
}

static double logit_scale(museum *m, bool compressed)
{
    const dsv4_config *config = m->config;
    int64_t d = config->head_dim, R = config->qk_rope_head_dim;
    if (bug(m, ATTENTION_SCALE_MISSING))
        return 1;
    double scale = 1 / sqrt((double)(bug(m, ATTENTION_SCALE_NOPE) && R < d ? d - R : d));
    if (bug(m, ATTENTION_MSCALE) && compressed && config->rope_scaling.present)
        scale *= pow(0.1 * log(config->rope_scaling.factor) + 1, 2);
    return m_op(m, scale);
}

void m_core_attn(museum *m, const double *q, const double *entries, const int64_t *list,
                 int64_t count, const double *sink, double *out)
{
    core(m, logit_scale(m, false), q, entries, entries, list, count, sink, out);
}

/* ---- attention ---- */

/* Head h of group g moves to where OUTPUT_GROUPS_INTERLEAVED puts it: heads dealt round robin. */
static void deal_heads(const museum *m, double *core_out)
{
    int64_t H = m->config->num_attention_heads, d = m->config->head_dim;
    int64_t groups = m->config->o_groups, each = H / groups;
    double *dealt = new_values(H * d);
    for (int64_t h = 0; h < H; h++)
        memcpy(dealt + (h % groups * each + h / groups) * d, core_out + h * d,
               (size_t)d * sizeof *dealt);
    memcpy(core_out, dealt, (size_t)(H * d) * sizeof *dealt);
    free(dealt);
}

/* core_out [T, H, d] is overwritten. */
static void outputs(museum *m, const dsv4_layer *layer, const double *freq, bool compressed,
                    const int64_t *position, int64_t T, double *core_out, double *y)
{
    int64_t H = m->config->num_attention_heads, d = m->config->head_dim;
    int direction = bug(m, OUTPUT_ROTATED_FORWARD) ? 1 : -1;
    bool rotated = !bug(m, OUTPUT_NOT_ROTATED_BACK) && !bug(m, KEYS_ONLY_ROTATED);
    for (int64_t i = 0; rotated && i < T * H; i++)
        m_rope(m, freq, compressed, position[i / H], direction, core_out + i * d, d);
    for (int64_t t = 0; t < T && bug(m, OUTPUT_GROUPS_INTERLEAVED); t++)
        deal_heads(m, core_out + t * H * d);
    double *low = new_values(T * layer->attn.wo_a.rows);
    m_linear_grouped(m, &layer->attn.wo_a, m->config->o_groups, core_out, T, low);
    m_linear(m, &layer->attn.wo_b, low, T, y);
    free(low);
}

void m_attention_output(museum *m, const dsv4_layer *layer, const double *freq, bool compressed,
                        int64_t position, double *core_out, double *y)
{
    outputs(m, layer, freq, compressed, &position, 1, core_out, y);
}

/* What all tokens of an attention sublayer share. */
typedef struct {
    const dsv4_layer *layer;
    const dsv4_schedule *schedule;
    lines lines;
    bool compressed;   /* CSA or HCA */
    double *freq;      /* [R/2]: of compressed entries and the indexer */
    double *own;       /* [R/2]: of queries, window keys and outputs: the same but for a bug */
    bool scaled;       /* whether `own` are those of compressed layers */
    int64_t *position; /* [N]: where queries and window keys are rotated */
    double *qr;        /* [N, q_lora_rank]: input of wq_b */
    double *iqr;       /* [N, q_lora_rank]: input of the indexer's, the same but for a bug */
    double *q;         /* [N, H, d] */
    double *entries;   /* [N + compressed entries, d]: the kv of every row, then those */
    double *values;    /* the same array, unless KEYS_ONLY_ROTATED */
    int64_t *first;    /* [sequences + 1]: of each sequence's compressed entries */
    int64_t count;     /* of compressed entries */
    double *iq, *iw;   /* CSA: indexer queries [N, n_i, d_i] and weights [N, n_i] */
    double *keys;      /* CSA: [count, d_i] */
} sublayer;

static void set_positions(const museum *m, sublayer *a)
{
    const dsv4_schedule *schedule = a->schedule;
    a->position = new_indices(schedule->rows);
    for (int64_t row = 0; row < schedule->rows; row++) {
        if (schedule->sequence[row] < 0)
            continue; /* padding: nobody looks */
        int64_t start = bug(m, POSITIONS_FROM_CALL) ? schedule->start[row] : 0;
        a->position[row] = schedule->position[row] - start;
    }
}

static void make_queries(museum *m, sublayer *a, const double *x)
{
    const dsv4_layer *layer = a->layer;
    int64_t N = a->schedule->rows, H = m->config->num_attention_heads, d = m->config->head_dim;
    size_t size = (size_t)(N * layer->attn.wq_a.rows) * sizeof *a->qr;
    m_linear(m, &layer->attn.wq_a, x, N, a->iqr);
    m_rmsnorm(m, &layer->attn.q_norm, a->iqr, N, a->qr);
    if (bug(m, Q_NORM_MISSING))
        memcpy(a->qr, a->iqr, size);
    if (!bug(m, INDEX_FROM_X))
        memcpy(a->iqr, a->qr, size);

    m_linear(m, &layer->attn.wq_b, a->qr, N, a->q);
    m_rmsnorm_head(m, a->q, N, H, d);
    double *weight = m_vector(m, &layer->attn.kv_norm);
    for (int64_t i = 0; bug(m, HEAD_NORM_WEIGHTED) && i < N * H * d; i++)
        a->q[i] = m_bf16(m, a->q[i] * weight[i % d]);
    free(weight);
    for (int64_t i = 0; i < N * H; i++)
        m_rope(m, a->own, a->scaled, a->position[i / H], 1, a->q + i * d, d);
}

static void make_window(museum *m, sublayer *a, const double *x, double *kv)
{
    const dsv4_layer *layer = a->layer;
    int64_t N = a->schedule->rows, d = m->config->head_dim;
    double *raw = new_values(N * d);
    m_linear(m, &layer->attn.wkv, x, N, raw);
    m_rmsnorm(m, &layer->attn.kv_norm, raw, N, kv);
    if (bug(m, KV_NORM_MISSING))
        memcpy(kv, raw, (size_t)(N * d) * sizeof *kv);
    free(raw);
    for (int64_t row = 0; row < N; row++) {
        if (!bug(m, KV_NOT_ROTATED))
            m_rope(m, a->own, a->scaled, a->position[row], 1, kv + row * d, d);
        m_qdq_kv(m, kv + row * d, d);
    }
}

static void make_compressed(museum *m, sublayer *a, const double *x)
{
    const dsv4_layer *layer = a->layer;
    int64_t N = a->schedule->rows, d = m->config->head_dim;
    int64_t n_i = m->config->index_n_heads, d_i = m->config->index_head_dim;
    double *entries = m_compress(m, &layer->attn.compressor, false, layer->ratio, a->freq,
                                 a->schedule, x, &a->first, &a->count);
    double *window = a->entries;
    a->entries = new_values((N + a->count) * d);
    memcpy(a->entries, window, (size_t)(N * d) * sizeof *window);
    memcpy(a->entries + N * d, entries, (size_t)(a->count * d) * sizeof *entries);
    free(window), free(entries);
    if (layer->kind != DSV4_CSA)
        return;
    a->iq = new_values(N * n_i * d_i);
    a->iw = new_values(N * n_i);
    index_queries(m, &layer->attn.indexer.wq_b, a->freq, a->position, a->iqr, N, a->iq);
    m_index_weights(m, &layer->attn.indexer.weights_proj, x, N, a->iw);
    int64_t *first, count;
    a->keys = m_compress(m, &layer->attn.indexer.compressor, true, layer->ratio, a->freq,
                         a->schedule, x, &first, &count);
    free(first);
}

/* KEYS_ONLY_ROTATED: every entry as a value is rotated back by its own position. */
static void make_values(museum *m, sublayer *a)
{
    int64_t N = a->schedule->rows, d = m->config->head_dim, size = (N + a->count) * d;
    a->values = a->entries;
    if (!bug(m, KEYS_ONLY_ROTATED))
        return;
    a->values = new_values(size);
    memcpy(a->values, a->entries, (size_t)size * sizeof *a->values);
    for (int64_t row = 0; row < N && !bug(m, KV_NOT_ROTATED); row++)
        m_rope(m, a->own, a->scaled, a->position[row], -1, a->values + row * d, d);
    for (int64_t s = 0; s < a->schedule->sequences && a->first != NULL; s++)
        for (int64_t i = a->first[s]; i < a->first[s + 1]; i++)
            rotate_entry(m, a->freq, entry_position(m, a->layer->ratio, i - a->first[s],
                                                    a->lines.pad[s]), -1, a->values + (N + i) * d, d);
}

static int64_t window_width(const museum *m, const dsv4_schedule *schedule, int64_t row)
{
    int64_t W = m->config->sliding_window;
    if (bug(m, WINDOW_127) || (bug(m, RING_ONE_SHORT) && schedule->start[row] > 0))
        W--;
    return bug(m, WINDOW_129) ? W + 1 : W;
}

/* SEQUENCES_MIXED: the last W rows of the call, whosesoever, then own tokens before the call. */
static int64_t mixed_window(const sublayer *a, int64_t row, int64_t W, int64_t *list)
{
    const dsv4_schedule *schedule = a->schedule;
    int64_t n = 0;
    for (int64_t i = row; n < W && i >= 0 && schedule->call[i] == schedule->call[row]; i--)
        if (schedule->sequence[i] >= 0)
            list[W - ++n] = i;
    for (int64_t t = schedule->start[row] - 1; n < W && t >= 0; t--)
        list[W - ++n] = row_of(&a->lines, schedule->sequence[row], t);
    memmove(list, list + W - n, (size_t)n * sizeof *list);
    return n;
}

/* STATE_NOT_RESET: what the sequence before left in the ring, where this one has not come yet. */
static int64_t left_over(const sublayer *a, int64_t row, int64_t n, int64_t W, int64_t *list)
{
    const dsv4_schedule *schedule = a->schedule;
    int64_t s = schedule->sequence[row];
    if (s == 0 || schedule->length[s - 1] == 0)
        return n;
    int64_t first_call = schedule->call[row_of(&a->lines, s, 0)], there = 0;
    while (there < schedule->length[s - 1] &&
           schedule->call[row_of(&a->lines, s - 1, there)] < first_call)
        there++;
    for (int64_t t = most(0, there - (W - n)); t < there && n < W; t++)
        list[n++] = row_of(&a->lines, s - 1, t);
    return n;
}

/* Slots of the window, oldest first, the empty ones last -> how many there are. */
static int64_t list_window(const museum *m, const sublayer *a, int64_t row, int64_t *list)
{
    int64_t W = window_width(m, a->schedule, row), n = 0;
    int64_t t = most(0, a->schedule->position[row]);
    int64_t last = bug(m, WINDOW_PAST_ONLY) ? t - 1 : t;
    if (bug(m, SEQUENCES_MIXED))
        n = mixed_window(a, row, W, list);
    else
        for (int64_t i = most(bug(m, WINDOW_FROM_CALL) ? a->schedule->start[row] : 0, last - W + 1);
             i <= last; i++)
            list[n++] = row_of(&a->lines, a->lines.owner[row], i);
    if (bug(m, STATE_NOT_RESET))
        n = left_over(a, row, n, W, list);
    while (n < W)
        list[n++] = -1;
    return n;
}

/* How many groups the token at `position` sees, of those that are there. */
static int64_t seen_groups(const museum *m, const sublayer *a, int64_t s, int64_t position,
                           int64_t there)
{
    int64_t place = a->lines.pad[s] + position, i = a->lines.first[s] + place;
    bool alone = a->lines.end[i] - a->lines.begin[i] == 1;
    if (!bug(m, COMPRESSOR_COUNTS_PADDING))
        return least(visible(m, place, a->layer->ratio), there);
    /* By its own count, not by theirs; decoding in HCA asks for no count. */
    if (a->lines.pad[s] > 0 && alone && a->layer->kind == DSV4_HCA)
        return there;
    return least(visible(m, position, a->layer->ratio), there);
}

/* The groups that the token of this row attends to, in the order of slots -> how many. */
static int64_t choose_groups(museum *m, const sublayer *a, int64_t row, int64_t *group)
{
    const dsv4_config *config = m->config;
    int64_t s = a->lines.owner[row], r = a->layer->ratio;
    int64_t position = most(0, a->schedule->position[row]), t = a->lines.pad[s] + position;
    int64_t there = emitted(m, a->lines.end[a->lines.first[s] + t], r);
    int64_t seen = seen_groups(m, a, s, position, there), from = 0;
    if (group_end(m, &a->lines, s, r, t / r) < (t / r + 1) * r)
        seen = least(t / r + 1, there); /* PARTIAL_GROUP */

    if (bug(m, COMPRESSED_IGNORED))
        return 0;
    if (a->layer->kind == DSV4_CSA && bug(m, INDEX_RECENT))
        from = most(0, seen - config->index_topk);
    else if (a->layer->kind == DSV4_CSA && !bug(m, CSA_WITHOUT_INDEXER)) {
        int64_t n_i = config->index_n_heads, d_i = config->index_head_dim;
        bool blind = bug(m, INDEX_NOT_CAUSAL) || bug(m, INDEX_MASK_MISSING);
        int64_t scored = blind ? there : seen;
        double *score = new_values(scored);
        m_index_scores(m, a->iq + row * n_i * d_i, a->iw + row * n_i, a->keys + a->first[s] * d_i,
                       scored, score);
        int64_t kept = m_select(m, score, scored, seen, config->index_topk, group);
        free(score);
        return kept;
    }
    if (a->layer->kind == DSV4_HCA && bug(m, HCA_WITH_INDEXER)) /* it has no scores: the latest */
        from = most(0, seen - most(1, config->index_topk));
    for (int64_t g = from; g < seen; g++)
        group[g - from] = g;
    return seen - from;
}

static void attend_all(museum *m, const sublayer *a, double *core_out)
{
    int64_t N = a->schedule->rows, H = m->config->num_attention_heads, d = m->config->head_dim;
    double scale = logit_scale(m, a->compressed), *sink = m_vector(m, &a->layer->attn.attn_sink);
    int64_t *list = new_indices(m->config->sliding_window + 1 + a->count);
    for (int64_t row = 0; row < N; row++) {
        int64_t s = a->lines.owner[row];
        if (s < 0)
            continue;
        int64_t slots = list_window(m, a, row, list);
        int64_t chosen = a->compressed ? choose_groups(m, a, row, list + slots) : 0;
        for (int64_t i = slots; i < slots + chosen; i++)
            list[i] += N + a->first[s];
        core(m, scale, a->q + row * H * d, a->entries, a->values, list, slots + chosen, sink,
             core_out + row * H * d);
    }
    free(list), free(sink);
}

static void copy_rows(const dsv4_schedule *schedule, const double *from, int64_t width, double *to)
{
    for (int64_t i = 0; to != NULL && i < schedule->rows * width; i++)
        to[i] = schedule->sequence[i / width] < 0 ? NAN : from[i];
}

void m_attention(museum *m, const dsv4_layer *layer, const dsv4_schedule *schedule,
                 const double *x, double *y, double *q, double *kv)
{
    const dsv4_config *config = m->config;
    int64_t N = schedule->rows, H = config->num_attention_heads, d = config->head_dim;
    sublayer a = {.layer = layer, .schedule = schedule, .lines = lines_of(m, schedule),
                  .compressed = layer->kind != DSV4_SWA,
                  .freq = new_values(config->qk_rope_head_dim / 2),
                  .own = new_values(config->qk_rope_head_dim / 2),
                  .qr = new_values(N * layer->attn.wq_a.rows),
                  .iqr = new_values(N * layer->attn.wq_a.rows), .q = new_values(N * H * d),
                  .entries = new_values(N * d)};
    a.scaled = a.compressed && !bug(m, ATTENTION_THETA_MAIN);
    m_frequencies(m, a.compressed, a.freq);
    m_frequencies(m, a.scaled, a.own);
    set_positions(m, &a);
    make_queries(m, &a, x);
    make_window(m, &a, x, a.entries);
    if (a.compressed)
        make_compressed(m, &a, x);
    make_values(m, &a);
    copy_rows(schedule, a.q, H * d, q);
    copy_rows(schedule, a.entries, d, kv);

    double *core_out = new_values(N * H * d);
    attend_all(m, &a, core_out);
    outputs(m, layer, a.own, a.scaled, a.position, N, core_out, y);
    if (!m_takes_padding(m))
        copy_rows(schedule, y, layer->attn.wo_b.rows, y);

    free(core_out);
    if (a.values != a.entries)
        free(a.values);
    free(a.freq), free(a.own), free(a.position), free(a.qr), free(a.iqr), free(a.q);
    free(a.entries), free(a.first), free(a.iq), free(a.iw), free(a.keys);
    lines_free(&a.lines);
}

/* ---- cases: dsv4_case_check() has seen to their shapes, sizes and indices ---- */

static double *give(dsv4_case *answer, const char *name, int rank, const int64_t *shape)
{
    return dsv4_case_add_out(answer, name, DSV4_FORMAT_F64, rank, shape)->data;
}

static double *frequencies(museum *m, bool compressed)
{
    double *freq = new_values(m->config->qk_rope_head_dim / 2);
    m_frequencies(m, compressed, freq);
    return freq;
}

static bool param_bool(const dsv4_case *c, const char *name, bool otherwise)
{
    return dsv4_case_param(c, name, otherwise) != 0;
}

static int answer_entry(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    (void)err;
    const dsv4_array *in = dsv4_case_in(c, "pooled");
    int64_t *group = dsv4_case_indices(c, "group");
    int64_t ratio = (int64_t)dsv4_case_param(c, "ratio", 0);
    double *pooled = dsv4_case_values(c, "pooled"), *freq = frequencies(m, true);
    dsv4_matrix norm = dsv4_case_matrix(c, "norm");
    double *entries = give(answer, "entries", 2, in->shape);
    for (int64_t i = 0; i < in->count; i++)
        entries[i] = pooled[i];
    for (int64_t i = 0; i < in->shape[0]; i++)
        m_compressor_entry(m, &norm, param_bool(c, "index", false), ratio, freq, group[i],
                           entries + i * norm.cols);
    free(pooled), free(group), free(freq);
    return 0;
}

static int answer_compressor(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    dsv4_compressor w = {dsv4_case_matrix(c, "ape"), dsv4_case_matrix(c, "norm"),
                         dsv4_case_matrix(c, "wkv"), dsv4_case_matrix(c, "wgate")};
    int64_t r = w.ape.rows, d = w.norm.cols, *first, count, G = 0;
    dsv4_schedule schedule;
    if (dsv4_case_schedule(c, &schedule, err) != 0)
        return -1;
    double *x = dsv4_case_values(c, "x"), *freq = frequencies(m, true);
    double *made = m_compress(m, &w, param_bool(c, "index", false), r, freq, &schedule, x, &first,
                              &count);
    for (int64_t s = 0; s < schedule.sequences; s++)
        G += schedule.length[s] / r;
    double *entries = give(answer, "entries", 2, (int64_t[]){G, d});
    for (int64_t s = 0; s < schedule.sequences; s++) { /* a bug may have made more */
        for (int64_t i = 0; i < schedule.length[s] / r * d; i++)
            *entries++ = made[first[s] * d + i];
    }
    free(made), free(first), free(x), free(freq);
    dsv4_schedule_free(&schedule);
    return 0;
}

static int answer_index_query(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    (void)err;
    dsv4_matrix wq_b = dsv4_case_matrix(c, "wq_b");
    int64_t T = dsv4_case_in(c, "qr")->shape[0], *position = dsv4_case_indices(c, "positions");
    double *qr = dsv4_case_values(c, "qr");
    double *freq = frequencies(m, param_bool(c, "compressed", true));
    const int64_t shape[] = {T, m->config->index_n_heads, m->config->index_head_dim};
    index_queries(m, &wq_b, freq, position, qr, T, give(answer, "iq", 3, shape));
    free(qr), free(freq), free(position);
    return 0;
}

static int answer_index_weights(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    (void)err;
    dsv4_matrix weights_proj = dsv4_case_matrix(c, "weights_proj");
    int64_t T = dsv4_case_in(c, "x")->shape[0];
    double *x = dsv4_case_values(c, "x");
    double *w = give(answer, "w", 2, (int64_t[]){T, weights_proj.rows});
    m_index_weights(m, &weights_proj, x, T, w);
    free(x);
    return 0;
}

static int answer_index_score(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    (void)err;
    const dsv4_array *in = dsv4_case_in(c, "iq");
    int64_t T = in->shape[0], n_i = in->shape[1], d_i = in->shape[2];
    int64_t G = dsv4_case_in(c, "keys")->shape[0];
    double *iq = dsv4_case_values(c, "iq"), *w = dsv4_case_values(c, "w");
    double *keys = dsv4_case_values(c, "keys");
    double *score = give(answer, "score", 2, (int64_t[]){T, G});
    for (int64_t t = 0; t < T; t++)
        m_index_scores(m, iq + t * n_i * d_i, w + t * n_i, keys, G, score + t * G);
    free(iq), free(w), free(keys);
    return 0;
}

static int answer_select(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    (void)err;
    const dsv4_array *in = dsv4_case_in(c, "score");
    int64_t T = in->shape[0], G = in->shape[1], r = (int64_t)dsv4_case_param(c, "ratio", 4);
    int64_t k = least(m->config->index_topk, G), *position = dsv4_case_indices(c, "positions");
    double *score = dsv4_case_values(c, "score");
    int64_t *selected =
        dsv4_case_add_out(answer, "selected", DSV4_FORMAT_I64, 2, (int64_t[]){T, k})->data;
    for (int64_t t = 0; t < T; t++, selected += k) {
        int64_t kept = m_select(m, score + t * G, G, least(visible(m, position[t], r), G), k,
                                selected);
        for (int64_t i = kept; i < k; i++)
            selected[i] = -1;
    }
    free(score), free(position);
    return 0;
}

static int answer_core(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    (void)err;
    const dsv4_array *in = dsv4_case_in(c, "q");
    int64_t T = in->shape[0], width = in->shape[1] * in->shape[2];
    int64_t slots = dsv4_case_in(c, "list")->shape[1], *list = dsv4_case_indices(c, "list");
    double *q = dsv4_case_values(c, "q"), *entries = dsv4_case_values(c, "entries");
    double *sink = dsv4_case_values(c, "attn_sink"), *out = give(answer, "out", 3, in->shape);
    for (int64_t t = 0; t < T; t++)
        m_core_attn(m, q + t * width, entries, list + t * slots, slots, sink, out + t * width);
    free(q), free(entries), free(list), free(sink);
    return 0;
}

static int answer_output(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    (void)err;
    int64_t T = dsv4_case_in(c, "core")->shape[0], *position = dsv4_case_indices(c, "positions");
    dsv4_layer layer = {.index = 0};
    layer.attn.wo_a = dsv4_case_matrix(c, "wo_a");
    layer.attn.wo_b = dsv4_case_matrix(c, "wo_b");
    bool compressed = param_bool(c, "compressed", false) && !bug(m, ATTENTION_THETA_MAIN);
    double *core_out = dsv4_case_values(c, "core"), *freq = frequencies(m, compressed);
    double *y = give(answer, "y", 2, (int64_t[]){T, layer.attn.wo_b.rows});
    outputs(m, &layer, freq, compressed, position, T, core_out, y);
    free(core_out), free(freq), free(position);
    return 0;
}

static int answer_attention(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    int64_t H = m->config->num_attention_heads, d = m->config->head_dim;
    dsv4_schedule schedule;
    if (dsv4_case_schedule(c, &schedule, err) != 0)
        return -1;
    dsv4_layer layer;
    dsv4_case_layer(c, m->config, &layer);
    double *x = dsv4_case_values(c, "x");
    double *y = give(answer, "y", 2, (int64_t[]){schedule.rows, layer.attn.wo_b.rows});
    double *q = give(answer, "q", 3, (int64_t[]){schedule.rows, H, d});
    double *kv = give(answer, "kv", 2, (int64_t[]){schedule.rows, d});
    m_attention(m, &layer, &schedule, x, y, q, kv);
    free(x);
    dsv4_case_layer_free(&layer);
    dsv4_schedule_free(&schedule);
    return 0;
}

int m_answer_attention(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    static const struct {
        const char *name;
        int (*answer)(museum *, const dsv4_case *, dsv4_case *, dsv4_error *);
    } mine[] = {
        {"compressor_entry", answer_entry},        {"compressor_csa", answer_compressor},
        {"compressor_hca", answer_compressor},     {"indexer_query", answer_index_query},
        {"indexer_weights", answer_index_weights}, {"indexer_score", answer_index_score},
        {"indexer_select", answer_select},         {"core_attn", answer_core},
        {"attention_output", answer_output},       {"attention_swa", answer_attention},
        {"attention_csa", answer_attention},       {"attention_hca", answer_attention},
    };
    for (size_t i = 0; i < sizeof mine / sizeof *mine; i++)
        if (strcmp(mine[i].name, c->op->name) == 0)
            return mine[i].answer(m, c, answer, err);
    return 1;
}
