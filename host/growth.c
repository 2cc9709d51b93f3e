#include "growth.h"

double dsv4_profile_sum(const dsv4_profile *profile, int kind, int part)
{
    double sum = 0;
    for (int k = 0; k < DSV4_PROFILE_KINDS; k++)
        for (int p = 0; p < DSV4_PARTS; p++)
            if ((kind < 0 || k == kind) && (part < 0 || p == part))
                sum += profile->seconds[k][p];
    return sum;
}

double dsv4_growth_visible(const dsv4_config *config, dsv4_layer_kind kind, int64_t position)
{
    double sum = 0;
    for (int64_t i = 0; i < config->num_hidden_layers; i++)
        if (kind != DSV4_SWA && dsv4_config_kind(config, i) == kind)
            sum += (double)((position + 1) / config->compress_ratios[i]);
    return sum;
}

int64_t dsv4_growth_steady(const dsv4_config *config)
{
    int64_t steady = config->sliding_window;
    for (int64_t i = 0; i < config->num_hidden_layers; i++) {
        int64_t all = config->index_topk * config->compress_ratios[i];
        if (dsv4_config_kind(config, i) == DSV4_CSA && all > steady)
            steady = all;
    }
    return steady;
}

dsv4_growth dsv4_growth_of(const dsv4_growth_point *base, const dsv4_growth_point *point)
{
    const dsv4_profile *a = &base->profile, *b = &point->profile;
    double keys = point->keys - base->keys, entries = point->entries - base->entries;
    dsv4_growth g = {.seconds = dsv4_profile_sum(b, -1, -1) - dsv4_profile_sum(a, -1, -1)};
    g.indexer = b->seconds[DSV4_CSA][DSV4_PART_INDEXER] - a->seconds[DSV4_CSA][DSV4_PART_INDEXER];
    g.core = b->seconds[DSV4_HCA][DSV4_PART_CORE] - a->seconds[DSV4_HCA][DSV4_PART_CORE];
    g.indexer_per_key = keys > 0 ? g.indexer / keys : 0;
    g.core_per_entry = entries > 0 ? g.core / entries : 0;
    g.rest = g.seconds - g.indexer - g.core;
    for (int kind = 0; kind < DSV4_OUTSIDE; kind++)
        g.layer[kind] = dsv4_profile_sum(b, kind, -1) - dsv4_profile_sum(a, kind, -1);
    return g;
}
