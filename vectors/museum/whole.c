/* The museum's block, MTP and forward pass: spec/block.md, mtp.md, forward.md, over all rows of a
 * schedule at once. Rows of padding are skipped, and become NaN. */
#include "museum.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double *new_values(int64_t count)
{
    return dsv4_alloc((size_t)count, sizeof(double));
}

static bool padding(const dsv4_schedule *schedule, int64_t row)
{
    return schedule->sequence[row] < 0;
}

/* Whether a row is left out. */
static bool skipped(const museum *m, const dsv4_schedule *schedule, int64_t row)
{
    return padding(schedule, row) && !m_takes_padding(m);
}

static void forget(double *row, int64_t width)
{
    for (int64_t i = 0; i < width; i++)
        row[i] = NAN;
}

/* ---- block ---- */

/* Streams h [n, D] of one token -> x [D], the sublayer's input, and post [n] and comb [n, n], which
 * spread its output. */
static void gather(museum *m, const dsv4_hc *hc, const dsv4_matrix *norm, const double *h,
                   double *post, double *comb, double *x)
{
    double *pre = new_values(m->config->hc_mult);
    m_mhc_mix(m, hc, h, pre, post, comb);
    m_mhc_pre(m, pre, h, x);
    if (!bug(m, BLOCK_NORM_MISSING))
        m_rmsnorm(m, norm, x, 1, x);
    free(pre);
}

static void attention_half(museum *m, const dsv4_layer *layer, const dsv4_hc *hc,
                           const dsv4_schedule *schedule, double *h, double *q, double *kv)
{
    int64_t N = schedule->rows, n = m->config->hc_mult, D = m->config->hidden_size;
    double *post = new_values(N * n), *comb = new_values(N * n * n);
    double *x = new_values(N * D), *y = new_values(N * D);
    for (int64_t i = 0; i < N; i++)
        if (!skipped(m, schedule, i))
            gather(m, hc, &layer->attn_norm, h + i * n * D, post + i * n, comb + i * n * n,
                   x + i * D);
    m_attention(m, layer, schedule, x, y, q, kv);
    for (int64_t i = 0; i < N; i++)
        if (!skipped(m, schedule, i))
            m_mhc_post(m, post + i * n, comb + i * n * n, y + i * D, h + i * n * D);
    free(post);
    free(comb);
    free(x);
    free(y);
}

/* One token. */
static void mixture_half(museum *m, const dsv4_layer *layer, const dsv4_hc *hc, int64_t id,
                         double *h)
{
    int64_t n = m->config->hc_mult, D = m->config->hidden_size;
    double *post = new_values(n), *comb = new_values(n * n);
    double *x = new_values(D), *y = new_values(D);
    gather(m, hc, &layer->ffn_norm, h, post, comb, x);
    m_moe(m, layer, &id, x, 1, y);
    m_mhc_post(m, post, comb, y, h);
    free(post);
    free(comb);
    free(x);
    free(y);
}

void m_block(museum *m, const dsv4_layer *layer, const dsv4_schedule *schedule, const int64_t *ids,
             double *h, double *q, double *kv)
{
    int64_t nD = m->config->hc_mult * m->config->hidden_size;
    const dsv4_hc *attn = &layer->hc_attn, *ffn = &layer->hc_ffn;
    if (bug(m, BLOCK_HC_SWAPPED)) {
        attn = &layer->hc_ffn;
        ffn = &layer->hc_attn;
    }
    attention_half(m, layer, attn, schedule, h, q, kv);
    for (int64_t i = 0; i < schedule->rows; i++) {
        if (skipped(m, schedule, i))
            forget(h + i * nD, nD);
        else
            mixture_half(m, layer, ffn, ids[i], h + i * nD);
    }
}

/* ---- MTP ---- */

/* The streams h [n, D] of one token become their mean, n times. */
static void collapse(museum *m, double *h)
{
    int64_t n = m->config->hc_mult, D = m->config->hidden_size;
    for (int64_t i = 0; i < D; i++) {
        double mean = m_bf16(m, m_op(m, m_sum(m, h + i, n, D) / (double)n));
        for (int64_t j = 0; j < n; j++)
            h[j * D + i] = mean;
    }
}

