/* A small directory of golden vectors, answered by the reference. */
#ifndef TESTS_GOLDEN_H
#define TESTS_GOLDEN_H

#include "host/cases.h"

/* Makes `directory` and writes rmsnorm (two exact cases, one released), rope and gate_score (one
 * exact case each): 5 cases in 4 files. */
void golden_write(const char *directory);

/* A case without inputs or outputs; release with dsv4_case_free(). */
dsv4_case golden_case(const char *op, const char *name, dsv4_numerics numerics);

/* Floats that look random, all of them bf16 numbers. */
void golden_fill(dsv4_array *array, unsigned seed);

/* Expected outputs by the reference, and tolerances. */
void golden_answer(dsv4_case *c);

#endif
