#include "trace.h"

#include <stdio.h>
#include <string.h>

static const char *const steps[] = {
    "in", "attn_in", "q", "kv", "compressed", "index_q", "index_k", "index_score", "selected",
    "attn_core", "attn_out", "mid", "ffn_in", "route_index", "route_weight", "ffn_out", "out",
};

typedef struct { long stage, layer, step; } place;

static place place_of(const char *name)
{
    static const struct { const char *name; long stage; } whole[] = {
        {"token_ids", 0}, {"logits", 2}, {"mtp_token_ids", 3}, {"mtp_logits", 5}};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        if (strcmp(name, whole[i].name) == 0)
            return (place){.stage = whole[i].stage};
    place p = {.stage = 6};
    char level[8], step[16];
    int end = 0;
    if (sscanf(name, "trace/%7[a-z]/%9ld/%15[a-z_]%n", level, &p.layer, step, &end) < 3 ||
        name[end] != '\0')
        return (place){.stage = 6};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        if (strcmp(step, steps[i]) == 0) {
            p.step = (long)i;
            p.stage = strcmp(level, "layers") == 0 ? 1 : strcmp(level, "mtp") == 0 ? 4 : 6;
        }
    return p;
}

int dsv4_trace_compare(const char *a, const char *b)
{
    place x = place_of(a), y = place_of(b);
    long order = x.stage - y.stage;
    if (order == 0 && x.stage < 6)
        order = x.layer != y.layer ? x.layer - y.layer : x.step - y.step;
    return order != 0 ? (order < 0 ? -1 : 1) : strcmp(a, b);
}
