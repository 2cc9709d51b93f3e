/* Cases of blocks, MTP and whole models, and the models' checkpoints. */
#include "layers.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/make_checkpoint.h"

/* ---- block and mtp: n = geometry, ratio, schedule, rows, chunk, W, topk, hash;
 * x = limit, hc_eps, rms_norm_eps ---- */

static void mixture_weights(gen *g, const gen_geometry *z, bool hash)
{
    gen_values(g, "ffn.gate.weight", GEN_DIMS(z->E, z->D), 0, 2 / sqrt((double)z->D));
    if (hash) {
        int64_t *table = gen_indices(g, "ffn.gate.tid2eid", GEN_DIMS(z->V, z->k));
        for (int64_t v = 0; v < z->V; v++) {
            table[v * z->k] = gen_below(g, z->E);
            for (int64_t i = 1; i < z->k; i++) /* the next ones: distinct */
                table[v * z->k + i] = (table[v * z->k] + i) % z->E;
        }
    } else {
        gen_values_f32(g, "ffn.gate.bias", GEN_DIMS(z->E), 0, 0.5);
    }
    for (int64_t e = 0; e <= z->E; e++)
        for (int i = 1; i <= 3; i++) {
            char name[DSV4_NAME];
            if (e < z->E)
                snprintf(name, sizeof name, "ffn.experts.%d.w%d", (int)e, i);
            else
                snprintf(name, sizeof name, "ffn.shared_experts.w%d", i);
            gen_quantised(g, name, e < z->E ? FP4 : FP8, i == 2 ? z->D : z->I, i == 2 ? z->I : z->D,
                          1);
        }
}

static void hc_weights(gen *g, const char *name, int64_t rows, int64_t scales, const gen_geometry *z)
{
    char full[DSV4_NAME];
    snprintf(full, sizeof full, "%s_fn", name);
    gen_values_f32(g, full, GEN_DIMS(rows, z->n * z->D), 0, 1 / sqrt((double)(z->n * z->D)));
    snprintf(full, sizeof full, "%s_base", name);
    float *base = gen_values_f32(g, full, GEN_DIMS(rows), 0, scales == 1 ? 1.5 : 0.5);
    /* Before MTP's head the streams should not be mixed so well that its weights do not matter. */
    for (int64_t j = 0; j < z->n && scales == 3 && strcmp(g->plan->op, "mtp") == 0; j++) {
        float *own = base + 2 * z->n + j * z->n + j;
        *own = (float)gen_to_bf16(*own + 4);
    }
    snprintf(full, sizeof full, "%s_scale", name);
    gen_values_f32(g, full, GEN_DIMS(scales), 0.75, 0.125);
}

static void layer(gen *g, const gen_geometry *z)
{
    const int64_t *n = g->plan->n;
    gen_attention_parameters(g, z, n[1], n[5], n[6] > 0 ? n[6] : 1);
    gen_set(g, "rms_norm_eps", g->plan->x[2]);
    gen_set(g, "num_experts_per_tok", (double)z->k);
    gen_set(g, "routed_scaling_factor", 1.5);
    gen_set(g, "norm_topk_prob", 1);
    gen_set(g, "hash", (double)n[7]);
    gen_set(g, "swiglu_limit", g->plan->x[0]);
    gen_set(g, "hc_mult", (double)z->n);
    gen_set(g, "hc_sinkhorn_iters", 3);
    gen_set(g, "hc_eps", g->plan->x[1]);
    gen_attention_weights(g, z, n[1]);
    const double gain = gen_input_gain(z);
    gen_values(g, "attn_norm.weight", GEN_DIMS(z->D), gain, 0.2 * gain);
    gen_values(g, "ffn_norm.weight", GEN_DIMS(z->D), 1, 0.2);
    hc_weights(g, "hc_attn", (2 + z->n) * z->n, 3, z);
    hc_weights(g, "hc_ffn", (2 + z->n) * z->n, 3, z);
    mixture_weights(g, z, n[7] != 0);
}

