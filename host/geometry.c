#include <string.h>

#include "config.h"

/* What the two released configurations share. */
#define SHARED                                                                                     \
    "  \"architectures\": [\"DeepseekV4ForCausalLM\"],\n"                                          \
    "  \"model_type\": \"deepseek_v4\",\n"                                                         \
    "  \"head_dim\": 512,\n"                                                                       \
    "  \"num_key_value_heads\": 1,\n"                                                              \
    "  \"qk_rope_head_dim\": 64,\n"                                                                \
    "  \"o_lora_rank\": 1024,\n"                                                                   \
    "  \"sliding_window\": 128,\n"                                                                 \
    "  \"index_n_heads\": 64,\n"                                                                   \
    "  \"index_head_dim\": 128,\n"                                                                 \
    "  \"n_shared_experts\": 1,\n"                                                                 \
    "  \"num_experts_per_tok\": 6,\n"                                                              \
    "  \"num_hash_layers\": 3,\n"                                                                  \
    "  \"scoring_func\": \"sqrtsoftplus\",\n"                                                      \
    "  \"topk_method\": \"noaux_tc\",\n"                                                           \
    "  \"norm_topk_prob\": true,\n"                                                                \
    "  \"hidden_act\": \"silu\",\n"                                                                \
    "  \"swiglu_limit\": 10.0,\n"                                                                  \
    "  \"hc_mult\": 4,\n"                                                                          \
    "  \"hc_sinkhorn_iters\": 20,\n"                                                               \
    "  \"hc_eps\": 1e-06,\n"                                                                       \
    "  \"rms_norm_eps\": 1e-06,\n"                                                                 \
    "  \"rope_theta\": 10000,\n"                                                                   \
    "  \"compress_rope_theta\": 160000,\n"                                                         \
    "  \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 16, \"beta_fast\": 32, "                 \
    "\"beta_slow\": 1, \"original_max_position_embeddings\": 65536},\n"                            \
    "  \"max_position_embeddings\": 1048576,\n"                                                    \
    "  \"num_nextn_predict_layers\": 1,\n"                                                         \
    "  \"vocab_size\": 129280,\n"                                                                  \
    "  \"bos_token_id\": 0,\n"                                                                     \
    "  \"eos_token_id\": 1,\n"                                                                     \
    "  \"tie_word_embeddings\": false,\n"                                                          \
    "  \"expert_dtype\": \"fp4\",\n"                                                               \
    "  \"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", "                   \
    "\"scale_fmt\": \"ue8m0\", \"activation_scheme\": \"dynamic\", "                               \
    "\"weight_block_size\": [128, 128]}\n"

static const char flash[] =
    "{\n"
    "  \"hidden_size\": 4096,\n"
    "  \"num_hidden_layers\": 43,\n"
    "  \"num_attention_heads\": 64,\n"
    "  \"q_lora_rank\": 1024,\n"
    "  \"o_groups\": 8,\n"
    "  \"index_topk\": 512,\n"
    "  \"moe_intermediate_size\": 2048,\n"
    "  \"n_routed_experts\": 256,\n"
    "  \"routed_scaling_factor\": 1.5,\n"
    "  \"compress_ratios\": ["
    "0, 0, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, "
    "4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, "
    "0],\n"
    SHARED "}\n";

static const char pro[] =
    "{\n"
    "  \"hidden_size\": 7168,\n"
    "  \"num_hidden_layers\": 61,\n"
    "  \"num_attention_heads\": 128,\n"
    "  \"q_lora_rank\": 1536,\n"
    "  \"o_groups\": 16,\n"
    "  \"index_topk\": 1024,\n"
    "  \"moe_intermediate_size\": 3072,\n"
    "  \"n_routed_experts\": 384,\n"
    "  \"routed_scaling_factor\": 2.5,\n"
    "  \"compress_ratios\": ["
    "128, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, "
    "128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, "
    "4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128, 4, 0],\n"
    SHARED "}\n";

const char *dsv4_geometry(const char *name)
{
    if (strcmp(name, "flash") == 0)
        return flash;
    if (strcmp(name, "pro") == 0)
        return pro;
    return NULL;
}
