/* A path against the oracle: checkpoints and traces by an independent implementation. The tests of
 * test_oracle.c and test_oracle_fast.c. */
#ifndef TESTS_ORACLE_H
#define TESTS_ORACLE_H

#include "host/path.h"

/* A path, and how near to the oracle it has to be. */
typedef struct {
    const dsv4_path *path;
    const char *isa;      /* for paths with a choice */
    const char *name;     /* of the checkpoint */
    double exact, chunks; /* the largest relative errors */
} subject;

/* "ORACLE/NAMESUFFIX" */
char *oracle_path(char path[512], const char *name, const char *suffix);

/* cmocka tests; the state is a subject. Without what they need they are skipped, and say so. */
void oracle_exact(void **state);
void oracle_exact_in_chunks(void **state);
void oracle_released_by_steps(void **state);
void oracle_released_end_to_end(void **state);

#endif
