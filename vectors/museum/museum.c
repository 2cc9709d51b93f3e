/* The museum's engines from outside: their bugs, which operators these reach, and cases. */
#include "museum.h"

#include <string.h>

museum_bug museum_find(const char *id)
{
    for (int b = BUG_NONE + 1; b < BUGS; b++)
        if (museum_exhibits[b].id != NULL && strcmp(museum_exhibits[b].id, id) == 0)
            return (museum_bug)b;
    return BUG_NONE;
}

void museum_add_bug(museum_engine *engine, museum_bug bug)
{
    engine->bugs[bug / 64] |= UINT64_C(1) << (bug % 64);
}

/* ---- which operators a bug can change ---- */

/* What an operator uses: other operators, or a part that it shares with one of them (an exhibit is
 * listed with the first operator that has the part): gate_hash weighs as gate_score does. Every
 * matrix may be stored as codes. */
#define MATRICES "linear_fp8 linear_fp4 linear_plain"
#define BLOCK "mhc_mix mhc_pre mhc_post rmsnorm attention_swa attention_csa attention_hca moe"

static const struct { const char *name, *uses; } uses[] = {
    {"quant_act", "quant_e4m3_encode"},
    {"quant_kv", "quant_act"},
    {"quant_index", "quant_act quant_e2m1_encode"},
    {"linear_fp8", "quant_e4m3_decode quant_e8m0_decode quant_act"},
    {"linear_fp4", "quant_e2m1_decode linear_fp8"},
    {"linear_plain", "linear_fp8"},
    {"linear_f32", MATRICES},
    {"linear_grouped", MATRICES},
    {"rmsnorm_head", "rmsnorm"},
    {"rope", "rope_frequencies"},
    {"rope_inverse", "rope"},
    {"mhc_mix", "linear_f32 rmsnorm mhc_sinkhorn"},
    {"compressor_entry", "rmsnorm rope hadamard quant_kv quant_index"},
    {"compressor_csa", "linear_f32 compressor_entry"},
    {"compressor_hca", "compressor_csa"},
    {"indexer_query", "rope hadamard quant_index " MATRICES},
    {"indexer_weights", MATRICES},
    {"indexer_select", "indexer_score"},
    {"attention_output", "rope_inverse linear_grouped " MATRICES},
    {"attention_swa", "rmsnorm rmsnorm_head quant_kv core_attn attention_output"},
    {"attention_csa", "attention_swa compressor_csa indexer_query indexer_weights indexer_score "
                      "indexer_select"},
    {"attention_hca", "attention_csa compressor_hca"},
    {"gate_score", "linear_f32"},
    {"gate_hash", "gate_score"},
    {"expert", MATRICES},
    {"moe", "gate_score gate_hash expert"},
    {"block", BLOCK},
    {"head", "mhc_mix mhc_pre rmsnorm linear_f32"},
    {"mtp", "embed rmsnorm block head " MATRICES},
    {"forward", "embed block head mtp"},
};

/* Whether `name` is one of the words of `list`. */
static bool listed(const char *list, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = list; (at = strstr(at, name)) != NULL; at += length)
        if ((at == list || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
            return true;
    return false;
}

/* Nobody uses himself, directly or not, so this comes to an end. */
static bool reaches(const char *user, const char *used)
{
    if (strcmp(user, used) == 0)
        return true;
    for (size_t i = 0; i < sizeof uses / sizeof *uses; i++)
        if (listed(uses[i].uses, used) && reaches(user, uses[i].name))
            return true;
    return false;
}

bool museum_touches(museum_bug bug, const dsv4_operator *op)
{
    const char *home = museum_exhibits[bug].operator;
    return home != NULL && reaches(op->name, home);
}

/* ---- cases ---- */

int museum_run(const museum_engine *engine, const dsv4_case *c, dsv4_case *answer,
               uint64_t *choices, dsv4_error *err)
{
    int (*const files[])(museum *, const dsv4_case *, dsv4_case *, dsv4_error *) = {
        m_answer_elements, m_answer_mixture, m_answer_attention, m_answer_whole};
    dsv4_config config;
    dsv4_case_config(c, &config);
    museum m = {.engine = engine, .config = &config, .numerics = c->numerics,
                .random = (engine->seed + 1) * 0x9e3779b97f4a7c15, /* of xorshift: never 0 */
                .choices = 0xcbf29ce484222325};
    m.random += m.random == 0;
    int status = 1;
    for (size_t i = 0; i < sizeof files / sizeof *files && status == 1; i++)
        status = files[i](&m, c, answer, err);
    dsv4_config_free(&config);
    if (choices != NULL)
        *choices = m.choices;
    return status;
}

int museum_answer(void *engine, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    return museum_run(engine, c, answer, NULL, err);
}
