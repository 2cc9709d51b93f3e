#include "whole.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

/* No two sizes alike. eps are large, so that a missing one shows; the gate's limit is reached. */
static const char exact_config[] =
    "{\"hidden_size\": 20, \"num_hidden_layers\": 4, \"num_attention_heads\": 4, \"head_dim\": 12,"
    " \"q_lora_rank\": 14, \"qk_rope_head_dim\": 6, \"o_groups\": 2, \"o_lora_rank\": 5,"
    " \"sliding_window\": 7, \"index_n_heads\": 3, \"index_head_dim\": 8, \"index_topk\": 3,"
    " \"moe_intermediate_size\": 11, \"n_routed_experts\": 9, \"num_experts_per_tok\": 3,"
    " \"num_hash_layers\": 1, \"routed_scaling_factor\": 1.5, \"swiglu_limit\": 0.75,"
    " \"hc_mult\": 2, \"hc_sinkhorn_iters\": 4, \"hc_eps\": 0.01, \"rms_norm_eps\": 0.001,"
    " \"rope_theta\": 100, \"compress_rope_theta\": 1600, \"max_position_embeddings\": 999,"
    " \"vocab_size\": 31, \"compress_ratios\": [0, 4, 8, 4, 0], \"num_nextn_predict_layers\": 1,"
    " \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 16, \"beta_fast\": 8, \"beta_slow\": 1,"
    "   \"original_max_position_embeddings\": 64}}";

/* What must be a multiple of 128, 64 or 32 is. */
static const char released_config[] =
    "{\"hidden_size\": 128, \"num_hidden_layers\": 4, \"num_attention_heads\": 4, \"head_dim\": 80,"
    " \"q_lora_rank\": 128, \"qk_rope_head_dim\": 16, \"o_groups\": 2, \"o_lora_rank\": 64,"
    " \"sliding_window\": 7, \"index_n_heads\": 3, \"index_head_dim\": 32, \"index_topk\": 3,"
    " \"moe_intermediate_size\": 128, \"n_routed_experts\": 5, \"num_experts_per_tok\": 2,"
    " \"num_hash_layers\": 1, \"routed_scaling_factor\": 1.5, \"swiglu_limit\": 0.75,"
    " \"hc_mult\": 2, \"hc_sinkhorn_iters\": 4, \"hc_eps\": 0.01, \"rms_norm_eps\": 0.001,"
    " \"rope_theta\": 100, \"compress_rope_theta\": 1600, \"max_position_embeddings\": 999,"
    " \"vocab_size\": 31, \"compress_ratios\": [0, 4, 8, 4, 0], \"num_nextn_predict_layers\": 1,"
    " \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 16, \"beta_fast\": 8, \"beta_slow\": 1,"
    "   \"original_max_position_embeddings\": 64}}";

void whole_open(whole *w, dsv4_numerics numerics, make_style style, const char *const changes[])
{
    bool released = numerics == DSV4_RELEASED;
    const make_options options = {.style = released ? MAKE_RELEASED : style, .seed = 1};
    const char *const none[] = {END_OF_CHANGES};
    char *json = files_json(released ? released_config : exact_config,
                            changes != NULL ? changes : none);
    dsv4_error err = {{0}};
    *w = (whole){.dir = files_directory(), .numerics = numerics};
    if (make_checkpoint(w->dir, json, &options, &err) != 0 ||
        dsv4_model_open(&w->model, w->dir, numerics, true, &err) != 0)
        fail_msg("%s", err.text);
    free(json);
}

void whole_close(whole *w)
{
    dsv4_model_close(&w->model);
    files_remove(w->dir);
}

int64_t *whole_ids(const whole *w, int64_t n, int64_t seed)
{
    int64_t *ids = dsv4_alloc((size_t)n, sizeof *ids);
    uint64_t x = (uint64_t)seed;
    for (int64_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (int64_t)((x >> 33) % (uint64_t)w->model.config.vocab_size);
    }
    return ids;
}

void whole_pass(const whole *w, const int64_t *ids, int64_t n, int64_t chunk, const dsv4_tap *tap,
                double *logits, double *mtp_logits)
{
    whole_pass_by(&dsv4_path_ref, w, ids, n, chunk, tap, logits, mtp_logits);
}

void whole_pass_by(const dsv4_path *path, const whole *w, const int64_t *ids, int64_t n,
                   int64_t chunk, const dsv4_tap *tap, double *logits, double *mtp_logits)
{
    int64_t V = w->model.config.vocab_size;
    dsv4_error err = {{0}};
    dsv4_run *run = path->open(&w->model, w->numerics, n, tap, &err);
    if (run == NULL)
        fail_msg("%s", err.text);
    int64_t *next = dsv4_alloc((size_t)n, sizeof *next);
    for (int64_t i = 0; i < n; i++)
        next[i] = ids[(i + 1) % n];
    for (int64_t t = 0; t < n; t += chunk) {
        int64_t count = n - t < chunk ? n - t : chunk;
        if (path->forward(run, ids + t, count, logits + t * V, &err) != 0 ||
            (mtp_logits != NULL &&
             path->mtp(run, next + t, count, mtp_logits + t * V, &err) != 0))
            fail_msg("%s", err.text);
    }
    path->close(run);
    free(next);
}
