/* spec/embed.md: token ids to residual streams. */
#include "fast/fast.h"

#include <string.h>

void fast_embed(const fast_context *c, const dsv4_matrix *embed, const int64_t *ids, int64_t T,
                float *e)
{
    int64_t D = c->config->hidden_size;
    for (int64_t t = 0; t < T; t++) /* embed.row.1 */
        fast_matrix_row(c, embed, ids[t], e + t * D);
    fast_bf16(c, e, T * D); /* embed.round.1 */
}

void fast_streams(const fast_context *c, const float *e, int64_t T, float *h)
{
    int64_t n = c->config->hc_mult, D = c->config->hidden_size;
    for (int64_t t = 0; t < T; t++) /* embed.streams.1 */
        for (int64_t j = 0; j < n; j++)
            memcpy(h + (t * n + j) * D, e + t * D, (size_t)D * sizeof *h);
}
