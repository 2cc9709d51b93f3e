/* The operators of the specification, as a table: what goes into each, what comes out, and how an
 * answer is judged. Golden vectors, `dsv4 verify`, the errata museum, tests and bench loop over it
 * and never name an operator of their own. vectors/FORMAT.md shows it for other languages. */
#ifndef DSV4_OPERATORS_H
#define DSV4_OPERATORS_H

#include <stdbool.h>
#include <stdint.h>

/* How the values of a slot are stored. Codes stay codes: decoding is part of what is tested. */
typedef enum {
    DSV4_FORMAT_F64,  /* float64 */
    DSV4_FORMAT_F32,  /* float32 */
    DSV4_FORMAT_BF16, /* float32, every value a bf16 number */
    DSV4_FORMAT_E4M3, /* uint8: one code */
    DSV4_FORMAT_E2M1, /* uint8: two codes, the low nibble first */
    DSV4_FORMAT_E8M0, /* uint8: one scale */
    DSV4_FORMAT_I64,  /* int64 */
    DSV4_FORMATS
} dsv4_format;

/* "f64", "f32", "bf16", "e4m3", "e2m1", "e8m0", "i64" */
const char *dsv4_format_name(dsv4_format format);
int64_t dsv4_format_size(dsv4_format format); /* bytes per stored element */

/* What a slot holds. */
typedef enum {
    DSV4_SLOT_VALUES,  /* floats: bf16 or f32 */
    DSV4_SLOT_INDICES, /* i64 */
    DSV4_SLOT_CODES,   /* uint8 */
    DSV4_SLOT_MATRIX   /* slot "M" is stored as "M.weight" and, for FP8 and FP4, "M.scale" */
} dsv4_slot_kind;

/* How an output is compared with the expected one. */
typedef enum {
    DSV4_JUDGE_VALUES,    /* element by element, within the case's tolerance */
    DSV4_JUDGE_SCALE,     /* the same, up to one positive factor for the whole slot: index scores,
                             whose scale changes no selection */
    DSV4_JUDGE_SELECTION, /* a row is a set of indices, -1 behind the last: judged by the scores
                             of slot `beside`, so that ties may go either way */
    DSV4_JUDGE_WEIGHTS    /* a row goes with the indices in slot `beside`, in their order */
} dsv4_judge;

typedef struct {
    const char *name;
    dsv4_slot_kind kind;
    const char *dims; /* symbols, solved from the data: "T n D" */
    bool optional;    /* inputs: absent in some cases; outputs: an engine may leave it out */
    dsv4_judge judge; /* outputs */
    const char *beside;
    const char *rule; /* outputs: the rule of spec/ that the last step follows */
} dsv4_slot;

enum { DSV4_MAX_SLOTS = 48, DSV4_MAX_PARAMS = 32 };

typedef struct {
    const char *name;
    const char *chapter;   /* spec/CHAPTER.md */
    const char *summary;   /* one line */
    const char *params;    /* names between spaces; spelt as in config.json where it has them */
    const dsv4_slot *in, *out; /* end with a slot without a name */
} dsv4_operator;

/* In the order of the specification, which is also the order of dependence: an operator uses
 * earlier ones. */
extern const dsv4_operator dsv4_operators[];
extern const int dsv4_operator_count;

const dsv4_operator *dsv4_operator_find(const char *name); /* or NULL */

#endif
