/* spec/indexer.md: CSA's choice of compressed entries. */
#include "fast/fast.h"

#include <math.h>
#include <string.h>

/* ---- queries and weights ---- */

typedef struct {
    const fast_context *c;
    const float *angles; /* [T, R] */
    int64_t heads;       /* of all rows */
    float *iq;           /* [heads, d_i] */
} queries;

enum { HEADS_PER_ITEM = 16 };

/* indexer.query.2, indexer.query.3 */
static void finish_heads(void *context, int64_t item, int worker)
{
    const queries *q = context;
    const fast_kernels *k = q->c->kernels;
    const dsv4_config *config = q->c->config;
    int64_t R = config->qk_rope_head_dim, d_i = config->index_head_dim;
    int64_t first = item * HEADS_PER_ITEM, end = first + HEADS_PER_ITEM;
    (void)worker;
    for (int64_t h = first; h < end && h < q->heads; h++) {
        float *head = q->iq + h * d_i;
        k->rope->rotate(q->angles + h / config->index_n_heads * R, false, R, q->c->released,
                        head + d_i - R);
        k->hadamard->transform(head, d_i, q->c->released);
        if (q->c->released)
            k->quant->qdq_index(head, d_i);
    }
}

void fast_index_query(const fast_context *c, const float *angles, int64_t T, float *iq)
{
    queries q = {c, angles, T * c->config->index_n_heads, iq};
    fast_pool_run(c->pool, (q.heads + HEADS_PER_ITEM - 1) / HEADS_PER_ITEM, finish_heads, &q);
}

/* indexer.weight.2 */
void fast_index_weights(const fast_context *c, int64_t T, float *w)
{
    int64_t n_i = c->config->index_n_heads;
    float scale = (float)(1 / sqrt((double)c->config->index_head_dim * (double)n_i));
    for (int64_t i = 0; i < T * n_i; i++)
        w[i] *= scale;
    fast_bf16(c, w, T * n_i);
}

/* ---- scores ---- */

/* Tiles sum in another order: for all rows or for none, so that chunks and batches stay without effect. */
static const fast_coded_kernels *coded_kernels(const fast_context *c)
{
    if (!c->released || c->config->index_head_dim % 32 != 0)
        return NULL;
    if (c->kernels->index_tiles != NULL && !c->deterministic)
        return c->kernels->index_tiles;
    return c->kernels->indexer->coded;
}

