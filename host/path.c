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

const char *dsv4_path_names(void)
{
    return "ref or fast";
}
