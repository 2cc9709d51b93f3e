#include "fast/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "host/error.h"

/* Blocks stay until the end, on huge pages where the system has them: a prefill walks through some
 * hundreds of megabytes for every layer. Under a sanitizer, which watches allocations, each taking is a
 * block of its own. */
#if defined __SANITIZE_ADDRESS__
static const size_t smallest_block = 1, page = 64;
#else
static const size_t smallest_block = (size_t)1 << 22, page = (size_t)1 << 21;
#endif

typedef struct { char *data; size_t size; } block;

struct fast_memory {
    block *blocks;
    size_t count, room;
    fast_place at; /* what comes next goes behind at.used of block at.block */
};

fast_memory *fast_memory_new(void)
{
    return dsv4_alloc(1, sizeof(fast_memory));
}

void fast_memory_free(fast_memory *memory)
{
    if (memory == NULL)
        return;
    for (size_t i = 0; i < memory->count; i++)
        free(memory->blocks[i].data);
    free(memory->blocks);
    free(memory);
}

static void give_up(size_t size, size_t count)
{
    fprintf(stderr, "dsv4: out of memory for %zu items of %zu bytes\n", count, size);
    exit(2);
}

static void add_block(fast_memory *memory, size_t size)
{
    if (memory->count == memory->room) {
        size_t room = 2 * memory->room + 8;
        block *blocks = dsv4_alloc(room, sizeof *blocks);
        for (size_t i = 0; i < memory->count; i++)
            blocks[i] = memory->blocks[i];
        free(memory->blocks);
        memory->blocks = blocks;
        memory->room = room;
    }
    size = size > smallest_block ? size : smallest_block;
    size = (size + page - 1) / page * page;
    char *data = aligned_alloc(page, size);
    if (data == NULL)
        give_up(size, 1);
    if (page > 64)
        madvise(data, size, MADV_HUGEPAGE); /* it does no harm where this fails */
    memory->blocks[memory->count++] = (block){data, size};
}

void *fast_take(fast_memory *memory, size_t size, int64_t count)
{
    size_t bytes;
    if (__builtin_mul_overflow(size, count, &bytes) || bytes > PTRDIFF_MAX - page)
        give_up(size, (size_t)count);
    bytes = (bytes + 63) / 64 * 64;
    fast_place *at = &memory->at;
    /* Blocks that are too small for this are passed over. */
    while (at->block < memory->count && memory->blocks[at->block].size - at->used < bytes) {
        at->block++;
        at->used = 0;
    }
    if (at->block == memory->count)
        add_block(memory, bytes);
    char *data = memory->blocks[at->block].data + at->used;
    at->used += bytes;
#if defined __SANITIZE_ADDRESS__
    at->block++;
    at->used = 0;
#endif
    return data;
}

fast_place fast_mark(const fast_memory *memory)
{
    return memory->at;
}

void fast_release(fast_memory *memory, fast_place mark)
{
    memory->at = mark;
#if defined __SANITIZE_ADDRESS__
    while (memory->count > mark.block)
        free(memory->blocks[--memory->count].data);
#else
    /* All free: one block that holds what the largest call took, instead of several. */
    if (mark.block == 0 && mark.used == 0 && memory->count > 1) {
        size_t total = 0;
        for (size_t i = 0; i < memory->count; i++) {
            total += memory->blocks[i].size;
            free(memory->blocks[i].data);
        }
        memory->count = 0;
        add_block(memory, total);
    }
#endif
}
