#include "path.h"

#include <string.h>

static const dsv4_path *const paths[] = {&dsv4_path_ref, &dsv4_path_fast};

const dsv4_path *dsv4_path_find(const char *name)
{
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (strcmp(paths[i]->name, name) == 0)
            return paths[i];
    return NULL;
}

const char *dsv4_part_name(dsv4_part part)
{
    static const char *const names[DSV4_PARTS] = {
        [DSV4_PART_OTHER] = "other",           [DSV4_PART_EMBED] = "embed",
        [DSV4_PART_PROJECTIONS] = "attention projections",
        [DSV4_PART_COMPRESSOR] = "compressor", [DSV4_PART_INDEXER] = "indexer",
        [DSV4_PART_CORE] = "core attention",   [DSV4_PART_ROUTER] = "router",
        [DSV4_PART_EXPERTS] = "experts",       [DSV4_PART_MHC] = "mHC",
        [DSV4_PART_HEAD] = "head",
    };
    return names[part];
}

const char *dsv4_path_names(void)
{
    return "ref or fast";
}
