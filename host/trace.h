/* The names of trace files, in the order in which their tensors are computed. spec/trace.md. */
#ifndef DSV4_TRACE_H
#define DSV4_TRACE_H

/* Orders two dataset names as strcmp() does, but by computation: token ids, the layers by number and
 * each by step, logits, then the same of MTP; names that are none of a trace come last, by letter. */
int dsv4_trace_compare(const char *a, const char *b);

#endif
