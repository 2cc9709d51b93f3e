/* Small random checkpoints of any geometry, for tests and demonstrations. The same options give the
 * same bytes on every machine. */
#ifndef MAKE_CHECKPOINT_H
#define MAKE_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>

#include "host/error.h"

typedef enum {
    MAKE_EXACT,    /* every weight F32 */
    MAKE_RELEASED, /* the dtypes of the released layout */
    MAKE_MIXED,    /* F32, BF16, F16, FP8 and FP4 in turn, wherever a tensor may have them */
    MAKE_BF16      /* every weight BF16, where the released layout has F32 a bf16 number in F32 */
} make_style;

typedef struct {
    make_style style;
    uint64_t seed;
    int shards;       /* more than 1: that many files and an index; 0 counts as 1 */
    bool tid2eid_i32; /* else I64 */
    bool model_prefix; /* names begin with "model." */
    bool scale_inv;    /* scales are called ".weight_scale_inv" */
    bool mild;         /* sublayers add a quarter of what they would: roundings grow less on the way */
} make_options;

/* Writes config.json (`config_json` as it is) and the weights that it calls for, the MTP layers'
 * included, into directory `dir`, which is made if need be. 0, or -1 with one line in `err`. */
int make_checkpoint(const char *dir, const char *config_json, const make_options *options,
                    dsv4_error *err);

#endif