/* The layer's input x [n, D] of one token from the streams h [n, D] and a token id. */
static void mtp_input(museum *m, const dsv4_layer *layer, const dsv4_matrix *embed,
                      const dsv4_hc *main_hc_head, const dsv4_matrix *main_norm, int64_t id,
                      const double *h, double *x)
{
    int64_t n = m->config->hc_mult, D = m->config->hidden_size;
    const dsv4_matrix *e_proj = &layer->e_proj, *h_proj = &layer->h_proj;
    if (bug(m, MTP_PROJECTIONS_SWAPPED)) {
        e_proj = &layer->h_proj;
        h_proj = &layer->e_proj;
    }
    double *e = new_values(n * D), *from_e = new_values(D), *normed = new_values(n * D);
    m_embed(m, embed, &id, 1, e); /* n copies; one is enough */
    m_rmsnorm(m, &layer->enorm, e, 1, e);
    m_linear(m, e_proj, e, 1, from_e);
    memcpy(normed, h, (size_t)(n * D) * sizeof *normed);
    if (bug(m, MTP_COLLAPSED))
        collapse(m, normed);
    if (bug(m, MTP_HEAD_COLLAPSED) && main_hc_head != NULL) {
        m_head_input(m, main_hc_head, main_norm, h, 1, normed);
        for (int64_t i = D; i < n * D; i++)
            normed[i] = normed[i - D];
    }
    if (!bug(m, MTP_H_NORM_MISSING))
        m_rmsnorm(m, &layer->hnorm, normed, n, normed);
    m_linear(m, h_proj, normed, n, x);
    for (int64_t i = 0; i < n * D; i++)
        x[i] = m_bf16(m, from_e[i % D] + x[i]);
    free(e);
    free(from_e);
    free(normed);
}

/* One position too far: attention cannot tell, for its logits depend on differences of positions
 * only, and its output is rotated back by as much. So only what is shown of it turns. */
static void turn_on(museum *m, const dsv4_layer *layer, int64_t rows, int64_t heads, double *x)
{
    int64_t d = m->config->head_dim;
    bool compressed = layer->kind != DSV4_SWA;
    double *freq = new_values(m->config->qk_rope_head_dim / 2);
    m_frequencies(m, compressed, freq);
    for (int64_t i = 0; i < rows * heads; i++)
        m_rope(m, freq, compressed, 1, 1, x + i * d, d);
    free(freq);
}

/* MTP_HASH_GATE: a block that routes by the current token's id, with a table that no checkpoint has: an
 * engine's stand-in for it. */
static void hashed_block(museum *m, const dsv4_layer *layer, int64_t V,
                         const dsv4_schedule *schedule, const int64_t *ids, double *x, double *q,
                         double *kv)
{
    int64_t k = m->config->num_experts_per_tok, E = m->config->n_routed_experts;
    int64_t *table = dsv4_alloc((size_t)(V * k), sizeof *table);
    for (int64_t i = 0; i < V * k; i++)
        table[i] = (i / k * 1103515245 + 12345 + i % k * 2654435761) % E;
    dsv4_layer hashed = *layer;
    hashed.hash = true;
    hashed.ffn.gate.tid2eid = (dsv4_matrix){.name = "stand-in", .file = "", .dtype = DSV4_I64,
                                            .rows = V, .cols = k, .data = table};
    m_block(m, &hashed, schedule, ids, x, q, kv);
    free(table);
}

void m_mtp(museum *m, const dsv4_layer *layer, const dsv4_matrix *embed, const dsv4_matrix *head,
           const dsv4_hc *main_hc_head, const dsv4_matrix *main_norm,
           const dsv4_schedule *schedule, const int64_t *ids, const int64_t *next_ids,
           const double *h, double *logits, double *q, double *kv)
{
    int64_t N = schedule->rows, nD = m->config->hc_mult * m->config->hidden_size;
    double *x = new_values(N * nD);
    if (bug(m, MTP_SAME_TOKEN))
        next_ids = ids;
    for (int64_t i = 0; i < N; i++)
        if (!padding(schedule, i))
            mtp_input(m, layer, embed, main_hc_head, main_norm, next_ids[i], h + i * nD,
                      x + i * nD);
    if (bug(m, MTP_HASH_GATE))
        hashed_block(m, layer, embed->rows, schedule, ids, x, q, kv);
    else
        m_block(m, layer, schedule, next_ids, x, q, kv);
    if (bug(m, MTP_POSITION_PLUS_ONE) && q != NULL)
        turn_on(m, layer, N, m->config->num_attention_heads, q);
    if (bug(m, MTP_POSITION_PLUS_ONE) && kv != NULL)
        turn_on(m, layer, N, 1, kv);
    const dsv4_hc *hc = &layer->hc_head;
    if (bug(m, MTP_MAIN_HC_HEAD) && main_hc_head != NULL)
        hc = main_hc_head;
    const dsv4_matrix *norm = bug(m, MTP_MAIN_NORM) ? main_norm : &layer->norm;
    for (int64_t i = 0; i < N; i++) {
        if (padding(schedule, i))
            forget(logits + i * head->rows, head->rows);
        else
            m_head(m, hc, norm, head, x + i * nD, 1, logits + i * head->rows);
    }
    free(x);
}

