/* config.json of a DeepSeek-V4 checkpoint. spec/config.md. */
#ifndef DSV4_CONFIG_H
#define DSV4_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* Which of the two contracts of spec/numerics.md a forward pass keeps. */
typedef enum { DSV4_EXACT, DSV4_RELEASED } dsv4_numerics;

/* What a compression ratio makes of a layer: 0, 4, or anything larger. */
typedef enum { DSV4_SWA, DSV4_CSA, DSV4_HCA } dsv4_layer_kind;

/* Fields carry the names of config.json. */
typedef struct {
    int64_t hidden_size;           /* D */
    int64_t num_hidden_layers;     /* L */
    int64_t num_attention_heads;   /* H */
    int64_t head_dim;              /* d */
    int64_t q_lora_rank;
    int64_t qk_rope_head_dim;      /* R, even, <= d */
    int64_t o_groups;              /* divides H */
    int64_t o_lora_rank;
    int64_t sliding_window;        /* W */
    int64_t index_n_heads;         /* n_i; the three index_ keys are 0 where no layer is CSA */
    int64_t index_head_dim;        /* d_i, a power of two, >= R */
    int64_t index_topk;
    int64_t moe_intermediate_size; /* I */
    int64_t n_routed_experts;      /* E */
    int64_t num_experts_per_tok;   /* k */
    int64_t num_hash_layers;
    int64_t hc_mult;               /* n */
    int64_t hc_sinkhorn_iters;
    int64_t max_position_embeddings;
    int64_t num_nextn_predict_layers; /* MTP layers: 0 where the key is absent */
    int64_t vocab_size;               /* V */
    int64_t bos_token_id, eos_token_id; /* -1 where absent */
    double routed_scaling_factor;
    double swiglu_limit; /* 0: no clamp */
    double hc_eps, rms_norm_eps;
    double rope_theta, compress_rope_theta;
    bool norm_topk_prob;
    struct {
        bool present; /* false: no rope_scaling, or original_max_position_embeddings 0 */
        double factor, original_max_position_embeddings, beta_fast, beta_slow;
    } rope_scaling;
    int64_t *compress_ratios; /* [num_hidden_layers + num_nextn_predict_layers], owned */
} dsv4_config;

/* Reads and checks `path`. 0, or -1 with one line that names the file and the key. */
int dsv4_config_read(dsv4_config *config, const char *path, dsv4_error *err);

/* The same from text in memory; `name` stands for the file in messages. */
int dsv4_config_parse(dsv4_config *config, const char *text, size_t length, const char *name,
                      dsv4_error *err);

/* config.json of a released geometry, "flash" or "pro"; NULL for any other name. */
const char *dsv4_geometry(const char *name);

/* The kind of layer `layer` (num_hidden_layers and above: the MTP layers). */
dsv4_layer_kind dsv4_config_kind(const dsv4_config *config, int64_t layer);

void dsv4_config_free(dsv4_config *config);

#endif
