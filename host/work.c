#include "work.h"

#include <math.h>
#include <stdlib.h>

/* ---- storage ---- */

/* What one layer of that ratio takes for `tokens` tokens. */
static double layer_bytes(const dsv4_path *path, const dsv4_config *config, dsv4_numerics numerics,
                          int64_t ratio, int64_t tokens)
{
    dsv4_config one = *config;
    one.num_hidden_layers = 1;
    one.num_nextn_predict_layers = 0;
    one.compress_ratios = &ratio;
    return (double)path->state_bytes(&one, numerics, tokens);
}

/* Seen from outside: what more tokens take. Numbers of them that leave no part of a line unused. */
dsv4_storage dsv4_storage_of(const dsv4_path *path, const dsv4_config *config,
                             dsv4_numerics numerics)
{
    enum { LINE = 64, HCA_RATIO = 128, CSA_RATIO = 4 };
    int64_t W = config->sliding_window;
    if (path->state_bytes == NULL) /* binary64 */
        return (dsv4_storage){8.0 * (double)config->head_dim, 8.0 * (double)config->head_dim,
                              8.0 * (double)config->index_head_dim};
    int64_t some = (W + HCA_RATIO * LINE - 1) / (HCA_RATIO * LINE) * HCA_RATIO * LINE;
    double hca = layer_bytes(path, config, numerics, HCA_RATIO, 2 * some) -
                 layer_bytes(path, config, numerics, HCA_RATIO, some);
    dsv4_storage storage = {layer_bytes(path, config, numerics, 0, W) / (double)W,
                            hca * HCA_RATIO / (double)some, 0};
    if (config->index_head_dim > 0) {
        double csa = layer_bytes(path, config, numerics, CSA_RATIO, 2 * some) -
                     layer_bytes(path, config, numerics, CSA_RATIO, some);
        storage.key = csa * CSA_RATIO / (double)some - storage.entry;
    }
    return storage;
}

/* ---- work ---- */

static double matrix_bytes(const dsv4_matrix *w)
{
    int64_t rows = w->rows, cols = w->cols;
    if (w->data == NULL)
        return 0;
    if (w->dtype == DSV4_I8) /* FP4 */
        return (double)(rows * (cols / 2 + cols / 32));
    if (w->dtype == DSV4_F8_E4M3)
        return (double)(rows * cols + (rows + 127) / 128 * ((cols + 127) / 128));
    return (double)(rows * cols * dsv4_dtype_size(w->dtype));
}

static void read_whole(dsv4_amount *a, const dsv4_matrix *w)
{
    a->weights += matrix_bytes(w);
}

/* `rows` vectors times the matrix. */
static void multiply(dsv4_amount *a, const dsv4_matrix *w, double rows)
{
    read_whole(a, w);
    a->flops += 2 * rows * (double)w->rows * (double)w->cols;
}

static void hyper_connection(dsv4_amount *a, const dsv4_hc *hc, double rows)
{
    multiply(a, &hc->fn, rows);
    read_whole(a, &hc->base);
    read_whole(a, &hc->scale);
}

static void compressor(dsv4_amount *a, const dsv4_compressor *w, double rows)
{
    read_whole(a, &w->ape);
    read_whole(a, &w->norm);
    multiply(a, &w->wkv, rows);
    multiply(a, &w->wgate, rows);
}

/* The sum of min(visible(t), most) over the tokens of the call. */
static double visible_to_all(int64_t position, int64_t rows, int64_t ratio, int64_t most)
{
    double sum = 0;
    for (int64_t t = position; t < position + rows; t++) {
        int64_t visible = (t + 1) / ratio;
        sum += (double)(visible < most ? visible : most);
    }
    return sum;
}

static void indexer(const dsv4_config *c, const dsv4_layer *layer, const dsv4_storage *storage,
                    int64_t position, int64_t rows, dsv4_amount *a)
{
    double heads = (double)c->index_n_heads, width = (double)c->index_head_dim;
    multiply(a, &layer->attn.indexer.wq_b, (double)rows);
    multiply(a, &layer->attn.indexer.weights_proj, (double)rows);
    compressor(a, &layer->attn.indexer.compressor, (double)rows);
    a->flops += 2 * heads * (width + 1) * visible_to_all(position, rows, layer->ratio, INT64_MAX);
    a->cache += storage->key * (double)((position + rows) / layer->ratio);
}

static void core(const dsv4_config *c, const dsv4_layer *layer, const dsv4_storage *storage,
                 int64_t position, int64_t rows, dsv4_amount *a)
{
    double entries = visible_to_all(position, rows, 1, c->sliding_window), taken = 0;
    int64_t old = position < c->sliding_window ? position : c->sliding_window;
    if (layer->ratio > 0) {
        int64_t most = layer->kind == DSV4_CSA ? c->index_topk : INT64_MAX;
        double all = (double)((position + rows) / layer->ratio);
        taken = visible_to_all(position, rows, layer->ratio, most);
        entries += taken;
        taken = taken < all ? taken : all; /* several tokens may take the same */
    }
    read_whole(a, &layer->attn.attn_sink);
    a->cache += storage->window * (double)old + storage->entry * taken;
    a->flops += 4 * (double)c->num_attention_heads * (double)c->head_dim * entries;
}

