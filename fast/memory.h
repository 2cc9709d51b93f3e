/* Room for intermediate results: taken in order, given back all at once down to a mark. After the
 * first call of a run nothing is asked of the system any more. */
#ifndef DSV4_FAST_MEMORY_H
#define DSV4_FAST_MEMORY_H

#include <stddef.h>
#include <stdint.h>

typedef struct fast_memory fast_memory;

fast_memory *fast_memory_new(void);
void fast_memory_free(fast_memory *memory);

/* `count` items of `size` bytes at an address divisible by 64, with undefined contents. Only the
 * thread that runs the operators takes; workers of the pool get their share from it. Running out
 * ends the program with one line. */
void *fast_take(fast_memory *memory, size_t size, int64_t count);
#define FAST_TAKE(c, type, count) \
    ((type *)fast_take((c)->memory, sizeof(type), count))

/* All that is taken after fast_mark() is given back by fast_release(). */
typedef struct { size_t block, used; } fast_place;
fast_place fast_mark(const fast_memory *memory);
void fast_release(fast_memory *memory, fast_place mark);

#endif
