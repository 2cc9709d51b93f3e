/* The formulas of the architecture evaluated directly over a whole sequence: no state, no chunks,
 * no caches. A second opinion on ref/ for geometries without an oracle file; it shares no code with
 * it. */
#ifndef DSV4_DIRECT_H
#define DSV4_DIRECT_H

#include "host/path.h"

/* Evaluates `n` tokens from position 0: logits [n, vocab_size] and, unless mtp_logits is NULL,
 * those of the first MTP layer, to which the token after ids[i] is ids[(i + 1) % n].
 *
 * EXACT is evaluated in binary64. RELEASED has every rounding point of the contract, and adds in
 * binary32 in plain order: one of the legal orders.
 *
 * `tap` may be NULL. It is given each tensor whole, all rows at once, except index_score: one token
 * at a time. `selected` is [n, min(index_topk, groups)] for CSA and [n, groups] for HCA, -1 = none.
 * Tensors without any element (a sequence shorter than the ratio) are not shown. What follows a
 * point uses what the tap left there.
 *
 * 0, or -1 when n < 1, a token id or an expert index is out of range, or the model was opened
 * without the MTP layer that is asked for. */
int direct_forward(const dsv4_model *model, dsv4_numerics numerics, const int64_t *ids, int64_t n,
                   double *logits, double *mtp_logits, const dsv4_tap *tap);

#endif