static void experts(const dsv4_config *c, const dsv4_layer *layer, double rows, dsv4_amount *a)
{
    const dsv4_expert *shared = &layer->ffn.shared_experts, *one = &layer->ffn.experts[0];
    double E = (double)c->n_routed_experts, k = (double)c->num_experts_per_tok;
    double different = E * (1 - pow(1 - (k < E ? k / E : 1), rows)), all = 0;
    for (int64_t e = 0; e < c->n_routed_experts; e++) /* a checkpoint may store them differently */
        all += matrix_bytes(&layer->ffn.experts[e].w1) + matrix_bytes(&layer->ffn.experts[e].w2) +
               matrix_bytes(&layer->ffn.experts[e].w3);
    multiply(a, &shared->w1, rows);
    multiply(a, &shared->w2, rows);
    multiply(a, &shared->w3, rows);
    a->weights += different * all / E;
    a->flops += 2 * rows * k * 3 * (double)one->w1.rows * (double)one->w1.cols;
}

static void router(const dsv4_config *c, const dsv4_layer *layer, double rows, dsv4_amount *a)
{
    const dsv4_matrix *table = &layer->ffn.gate.tid2eid;
    multiply(a, &layer->ffn.gate.weight, rows);
    read_whole(a, &layer->ffn.gate.bias);
    if (table->data != NULL)
        a->weights += rows * (double)c->num_experts_per_tok *
                      (double)dsv4_dtype_size(table->dtype);
}

static void streams(const dsv4_config *c, const dsv4_layer *layer, double rows, dsv4_amount *a)
{
    double n = (double)c->hc_mult, D = (double)c->hidden_size;
    hyper_connection(a, &layer->hc_attn, rows);
    hyper_connection(a, &layer->hc_ffn, rows);
    read_whole(a, &layer->attn_norm);
    read_whole(a, &layer->ffn_norm);
    a->flops += 2 * rows * 2 * D * (n + n + n * n); /* collapsed, spread and mixed, twice a layer */
}

static void projections(const dsv4_layer *layer, double rows, dsv4_amount *a)
{
    read_whole(a, &layer->attn.q_norm);
    read_whole(a, &layer->attn.kv_norm);
    multiply(a, &layer->attn.wq_a, rows);
    multiply(a, &layer->attn.wq_b, rows);
    multiply(a, &layer->attn.wkv, rows);
    multiply(a, &layer->attn.wo_a, rows); /* a row of it meets the values of its own group only */
    multiply(a, &layer->attn.wo_b, rows);
}

void dsv4_work_of(const dsv4_model *model, const dsv4_storage *storage, int64_t position,
                  int64_t rows, int64_t logits, dsv4_work *work)
{
    const dsv4_config *c = &model->config;
    *work = (dsv4_work){{{{0}}}};
    for (int64_t i = 0; i < c->num_hidden_layers; i++) {
        const dsv4_layer *layer = &model->layers[i];
        dsv4_amount *part = work->part[layer->kind];
        projections(layer, (double)rows, &part[DSV4_PART_PROJECTIONS]);
        if (layer->kind != DSV4_SWA)
            compressor(&part[DSV4_PART_COMPRESSOR], &layer->attn.compressor, (double)rows);
        if (layer->kind == DSV4_CSA)
            indexer(c, layer, storage, position, rows, &part[DSV4_PART_INDEXER]);
        core(c, layer, storage, position, rows, &part[DSV4_PART_CORE]);
        router(c, layer, (double)rows, &part[DSV4_PART_ROUTER]);
        experts(c, layer, (double)rows, &part[DSV4_PART_EXPERTS]);
        streams(c, layer, (double)rows, &part[DSV4_PART_MHC]);
    }
    dsv4_amount *outside = work->part[DSV4_OUTSIDE];
    outside[DSV4_PART_EMBED].weights =
        (double)(rows * c->hidden_size * dsv4_dtype_size(model->embed.dtype));
    if (logits > 0) {
        hyper_connection(&outside[DSV4_PART_HEAD], &model->hc_head, (double)logits);
        read_whole(&outside[DSV4_PART_HEAD], &model->norm);
        multiply(&outside[DSV4_PART_HEAD], &model->head, (double)logits);
    }
}

dsv4_amount dsv4_work_sum(const dsv4_work *work, int kind, int part)
{
    dsv4_amount sum = {0};
    for (int k = 0; k < DSV4_PROFILE_KINDS; k++)
        for (int p = 0; p < DSV4_PARTS; p++) {
            const dsv4_amount *a = &work->part[k][p];
            if ((kind >= 0 && k != kind) || (part >= 0 && p != part))
                continue;
            sum.weights += a->weights;
            sum.cache += a->cache;
            sum.flops += a->flops;
        }
    return sum;
}