static void ids(gen *g, const char *name, int64_t rows, int64_t V)
{
    int64_t *id = gen_indices(g, name, GEN_DIMS(rows));
    for (int64_t t = 0; t < rows; t++)
        id[t] = gen_below(g, V);
}

static void block(gen *g)
{
    const gen_geometry *z = gen_sizes(g);
    const int64_t rows = gen_schedule_rows(g);
    gen_values(g, "h", GEN_DIMS(rows, z->n, z->D), 0, 1);
    ids(g, "token_ids", rows, z->V);
    gen_plan_schedule(g);
    layer(g, z);
}

static void mtp(gen *g)
{
    const gen_geometry *z = gen_sizes(g);
    const int64_t rows = gen_schedule_rows(g);
    gen_values(g, "h", GEN_DIMS(rows, z->n, z->D), 0.25, 1);
    ids(g, "next_ids", rows, z->V);
    gen_plan_schedule(g);
    layer(g, z);
    gen_quantised(g, "e_proj", FP8, z->D, z->D, 1);
    gen_quantised(g, "h_proj", FP8, z->D, z->D, 1);
    gen_values(g, "enorm.weight", GEN_DIMS(z->D), 0.4, 0.1); /* so that the streams stay apart */
    gen_values(g, "hnorm.weight", GEN_DIMS(z->D), 1, 0.2);
    gen_values(g, "norm.weight", GEN_DIMS(z->D), 1, 0.3);
    hc_weights(g, "hc_head", z->n, 1, z);
    gen_values(g, "main.norm.weight", GEN_DIMS(z->D), 1, 0.3);
    hc_weights(g, "main.hc_head", z->n, 1, z);
    gen_values(g, "embed.weight", GEN_DIMS(z->V, z->D), 0, 1);
    gen_values(g, "head.weight", GEN_DIMS(z->V, z->D), 0, 1 / sqrt((double)z->D));
}

/* ---- whole models: n = model, -, schedule, rows, chunk ---- */

