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

enum { KEYS_AT_ONCE = 64 }; /* a multiple of every level's tile */

int64_t fast_index_scratch(const fast_context *c)
{
    return KEYS_AT_ONCE * c->config->index_head_dim;
}

void fast_index_scores(const fast_context *c, const float *iq, const float *w,
                       const fast_entries *keys, int64_t first, int64_t count, float *score,
                       float *scratch)
{
    int64_t n_i = c->config->index_n_heads, d_i = c->config->index_head_dim;
    const fast_indexer_kernels *k = c->kernels->indexer;
    if (keys->values != NULL) {
        k->scores(iq, w, keys->values + first * d_i, n_i, d_i, count, c->released, score);
        return;
    }
    for (int64_t i = 0; i < count; i += KEYS_AT_ONCE) {
        int64_t some = count - i < KEYS_AT_ONCE ? count - i : KEYS_AT_ONCE;
        fast_entries_get(c, keys, first + i, some, scratch);
        k->scores(iq, w, scratch, n_i, d_i, some, c->released, score + i);
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
