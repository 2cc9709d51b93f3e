#include "trace.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void dsv4_trace_name(char name[DSV4_TRACE_NAME], const dsv4_config *config, int64_t layer,
                     const char *tensor)
{
    bool mtp = layer >= config->num_hidden_layers;
    snprintf(name, DSV4_TRACE_NAME, "trace/%s/%" PRId64 "/%s", mtp ? "mtp" : "layers",
             mtp ? layer - config->num_hidden_layers : layer, tensor);
}

static const char *const steps[] = {
    "in", "attn_in", "q", "kv", "compressed", "index_q", "index_k", "index_score", "selected",
    "attn_core", "attn_out", "mid", "ffn_in", "route_index", "route_weight", "ffn_out", "out",
};

dsv4_trace_place dsv4_trace_place_of(const char *name)
{
    static const struct { const char *name; dsv4_trace_stage stage; } whole[] = {
        {"token_ids", DSV4_TRACE_IDS}, {"logits", DSV4_TRACE_LOGITS},
        {"mtp_token_ids", DSV4_TRACE_MTP_IDS}, {"mtp_logits", DSV4_TRACE_MTP_LOGITS}};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        if (strcmp(name, whole[i].name) == 0)
            return (dsv4_trace_place){.stage = whole[i].stage};
    const dsv4_trace_place other = {.stage = DSV4_TRACE_OTHER};
    dsv4_trace_place place = other;
    char level[8], layer[10], step[16];
    int end = 0;
    if (sscanf(name, "trace/%7[a-z]/%9[0-9]/%15[a-z_]%n", level, layer, step, &end) < 3 ||
        name[end] != '\0')
        return other;
    if (strcmp(level, "layers") == 0)
        place.stage = DSV4_TRACE_LAYERS;
    else if (strcmp(level, "mtp") == 0)
        place.stage = DSV4_TRACE_MTP;
    else
        return other;
    place.layer = strtol(layer, NULL, 10);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        if (strcmp(step, steps[i]) == 0) {
            place.step = (long)i;
            place.tensor = steps[i];
        }
    return place.tensor != NULL ? place : other;
}

int dsv4_trace_order(const dsv4_trace_place *a, const dsv4_trace_place *b)
{
    if (a->stage != b->stage)
        return a->stage < b->stage ? -1 : 1;
    if (a->layer != b->layer)
        return a->layer < b->layer ? -1 : 1;
    return (a->step > b->step) - (a->step < b->step);
}

int dsv4_trace_compare(const char *a, const char *b)
{
    dsv4_trace_place x = dsv4_trace_place_of(a), y = dsv4_trace_place_of(b);
    int order = dsv4_trace_order(&x, &y);
    return order != 0 ? order : strcmp(a, b);
}
