#include "limits.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "clock.h"
#include "fast/limits.h"
#include "fast/pool.h"
#include "memory.h"

enum { SAMPLES = 5 };
static const size_t MIB = 1u << 20, CHUNK = 13u << 20; /* about an expert of Flash */

static dsv4_rate rate_of(double sample[SAMPLES])
{
    double median = dsv4_median(sample, SAMPLES);
    return (dsv4_rate){median, sample[SAMPLES - 1]};
}

/* ---- reading ---- */

struct dsv4_read_buffer {
    unsigned char *data;
    size_t bytes; /* whole chunks */
    uint64_t (*read)(const void *, size_t);
    uint64_t *sum; /* [threads, 8]: so that no compiler leaves the reading out */
};

typedef struct dsv4_read_buffer buffer;

static void read_chunk(void *context, int64_t item, int worker)
{
    const buffer *b = context;
    b->sum[8 * worker] += b->read(b->data + (size_t)item * CHUNK, CHUNK);
}

/* At least four times the last cache, unless that is more than a quarter of what is free. */
static size_t buffer_size(double seconds)
{
    static const double BYTES_IN_A_SECOND = 1 << 30; /* to make and to read a few times */
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t room = (size_t)(dsv4_memory_available() / 4);
    size_t wanted = cache > 0 ? 4 * (size_t)cache : 0;
    if (wanted < 512 * MIB)
        wanted = 512 * MIB;
    if (wanted > room)
        wanted = room;
    if ((double)wanted > seconds * BYTES_IN_A_SECOND)
        wanted = (size_t)(seconds * BYTES_IN_A_SECOND);
    return wanted < 2 * CHUNK ? 2 * CHUNK : wanted / CHUNK * CHUNK;
}

/* In huge pages where the system has them, and every page there. */
static int make_buffer(buffer *b, dsv4_error *err)
{
    static const size_t huge = 2u << 20;
    b->data = mmap(NULL, b->bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                   0);
    if (b->data == MAP_FAILED)
        return dsv4_fail(err, "no room for %zu MiB to read: %s", b->bytes / MIB, strerror(errno));
    madvise(b->data, b->bytes + huge, MADV_HUGEPAGE);
    memset(b->data, 1, b->bytes + huge);
    return 0;
}

void dsv4_limits_free(dsv4_limits *limits)
{
    if (limits->buffer == NULL)
        return;
    munmap(limits->buffer->data, limits->buffer->bytes + (2u << 20));
    free(limits->buffer);
    limits->buffer = NULL;
}

static dsv4_rate measure_read(buffer *b, fast_pool *pool, double seconds)
{
    double sample[SAMPLES];
    int64_t chunks = (int64_t)(b->bytes / CHUNK);
    b->sum = dsv4_alloc((size_t)fast_pool_threads(pool), 8 * sizeof *b->sum);
    fast_pool_run(pool, chunks, read_chunk, b);
    for (int i = 0; i < SAMPLES; i++) {
        double began = dsv4_now(), took;
        int64_t passes = 0;
        do {
            fast_pool_run(pool, chunks, read_chunk, b);
            passes++;
        } while ((took = dsv4_now() - began) < seconds / SAMPLES);
        sample[i] = (double)passes * (double)b->bytes / took;
    }
    volatile uint64_t sink = b->sum[0];
    (void)sink;
    free(b->sum);
    return rate_of(sample);
}

/* ---- multiplying ---- */

typedef struct {
    const fast_peak *peak;
    int64_t rounds;
} labour;

static void toil(void *context, int64_t item, int worker)
{
    const labour *l = context;
    (void)item;
    (void)worker;
    l->peak->run(l->rounds);
}

static double seconds_of(const labour *l, fast_pool *pool)
{
    double began = dsv4_now();
    fast_pool_run(pool, fast_pool_threads(pool), toil, (void *)l);
    return dsv4_now() - began;
}