/* Weights are bf16 numbers in the exact model; the released one has the released dtypes. */
static const struct {
    const char *name;
    gen_contracts contract;
    int64_t V;
    const char *config;
} models[] = {
    {"tiny-exact", EXACT, 64,
     "{\n"
     "  \"model_type\": \"deepseek_v4\",\n"
     "  \"vocab_size\": 64,\n"
     "  \"hidden_size\": 32,\n"
     "  \"num_hidden_layers\": 5,\n"
     "  \"num_attention_heads\": 4,\n"
     "  \"num_key_value_heads\": 1,\n"
     "  \"head_dim\": 16,\n"
     "  \"q_lora_rank\": 16,\n"
     "  \"qk_rope_head_dim\": 8,\n"
     "  \"o_groups\": 2,\n"
     "  \"o_lora_rank\": 8,\n"
     "  \"sliding_window\": 8,\n"
     "  \"compress_ratios\": [0, 4, 128, 4, 0, 0],\n"
     "  \"rope_theta\": 10000.0,\n"
     "  \"compress_rope_theta\": 160000.0,\n"
     "  \"rope_scaling\": {\n"
     "    \"type\": \"yarn\",\n"
     "    \"factor\": 4,\n"
     "    \"original_max_position_embeddings\": 256,\n"
     "    \"beta_fast\": 16,\n"
     "    \"beta_slow\": 1\n"
     "  },\n"
     "  \"max_position_embeddings\": 1024,\n"
     "  \"index_n_heads\": 12,\n"
     "  \"index_head_dim\": 8,\n"
     "  \"index_topk\": 8,\n"
     "  \"moe_intermediate_size\": 24,\n"
     "  \"n_routed_experts\": 8,\n"
     "  \"n_shared_experts\": 1,\n"
     "  \"num_experts_per_tok\": 2,\n"
     "  \"num_hash_layers\": 2,\n"
     "  \"scoring_func\": \"sqrtsoftplus\",\n"
     "  \"topk_method\": \"noaux_tc\",\n"
     "  \"norm_topk_prob\": true,\n"
     "  \"routed_scaling_factor\": 1.5,\n"
     "  \"swiglu_limit\": 1.5,\n"
     "  \"hc_mult\": 4,\n"
     "  \"hc_sinkhorn_iters\": 4,\n"
     "  \"hc_eps\": 1e-3,\n"
     "  \"rms_norm_eps\": 1e-6,\n"
     "  \"num_nextn_predict_layers\": 1,\n"
     "  \"bos_token_id\": 0,\n"
     "  \"eos_token_id\": 1\n"
     "}\n"},
    {"tiny-released", RELEASED, 64,
     "{\n"
     "  \"model_type\": \"deepseek_v4\",\n"
     "  \"vocab_size\": 64,\n"
     "  \"hidden_size\": 128,\n"
     "  \"num_hidden_layers\": 4,\n"
     "  \"num_attention_heads\": 2,\n"
     "  \"num_key_value_heads\": 1,\n"
     "  \"head_dim\": 128,\n"
     "  \"q_lora_rank\": 128,\n"
     "  \"qk_rope_head_dim\": 64,\n"
     "  \"o_groups\": 2,\n"
     "  \"o_lora_rank\": 64,\n"
     "  \"sliding_window\": 8,\n"
     "  \"compress_ratios\": [0, 4, 128, 4, 0],\n"
     "  \"rope_theta\": 10000.0,\n"
     "  \"compress_rope_theta\": 160000.0,\n"
     "  \"rope_scaling\": {\n"
     "    \"type\": \"yarn\",\n"
     "    \"factor\": 16,\n"
     "    \"original_max_position_embeddings\": 65536,\n"
     "    \"beta_fast\": 32,\n"
     "    \"beta_slow\": 1\n"
     "  },\n"
     "  \"max_position_embeddings\": 1048576,\n"
     "  \"index_n_heads\": 8,\n"
     "  \"index_head_dim\": 64,\n"
     "  \"index_topk\": 64,\n"
     "  \"moe_intermediate_size\": 128,\n"
     "  \"n_routed_experts\": 4,\n"
     "  \"n_shared_experts\": 1,\n"
     "  \"num_experts_per_tok\": 2,\n"
     "  \"num_hash_layers\": 4,\n"
     "  \"scoring_func\": \"sqrtsoftplus\",\n"
     "  \"topk_method\": \"noaux_tc\",\n"
     "  \"norm_topk_prob\": true,\n"
     "  \"routed_scaling_factor\": 1.5,\n"
     "  \"swiglu_limit\": 10.0,\n"
     "  \"hc_mult\": 4,\n"
     "  \"hc_sinkhorn_iters\": 20,\n"
     "  \"hc_eps\": 1e-6,\n"
     "  \"rms_norm_eps\": 1e-6,\n"
     "  \"num_nextn_predict_layers\": 1,\n"
     "  \"bos_token_id\": 0,\n"
     "  \"eos_token_id\": 1\n"
     "}\n"},
};

enum { MODELS = sizeof models / sizeof *models };

int gen_models(const char *directory, dsv4_error *err)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/models", directory);
    if (mkdir(path, 0777) != 0 && errno != EEXIST)
        return dsv4_fail(err, "%s: cannot create: %s", path, strerror(errno));
    for (int i = 0; i < MODELS; i++) {
        const make_options options = {
            .style = models[i].contract == EXACT ? MAKE_BF16 : MAKE_RELEASED, .seed = 4,
            .mild = models[i].contract == RELEASED};
        snprintf(path, sizeof path, "%s/models/%s", directory, models[i].name);
        if (make_checkpoint(path, models[i].config, &options, err) != 0)
            return -1;
    }
    return 0;
}

