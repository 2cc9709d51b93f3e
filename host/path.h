/* What a forward path offers to the commands around it. */
#ifndef DSV4_PATH_H
#define DSV4_PATH_H

#include "cases.h"
#include "model.h"

/* A named tensor on its way through the forward pass. The tap sees every one, and may overwrite it:
 * what follows then computes with what the tap left.
 *
 * Choices are shown as soon as they are made, before anything is computed with them (route_index
 * before route_weight): a tap that overwrites them replays the choices of another run. It has to
 * leave as many, and such as can be chosen: experts 0..E-1, different entries visible to the token.
 * A row of `selected` is as long as the choice; where several rows are shown at once, a shorter one
 * ends in -1, and none is longer than the dataset of spec/trace.md. */
typedef struct {
    const char *name;  /* as in the trace files: "attn_in", "q", "selected" ... */
    int64_t layer;     /* num_hidden_layers + i for mtp.i */
    int64_t row, rows; /* the rows of the whole run's tensor that these are: tokens, or groups */
    int rank;          /* of one row: 1 or 2 */
    int64_t dim[2];    /* shape of one row; index_score has only the visible entries */
    double *values;    /* [rows, dim...], or NULL where the tensor holds indices: */
    int64_t *indices;  /* route_index and selected */
} dsv4_point;

typedef struct {
    void (*at)(void *context, const dsv4_point *point);
    void *context;
} dsv4_tap;

/* One sequence on one path: weights by reference, and its state. */
typedef struct dsv4_run dsv4_run;

/* What the time of a forward pass is spent on. */
typedef enum {
    DSV4_PART_OTHER,       /* what is none of the others: operands copied and converted */
    DSV4_PART_EMBED,
    DSV4_PART_PROJECTIONS, /* attention: q, kv and output, with their norms and rotations */
    DSV4_PART_COMPRESSOR,
    DSV4_PART_INDEXER,     /* with its compressor, and the selection */
    DSV4_PART_CORE,        /* core attention */
    DSV4_PART_ROUTER,
    DSV4_PART_EXPERTS,     /* the shared one included */
    DSV4_PART_MHC,         /* with the norms of the sublayers */
    DSV4_PART_HEAD,
    DSV4_PARTS
} dsv4_part;

/* "attention projections" and so on. */
const char *dsv4_part_name(dsv4_part part);

/* By kind of layer (dsv4_layer_kind) and, last, outside the layers. */
enum { DSV4_OUTSIDE = DSV4_HCA + 1, DSV4_PROFILE_KINDS };
typedef struct { double seconds[DSV4_PROFILE_KINDS][DSV4_PARTS]; } dsv4_profile;

/* How a path computes. Zeros ask for what is best on this machine. */
typedef struct {
    int threads;        /* 0: as many as processors */
    const char *isa;    /* no instructions above this level; NULL: what DSV4_ISA says, or none */
    bool deterministic; /* the same bits for any number of threads, any chunks and batches */
} dsv4_path_options;

typedef struct {
    const char *name; /* as in --path */
    /* For all that follows in this process; not while a run is open. NULL where a path has no
     * choice. */
    int (*configure)(const dsv4_path_options *options, dsv4_error *err);
    /* What really runs: "avx512, 2 threads". NULL where a path has no choice. */
    const char *(*level)(void);
    /* A run of at most `max_tokens` tokens. The model must outlive it. `tap` may be NULL. */
    dsv4_run *(*open)(const dsv4_model *model, dsv4_numerics numerics, int64_t max_tokens,
                      const dsv4_tap *tap, dsv4_error *err);
    /* The next `n` tokens: logits [n, vocab_size], or NULL where they are not wanted. -1 when a
     * weight that was read, a named tensor or a logit is not finite, an id is out of range, or the
     * run is full. After an error in the middle of a pass (not of the arguments) the run may only
     * be closed. */
    int (*forward)(dsv4_run *run, const int64_t *ids, int64_t n, double *logits, dsv4_error *err);
    /* MTP for the same n tokens as the forward call just before: next_ids[i] follows ids[i]. */
    int (*mtp)(dsv4_run *run, const int64_t *next_ids, int64_t n, double *logits, dsv4_error *err);
    /* The same for `count` different runs of one model at once, each with its own tokens; what
     * every one of them gets is what it would get alone. NULL where a path knows one sequence
     * only. */
    int (*forward_batch)(dsv4_run *const *runs, int64_t count, const int64_t *const *ids,
                         const int64_t *n, double *const *logits, dsv4_error *err);
    int (*mtp_batch)(dsv4_run *const *runs, int64_t count, const int64_t *const *next_ids,
                     const int64_t *n, double *const *logits, dsv4_error *err);
    /* What follows in this run adds its times to `profile`, until NULL ends it; no result changes
     * by a bit. Of a batch, the first run's counts. NULL where a path does not know its parts. */
    void (*profile)(dsv4_run *run, dsv4_profile *profile);
    /* Makes the state of a run, MTP aside, as large as that after `position` tokens, with contents
     * that are random numbers of the usual size: for timing what comes next. The same seed gives
     * the same. -1 where the run has no room. NULL where a path cannot. */
    int (*fill)(dsv4_run *run, int64_t position, uint64_t seed, dsv4_error *err);
    void (*close)(dsv4_run *run);
    /* The state of a sequence of so many tokens, MTP aside, when it is full; NULL: not known, and
     * nothing that this path would be chosen for. */
    int64_t (*state_bytes)(const dsv4_config *config, dsv4_numerics numerics, int64_t tokens);
    /* One operator, of a golden case (host/cases.h). The context is NULL, or a double: a path that
     * can adds to it the seconds that the operator took, without the conversion of its operands. */
    dsv4_answer_function *answer;
} dsv4_path;

extern const dsv4_path dsv4_path_ref;  /* ref/path.c */
extern const dsv4_path dsv4_path_fast; /* fast/path.c */

/* The path of that name, or NULL; dsv4_path_names() is "ref or fast", for messages. */
const dsv4_path *dsv4_path_find(const char *name);
const char *dsv4_path_names(void);

#endif