static dsv4_rate measure_peak(const fast_peak *peak, fast_pool *pool, double seconds)
{
    double sample[SAMPLES], wanted = seconds / SAMPLES, took;
    labour l = {peak, 1000};
    while ((took = seconds_of(&l, pool)) < wanted / 4)
        l.rounds *= 2;
    l.rounds = (int64_t)((double)l.rounds * wanted / took) + 1;
    for (int i = 0; i < SAMPLES; i++)
        sample[i] = (double)l.rounds * peak->operations * fast_pool_threads(pool) /
                    seconds_of(&l, pool);
    return rate_of(sample);
}

/* ---- all of it ---- */

/* What a product could reach: what keeps its operands in registers, or is of integers, does not
 * count. */
static bool serves_products(const dsv4_limit *limit)
{
    return strstr(limit->key, "registers") == NULL && strstr(limit->key, "int8") == NULL;
}

static void list_limits(dsv4_limits *limits, const fast_peak *peak[DSV4_MAX_LIMITS],
                        uint64_t (**read)(const void *, size_t))
{
    int levels;
    const fast_limits *const *level = fast_machine_limits(&levels);
    for (int i = 0; i < levels; i++) {
        if (level[i]->read != NULL)
            *read = level[i]->read;
        for (int j = 0; j < level[i]->peaks && limits->count < DSV4_MAX_LIMITS; j++) {
            peak[limits->count] = &level[i]->peak[j];
            limits->limit[limits->count++] = (dsv4_limit){.key = level[i]->peak[j].key,
                                                          .level = level[i]->level,
                                                          .name = level[i]->peak[j].name};
        }
    }
}

/* By the best that any thread did: neighbours only ever take away. */
static double best_of(const dsv4_limits *limits, int i)
{
    double best = 0;
    for (int n = 0; n < DSV4_LIMIT_THREADS; n++) {
        double rate = limits->limit[i].rate[n].best / limits->threads[n];
        best = rate > best ? rate : best;
    }
    return best;
}

static void find_matrix(dsv4_limits *limits)
{
    limits->matrix = 0;
    for (int i = 1; i < limits->count; i++)
        if (serves_products(&limits->limit[i]) && best_of(limits, i) > best_of(limits, limits->matrix))
            limits->matrix = i;
}

int dsv4_limits_measure(dsv4_limits *limits, int threads, double seconds, dsv4_error *err)
{
    const fast_peak *peak[DSV4_MAX_LIMITS];
    buffer b = {.read = NULL, .bytes = buffer_size(seconds)};
    *limits = (dsv4_limits){.threads = {1, threads}};
    list_limits(limits, peak, &b.read);
    if (make_buffer(&b, err) != 0)
        return -1;
    limits->buffer = dsv4_alloc(1, sizeof b);
    *limits->buffer = b;
    limits->read_bytes = (double)b.bytes;
    double each = seconds / DSV4_LIMIT_THREADS / (limits->count + 2);
    for (int n = 0; n < DSV4_LIMIT_THREADS; n++) {
        fast_pool *pool = fast_pool_new(limits->threads[n], err);
        if (pool == NULL)
            return -1;
        limits->read[n] = measure_read(limits->buffer, pool, 2 * each);
        for (int i = 0; i < limits->count; i++)
            limits->limit[i].rate[n] = measure_peak(peak[i], pool, each);
        fast_pool_free(pool);
    }
    find_matrix(limits);
    return 0;
}

int dsv4_limits_again(const dsv4_limits *limits, int n, double seconds, dsv4_rate *reading,
                      dsv4_rate *matrix, dsv4_error *err)
{
    const fast_peak *peak[DSV4_MAX_LIMITS];
    uint64_t (*read)(const void *, size_t);
    dsv4_limits all = {.count = 0};
    list_limits(&all, peak, &read);
    fast_pool *pool = fast_pool_new(limits->threads[n], err);
    if (pool == NULL)
        return -1;
    *reading = measure_read(limits->buffer, pool, seconds / 2);
    *matrix = measure_peak(peak[limits->matrix], pool, seconds / 2);
    fast_pool_free(pool);
    return 0;
}