/* ---- cases ---- */

static double *add_out(dsv4_case *answer, const char *name, int rank, const int64_t *shape)
{
    return dsv4_case_add_out(answer, name, DSV4_FORMAT_F64, rank, shape)->data;
}

/* Ids of the rows; NULL with one line where one is not below `end`. One of padding then becomes
 * 0. */
static int64_t *read_ids(const dsv4_case *c, const char *name, const dsv4_schedule *schedule,
                         int64_t end, dsv4_error *err)
{
    int64_t *ids = dsv4_case_indices(c, name);
    for (int64_t i = 0; i < schedule->rows; i++) {
        if (padding(schedule, i) && (ids[i] < 0 || ids[i] >= end)) {
            ids[i] = 0;
        } else if (ids[i] < 0 || ids[i] >= end) {
            dsv4_fail(err, "%s/%s: %s: value %lld is %lld, expected 0..%lld", c->op->name, c->name,
                      name, (long long)i, (long long)ids[i], (long long)(end - 1));
            free(ids);
            return NULL;
        }
    }
    return ids;
}

/* The id one row before (step -1) or after (step 1) each row in its sequence. Where there is none
 * the row's own is taken. */
static int64_t *neighbours(const dsv4_schedule *schedule, int step, const int64_t *ids)
{
    int64_t N = schedule->rows;
    int64_t *found = dsv4_alloc((size_t)N, sizeof *found);
    int64_t *last = dsv4_alloc((size_t)schedule->sequences, sizeof *last); /* row + 1 */
    for (int64_t j = 0; j < N; j++) {
        int64_t i = step < 0 ? j : N - 1 - j, s = schedule->sequence[i];
        found[i] = ids[i];
        if (s < 0)
            continue;
        if (last[s] > 0)
            found[i] = ids[last[s] - 1];
        last[s] = i + 1;
    }
    free(last);
    return found;
}

static int answer_block(museum *m, const dsv4_case *c, const dsv4_schedule *schedule,
                        dsv4_case *answer, dsv4_error *err)
{
    const int64_t shape[] = {schedule->rows, m->config->hc_mult, m->config->hidden_size};
    dsv4_layer layer;
    dsv4_case_layer(c, m->config, &layer);
    int64_t end = layer.ffn.gate.tid2eid.rows > 0 ? layer.ffn.gate.tid2eid.rows : INT64_MAX;
    int64_t *ids = read_ids(c, "token_ids", schedule, end, err);
    int status = ids != NULL ? 0 : -1;
    if (status == 0) {
        double *h = dsv4_case_values(c, "h"), *h_new = add_out(answer, "h_new", 3, shape);
        memcpy(h_new, h, (size_t)(shape[0] * shape[1] * shape[2]) * sizeof *h);
        m_block(m, &layer, schedule, ids, h_new, NULL, NULL);
        free(h);
    }
    free(ids);
    dsv4_case_layer_free(&layer);
    return status;
}

