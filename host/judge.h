/* Compares an answer to a golden case with expected outputs. */
#ifndef DSV4_JUDGE_H
#define DSV4_JUDGE_H

#include "cases.h"

enum { DSV4_MAX_OUTS = 8 };

/* How much deviation is allowed. */
typedef struct {
    dsv4_tier tier;
    bool identical; /* a second run of the reference: 1e-12 of the row, whatever the case allows,
                       or of the element where it allows nothing for the row */
} dsv4_strictness;

/* What became of one output. */
typedef struct {
    const dsv4_slot *slot;
    bool passed;
    double ratio;    /* the worst error in tolerances: 1 is at the bound, INFINITY beyond any */
    double distance; /* of the whole slot: rms error / rms expected; for selections, share of wrong
                        rows */
    bool misshaped;       /* missing, or of another type or shape: there are no values to judge */
    int64_t count, wrong; /* values, or rows of a selection */
    int rank;             /* of `index`; -1 where no single value is to blame */
    int64_t index[DSV4_ARRAY_RANK]; /* the first wrong value, and what was there */
    bool integer;
    double expected, got; /* exact for indices up to 2^53 */
    double error, tolerance;
    char note[192];  /* why, where it is not a value beyond its tolerance; else empty */
} dsv4_slot_verdict;

typedef struct {
    bool passed;
    double ratio, distance; /* the largest of the slots */
    int slots;
    dsv4_slot_verdict slot[DSV4_MAX_OUTS]; /* those that were judged */
} dsv4_verdict;

/* Judges `answer` against `expected` [outs] by the slots of the case's operator and the case's
 * tolerances. `expected` is usually c->out; in a diagnosis it is what a known mistake makes of the
 * case. Where c->out is NaN the answer is free. */
void dsv4_judge_answer(const dsv4_case *c, const dsv4_array *expected, int outs,
                       const dsv4_case *answer, dsv4_strictness strictness,
                       dsv4_verdict *verdict);

/* The first slot that failed, or NULL. */
const dsv4_slot_verdict *dsv4_verdict_failure(const dsv4_verdict *verdict);

/* "[5,2,1033]" */
void dsv4_index_text(char *text, size_t size, int rank, const int64_t *index);

#endif