static int64_t rounded(int64_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* What a thread needs: keys in binary32, and coded kernels' own forms of keys and of rows. */
typedef struct {
    float *values; /* [FAST_KEYS, d_i] */
    char *keys, *query;
    int64_t query_size;
    int64_t size; /* of all, bytes */
} room;

static room divide_room(const fast_context *c, float *scratch)
{
    int64_t n_i = c->config->index_n_heads, d_i = c->config->index_head_dim;
    const fast_coded_kernels *coded = coded_kernels(c);
    room r = {.values = scratch, .size = rounded(FAST_KEYS * d_i * (int64_t)sizeof(float))};
    if (coded == NULL)
        return r;
    int64_t keys = r.size;
    r.size += rounded(coded->keys_size(d_i));
    int64_t query = r.size;
    r.query_size = rounded(coded->query_size(n_i, d_i));
    r.size += FAST_INDEX_ROWS * r.query_size;
    if (scratch != NULL) {
        r.keys = (char *)scratch + keys;
        r.query = (char *)scratch + query;
    }
    return r;
}

int64_t fast_index_scratch(const fast_context *c)
{
    return divide_room(c, NULL).size / (int64_t)sizeof(float);
}

/* Up to FAST_KEYS keys from `first` on, number `i` and up of those that are asked for, in binary32. Row
 * `row` wants those that have a bit in `wanted`; all rows want all of them where `row` is -1. */
static void score_values(const fast_context *c, const fast_index_rows *rows, const fast_entries *keys,
                         int64_t first, int64_t i, int64_t count, float *values, int64_t row,
                         uint64_t wanted)
{
    int64_t n_i = c->config->index_n_heads, d_i = c->config->index_head_dim;
    const float *from = values;
    if (keys->values != NULL)
        from = keys->values + (first + i) * d_i;
    else
        fast_entries_get(c, keys, first + i, count, values);
    int64_t begin = row < 0 ? 0 : row, end = row < 0 ? rows->rows : row + 1;
    for (int64_t r = begin; r < end; r++) {
        int64_t some = rows->count[r] - i < count ? rows->count[r] - i : count;
        float score[FAST_KEYS];
        if (some > 0)
            c->kernels->indexer->scores(rows->iq + r * n_i * d_i, rows->w + r * n_i, from, n_i, d_i,
                                        some, c->released, score);
        for (int64_t j = 0; j < some; j++)
            if (wanted >> j & 1)
                rows->score[r * rows->stride + i + j] = score[j];
    }
}

/* At most FAST_INDEX_ROWS rows, from keys as they are stored. */
static void score_coded(const fast_context *c, const fast_coded_kernels *coded,
                        const fast_index_rows *rows, const fast_entries *keys, int64_t first,
                        int64_t most, const room *r)
{
    int64_t n_i = c->config->index_n_heads, d_i = c->config->index_head_dim;
    for (int64_t row = 0; row < rows->rows; row++)
        if (rows->count[row] > 0)
            coded->arrange(rows->iq + row * n_i * d_i, rows->w + row * n_i, n_i, d_i,
                           r->query + row * r->query_size);
    if (coded->begin != NULL)
        coded->begin();
    for (int64_t i = 0; i < most; i += FAST_KEYS) {
        int64_t count = most - i < FAST_KEYS ? most - i : FAST_KEYS;
        coded->unpack(keys->codes + (first + i) * (d_i / 2), keys->scales + (first + i) * (d_i / 32),
                      d_i, count, r->keys);
        for (int64_t row = 0; row < rows->rows; row++) {
            int64_t some = rows->count[row] - i < count ? rows->count[row] - i : count;
            uint64_t left = 0;
            if (some > 0)
                left = coded->scores(r->query + row * r->query_size, r->keys, some,
                                     rows->score + row * rows->stride + i);
            if (left != 0)
                score_values(c, rows, keys, first, i, some, r->values, row, left);
        }
    }
    if (coded->end != NULL)
        coded->end();
}

void fast_index_scores(const fast_context *c, const fast_index_rows *rows, const fast_entries *keys,
                       int64_t first, float *scratch)
{
    int64_t n_i = c->config->index_n_heads, d_i = c->config->index_head_dim;
    const room r = divide_room(c, scratch);
    const fast_coded_kernels *coded = keys->codes != NULL ? coded_kernels(c) : NULL;
    for (int64_t row = 0; row < rows->rows; row += FAST_INDEX_ROWS) {
        fast_index_rows some = *rows;
        some.rows = rows->rows - row < FAST_INDEX_ROWS ? rows->rows - row : FAST_INDEX_ROWS;
        some.iq += row * n_i * d_i;
        some.w += row * n_i;
        some.count += row;
        some.score += row * rows->stride;
        int64_t most = 0;
        for (int64_t i = 0; i < some.rows; i++)
            most = some.count[i] > most ? some.count[i] : most;
        if (coded != NULL)
            score_coded(c, coded, &some, keys, first, most, &r);
        else
            for (int64_t i = 0; i < most; i += FAST_KEYS)
                score_values(c, &some, keys, first, i, most - i < FAST_KEYS ? most - i : FAST_KEYS,
                             r.values, -1, UINT64_MAX);
    }
}

/* ---- selection ---- */

/* A number that is the larger, the larger the score is; equal scores, 0 and -0 among them, have the
 * same. A NaN lies beyond the infinity of its sign. */
static uint32_t rank(float score)
{
    uint32_t bits;
    score += 0.0f; /* -0 becomes 0 */
    memcpy(&bits, &score, sizeof bits);
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

/* The k-th largest rank of all, as far as it is known. */
typedef struct {
    uint32_t prefix; /* its first `known` bits, the others 0 */
    int known;
    int64_t k;       /* it is the k-th largest of those that begin so */
} threshold;

/* Finds its next `bits` bits, by counting. */
static void narrow(threshold *t, const uint32_t *ranks, int64_t count, int bits)
{
    uint32_t many[1 << 11] = {0};
    int shift = 32 - t->known - bits;
    uint32_t mask = (1u << bits) - 1;
    for (int64_t i = 0; i < count; i++)
        if (t->known == 0 || (ranks[i] ^ t->prefix) >> (32 - t->known) == 0)
            many[ranks[i] >> shift & mask]++;
    uint32_t digit = mask;
    for (; many[digit] < t->k; digit--)
        t->k -= many[digit];
    t->prefix |= digit << shift;
    t->known += bits;
}

/* Sorts upwards, in place: a heap whose root is the largest. */
static void sift(uint64_t *x, int64_t root, int64_t count)
{
    uint64_t value = x[root];
    for (int64_t child; (child = 2 * root + 1) < count; root = child) {
        child += child + 1 < count && x[child + 1] > x[child];
        if (x[child] <= value)
            break;
        x[root] = x[child];
    }
    x[root] = value;
}

static void sort(uint64_t *x, int64_t count)
{
    for (int64_t i = count / 2 - 1; i >= 0; i--)
        sift(x, i, count);
    for (int64_t i = count - 1; i > 0; i--) {
        uint64_t largest = x[0];
        x[0] = x[i];
        x[i] = largest;
        sift(x, 0, i);
    }
}

int64_t fast_select(const float *score, int64_t count, int64_t k, int64_t *selected,
                    uint32_t *scratch)
{
    threshold t = {.k = k};
    int64_t kept = 0;
    if (k <= 0 || count <= 0)
        return 0;
    for (int64_t i = 0; i < count; i++)
        scratch[i] = rank(score[i]);
    if (k < count) {
        narrow(&t, scratch, count, 11);
        narrow(&t, scratch, count, 11);
        narrow(&t, scratch, count, 10);
    }
    /* indexer.select.1: all above the k-th largest and, of those equal to it, the lowest. An entry
     * is noted as one number that sorts by descending score, then by index: indexer.select.2. */
    uint64_t *list = (uint64_t *)selected;
    for (int64_t i = 0; i < count; i++) {
        bool above = k >= count || scratch[i] > t.prefix;
        bool level = !above && scratch[i] == t.prefix && t.k > 0;
        if (above || level)
            list[kept++] = (uint64_t)~scratch[i] << 32 | (uint64_t)i;
        t.k -= level;
    }
    sort(list, kept);
    for (int64_t i = 0; i < kept; i++)
        selected[i] = (int64_t)(list[i] & 0xffffffff);
    return kept;
}
