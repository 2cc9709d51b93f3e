/* dsv4 bench: what a pass takes more after a longer context, and what of that is explained. */
#ifndef DSV4_GROWTH_H
#define DSV4_GROWTH_H

#include "path.h"

/* A pass at one depth: its times, and what its last token sees in all CSA and all HCA layers
 * together. */
typedef struct {
    int64_t depth;
    dsv4_profile profile;
    double keys, entries;
} dsv4_growth_point;

/* Against another depth. Seconds of the whole pass. */
typedef struct {
    double seconds;                    /* more */
    double indexer;                    /* more in the CSA layers' indexers, .. */
    double indexer_per_key;            /* .. and that by what they see more */
    double core, core_per_entry;       /* the same of core attention in the HCA layers */
    double rest;                       /* seconds - indexer - core */
    double layer[DSV4_OUTSIDE];        /* more in each kind's layers */
} dsv4_growth;

/* Per key and entry 0 where there are no more. */
dsv4_growth dsv4_growth_of(const dsv4_growth_point *base, const dsv4_growth_point *point);

/* Sees so many entries of all layers that are of that kind. */
double dsv4_growth_visible(const dsv4_config *config, dsv4_layer_kind kind, int64_t position);

/* The depth from which on nothing but those two grows: the window is full, and CSA has more to
 * choose from than it takes. */
int64_t dsv4_growth_steady(const dsv4_config *config);

double dsv4_profile_sum(const dsv4_profile *profile, int kind, int part); /* -1: of all */

#endif
