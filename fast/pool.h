/* One pool of threads for everything. */
#ifndef DSV4_FAST_POOL_H
#define DSV4_FAST_POOL_H

#include <stdint.h>

#include "host/error.h"

typedef struct fast_pool fast_pool;

/* The processors that this process may use, as far as a pool has threads for them. */
int fast_pool_processors(void);

/* `threads` at work, the caller being one of them; 0: one for each of those processors. NULL with a
 * line in `err`. */
fast_pool *fast_pool_new(int threads, dsv4_error *err);
void fast_pool_free(fast_pool *pool); /* NULL is fine */
int fast_pool_threads(const fast_pool *pool);

/* Calls work(context, item, worker) once for every item 0 .. items - 1, in any order and on any
 * thread; returns when all are done. worker is 0 .. threads - 1, and no two items run with the
 * same one at the same time. Not to be called from within work, nor by two threads at once. */
void fast_pool_run(fast_pool *pool, int64_t items, void (*work)(void *, int64_t, int), void *context);

#endif
