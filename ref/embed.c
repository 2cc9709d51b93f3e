/* spec/embed.md: token ids to residual streams. */
#include "ref.h"

#include <string.h>

/* ids [T] -> e [T, D]. */
void ref_embed(const ref_context *c, const dsv4_matrix *embed, const int64_t *ids, int64_t T,
               double *e)
{
    int64_t D = c->config->hidden_size;
    for (int64_t t = 0; t < T; t++) {
        /* embed.row.1: A token's embedding is row id of embed.weight [V, D]. Ids run from 0 to V -
         * 1; there is no scaling. */
        ref_matrix_row(c, embed, ids[t], e + t * D);
        /* embed.round.1: Released: the embedding is rounded to bf16 (which changes nothing where it
         * is stored so). */
        ref_bf16_all(c, e + t * D, D);
    }
}

/* e [T, D] -> h [T, n, D]. */
void ref_streams(const ref_context *c, const double *e, int64_t T, double *h)
{
    int64_t n = c->config->hc_mult, D = c->config->hidden_size;
    /* embed.streams.1: The residual streams of a token start as hc_mult copies of its embedding: h
     * [S, n, D]. */
    for (int64_t t = 0; t < T; t++)
        for (int64_t j = 0; j < n; j++)
            memcpy(h + (t * n + j) * D, e + t * D, (size_t)D * sizeof *h);
}