static void model(gen *g)
{
    for (int i = 0; i < MODELS; i++)
        if (models[i].contract == (gen_released(g) ? RELEASED : EXACT)) {
            snprintf(g->c->checkpoint, sizeof g->c->checkpoint, "models/%s", models[i].name);
            ids(g, "token_ids", gen_schedule_rows(g), models[i].V);
        }
    gen_plan_schedule(g);
}

#define MILD {64, 1e-6, 1e-6}
#define SHARP {0.75, 1e-2, 1e-2}

const gen_plan gen_whole[] = {
    {"block", "swa", "", "an SWA layer, experts by score", BOTH, block, {TINY, 0, FULL, 4, 0, 8, 0, 0},
     MILD},
    {"block", "swa-hash", "magnified", "experts by token id; large eps, a clamp that bites", BOTH,
     block, {TINY, 0, FULL, 10, 0, 4, 0, 1}, SHARP},
    {"block", "csa-hash", "", "a CSA layer, all entries kept", BOTH, block,
     {TINY, 4, FULL, 22, 0, 4, 8, 1}, SHARP},
    {"block", "csa-chunked", "chunked", "calls of three tokens", BOTH, block,
     {TINY, 4, CHUNKS, 14, 3, 4, 8, 1}, MILD},
    {"block", "csa-score", "", "a CSA layer, experts by score", BOTH, block,
     {TINY, 4, FULL, 5, 0, 4, 8, 0}, MILD},
    {"block", "hca-hash", "", "an HCA layer with groups of 8", BOTH, block,
     {TINY, 8, FULL, 19, 0, 4, 0, 1}, MILD},
    {"block", "hca-interleaved", "interleaved chunked", "three sequences by turns, groups of 5", BOTH,
     block, {TINY, 5, INTERLEAVED, 0, 0, 4, 0, 1}, MILD},
    {"block", "csa-left-padded", "padded chunked", "a batch of two with padding, then decoding", BOTH,
     block, {TINY, 4, PADDED, 0, 0, 4, 8, 1}, MILD},
    {"mtp", "tiny", "", "experts by score", BOTH, mtp, {TINY, 0, FULL, 4, 0, 8, 0, 0}, MILD},
    {"mtp", "chunked", "chunked magnified", "experts by token id, large eps, calls of two over a window "
     "of 4", BOTH, mtp, {TINY, 0, CHUNKS, 9, 2, 4, 0, 1}, SHARP},
    {"forward", "full-pass", "free-choice-bf16", "140 tokens at once: the HCA group of 128 among them",
     BOTH, model, {0, 0, FULL, 140}, {0}},
    {"forward", "six-tokens", "seam", "so few that correct engines of either precision take the same "
     "experts", BOTH, model, {0, 0, FULL, 6}, {0}},
    {"forward", "one-token", "seam free-choice-bf16", "one token", BOTH, model, {0, 0, FULL, 1}, {0}},
    {"forward", "chunks-of-7", "chunked free-choice-bf16", "calls of seven tokens", BOTH, model,
     {0, 0, CHUNKS, 45, 7}, {0}},
    {"forward", "decoding", "chunked seam free-choice-bf16", "a prompt of 125 tokens, then token by "
     "token over the boundary at 128", BOTH, model, {0, 0, TAIL, 132, 125}, {0}},
    {"forward", "packed", "packed free-choice-bf16", "three sequences in one call", BOTH, model,
     {0, 0, PACKED}, {0}},
    {"forward", "interleaved", "interleaved chunked free-choice-bf16", "three sequences by turns",
     BOTH, model, {0, 0, INTERLEAVED}, {0}},
    {"forward", "left-padded", "padded chunked free-choice-bf16", "a batch of two with padding, then "
     "decoding", BOTH, model, {0, 0, PADDED}, {0}},
    {0},
};
