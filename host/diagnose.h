/* Names the mistake behind wrong answers: compares them with what the museum's known mistakes make
 * of the same cases. */
#ifndef DSV4_DIAGNOSE_H
#define DSV4_DIAGNOSE_H

#include "judge.h"
#include "vectors/museum/museum.h"

enum { DSV4_MISTAKES = 12 }; /* at once, in one diagnosis */

/* A case that was answered. */
typedef struct {
    const dsv4_case *c;
    const dsv4_case *answer;
    const dsv4_verdict *verdict;
    museum_bug bugs[DSV4_MISTAKES]; /* the diagnosis: all at once, BUG_NONE behind the last */
    bool nearly; /* the mistake's own values are not within tolerance, but far nearer */
} dsv4_specimen;

/* What is known from the operators before. */
typedef struct {
    int64_t explained[BUGS]; /* failures */
    double seconds;          /* spent so far */
} dsv4_diagnosis;

/* All answered cases of one operator, passed and failed. Bounded in time. */
void dsv4_diagnose(dsv4_diagnosis *diagnosis, const dsv4_operator *op, dsv4_specimen *specimen,
                   int64_t count, dsv4_strictness strictness);

/* Whether operator `op` uses `part`. */
bool dsv4_operator_uses(const dsv4_operator *op, const dsv4_operator *part);

#endif
