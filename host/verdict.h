/* What dsv4 diff concludes of two traces: whether a discrete choice (a routing, a selection) or
 * arithmetic parted first, where, and how close the choice was. spec/trace.md. */
#ifndef DSV4_VERDICT_H
#define DSV4_VERDICT_H

#include <stdbool.h>
#include <stdint.h>

#include "h5.h"

/* What the comparison of one dataset found. The last row of MTP is free: none of `beyond`. */
typedef struct {
    const char *name;
    bool misshaped, within;
    double max_relative;
    int64_t rows, beyond, first; /* rows that are beyond the tolerance, and the first of them */
} dsv4_compared;

/* Prints the verdict on the `count` datasets that both files have, in the order of computation:
 * nothing where none is of a trace's layers or nothing differs. `last_layer` is the highest that
 * either file has, or -1. */
void dsv4_verdict_print(dsv4_h5 *const file[2], const dsv4_compared *sets, int64_t count,
                        long last_layer);

#endif