static int answer_mtp(museum *m, const dsv4_case *c, const dsv4_schedule *schedule,
                      dsv4_case *answer, dsv4_error *err)
{
    int64_t N = schedule->rows, H = m->config->num_attention_heads, d = m->config->head_dim;
    dsv4_matrix embed = dsv4_case_matrix(c, "embed"), head = dsv4_case_matrix(c, "head");
    int64_t *next_ids = read_ids(c, "next_ids", schedule, embed.rows, err);
    if (next_ids == NULL)
        return -1;
    dsv4_layer layer;
    dsv4_case_layer(c, m->config, &layer);
    dsv4_matrix main_norm = dsv4_case_matrix(c, "main.norm");
    const dsv4_hc main_hc_head = {dsv4_case_matrix(c, "main.hc_head_fn"),
                                  dsv4_case_matrix(c, "main.hc_head_base"),
                                  dsv4_case_matrix(c, "main.hc_head_scale")};
    const dsv4_hc *bait = main_hc_head.fn.rows > 0 ? &main_hc_head : NULL;
    if (main_norm.rows == 0)
        main_norm = layer.norm;
    int64_t *ids = neighbours(schedule, -1, next_ids); /* the next token of the row before */
    double *h = dsv4_case_values(c, "h");
    double *logits = add_out(answer, "logits", 2, (int64_t[]){N, head.rows});
    double *q = add_out(answer, "q", 3, (int64_t[]){N, H, d});
    double *kv = add_out(answer, "kv", 2, (int64_t[]){N, d});
    m_mtp(m, &layer, &embed, &head, bait, &main_norm, schedule, ids, next_ids, h, logits, q, kv);
    dsv4_case_layer_free(&layer);
    free(next_ids);
    free(ids);
    free(h);
    return 0;
}

static void model_pass(museum *m, const dsv4_model *model, const dsv4_schedule *schedule,
                       const int64_t *ids, dsv4_case *answer)
{
    const dsv4_config *config = m->config;
    int64_t N = schedule->rows, V = config->vocab_size, nD = config->hc_mult * config->hidden_size;
    double *h = new_values(N * nD), *logits = add_out(answer, "logits", 2, (int64_t[]){N, V});
    m_embed(m, &model->embed, ids, N, h);
    for (int64_t l = 0; l < config->num_hidden_layers; l++)
        m_block(m, &model->layers[l], schedule, ids, h, NULL, NULL);
    for (int64_t i = 0; i < N; i++) {
        if (padding(schedule, i))
            forget(logits + i * V, V);
        else
            m_head(m, &model->hc_head, &model->norm, &model->head, h + i * nD, 1, logits + i * V);
    }
    if (model->mtp != NULL) {
        int64_t *next_ids = neighbours(schedule, 1, ids);
        double *mtp_logits = add_out(answer, "mtp_logits", 2, (int64_t[]){N, V});
        m_mtp(m, &model->mtp[0], &model->embed, &model->head, &model->hc_head, &model->norm,
              schedule, ids, next_ids, h, mtp_logits, NULL, NULL);
        for (int64_t i = 0; i < N; i++) /* what follows a sequence's last token is not known */
            if (!padding(schedule, i) &&
                schedule->position[i] == schedule->length[schedule->sequence[i]] - 1)
                forget(mtp_logits + i * V, V);
        free(next_ids);
    }
    free(h);
}

static int answer_forward(museum *m, const dsv4_case *c, const dsv4_schedule *schedule,
                          dsv4_case *answer, dsv4_error *err)
{
    const dsv4_config *config_of_case = m->config;
    char dir[sizeof c->directory + sizeof c->checkpoint + 1];
    dsv4_model model;
    snprintf(dir, sizeof dir, "%s/%s", c->directory, c->checkpoint);
    if (dsv4_model_open(&model, dir, m->numerics, true, err) != 0)
        return -1;
    m->config = &model.config;
    int64_t *ids = read_ids(c, "token_ids", schedule, model.config.vocab_size, err);
    int status = ids != NULL ? 0 : -1;
    if (status == 0)
        model_pass(m, &model, schedule, ids, answer);
    m->config = config_of_case;
    dsv4_model_close(&model);
    free(ids);
    return status;
}

int m_answer_whole(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    static const struct {
        const char *name;
        int (*answer)(museum *, const dsv4_case *, const dsv4_schedule *, dsv4_case *,
                      dsv4_error *);
    } mine[] = {{"block", answer_block}, {"mtp", answer_mtp}, {"forward", answer_forward}};
    for (size_t i = 0; i < sizeof mine / sizeof *mine; i++) {
        dsv4_schedule schedule;
        if (strcmp(mine[i].name, c->op->name) != 0)
            continue;
        if (dsv4_case_schedule(c, &schedule, err) != 0)
            return -1;
        int status = mine[i].answer(m, c, &schedule, answer, err);
        dsv4_schedule_free(&schedule);
        return status;
    }
    return 1;
}
