/* The names of trace files, in the order in which their tensors are computed. spec/trace.md. */
#ifndef DSV4_TRACE_H
#define DSV4_TRACE_H

#include <stdbool.h>

#include "config.h"

enum { DSV4_TRACE_NAME = 64 };

/* "trace/layers/3/q", "trace/mtp/0/q": of a layer; layer num_hidden_layers + i is mtp.i. */
void dsv4_trace_name(char name[DSV4_TRACE_NAME], const dsv4_config *config, int64_t layer,
                     const char *tensor);

/* Orders two dataset names as strcmp() does, but by computation: token ids, the layers by number
 * and each by step, logits, then the same of MTP; names that are none of a trace come last, by
 * letter. */
int dsv4_trace_compare(const char *a, const char *b);

typedef enum {
    DSV4_TRACE_IDS, DSV4_TRACE_LAYERS, DSV4_TRACE_LOGITS, DSV4_TRACE_MTP_IDS, DSV4_TRACE_MTP,
    DSV4_TRACE_MTP_LOGITS, DSV4_TRACE_OTHER
} dsv4_trace_stage;

/* What the name of a dataset says. */
typedef struct {
    dsv4_trace_stage stage;
    long layer, step;   /* where the stage has layers */
    const char *tensor; /* "q"; NULL where the stage has no layers */
} dsv4_trace_place;

dsv4_trace_place dsv4_trace_place_of(const char *name);

/* Below 0, 0, above 0, as strcmp(). */
int dsv4_trace_order(const dsv4_trace_place *a, const dsv4_trace_place *b);

#endif
