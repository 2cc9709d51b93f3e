#include "fast/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How often a thread looks for work before it sleeps: some tens of microseconds, longer than the
 * operators of a decoding step leave between two loops. */
enum { LOOKS = 4000, MAX_THREADS = 1024 };

typedef struct { fast_pool *pool; int worker; pthread_t thread; } member;

/* The gate counts, in its low half, the members at work on the round in its high half, and tells
 * by the bit between whether more may join. So the caller waits for those only who have begun: a
 * member that sleeps, or whose processor is busy otherwise, costs nothing. */
static const unsigned long long open_bit = 1ull << 31, one_round = 1ull << 32;

struct fast_pool {
    int threads;
    member *members;                /* [threads]: 0 is the caller */
    void (*work)(void *, int64_t, int);
    void *context;
    int64_t items;
    _Alignas(64) atomic_llong next; /* item to be done */
    _Alignas(64) atomic_ullong gate;
    _Alignas(64) atomic_int sleepers;
    atomic_bool ending;
    pthread_mutex_t mutex;          /* for those who sleep */
    pthread_cond_t wake;
};

static void pause_briefly(void)
{
#ifdef __x86_64__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

static void take_items(fast_pool *pool, int worker)
{
    for (;;) {
        int64_t item = atomic_fetch_add(&pool->next, 1);
        if (item >= pool->items)
            return;
        pool->work(pool->context, item, worker);
    }
}

static bool is_news(unsigned long long gate, unsigned long long round)
{
    return (gate & open_bit) != 0 && gate / one_round != round;
}

/* Waits until a round other than `round` is open; returns the gate. */
static unsigned long long wait_for_news(fast_pool *pool, unsigned long long round)
{
    for (int i = 0; i < LOOKS; i++) {
        unsigned long long gate = atomic_load(&pool->gate);
        if (is_news(gate, round))
            return gate;
        pause_briefly();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1); /* before the last look, so that whoever opens sees it */
    while (!is_news(atomic_load(&pool->gate), round))
        pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
    return atomic_load(&pool->gate);
}

static void *serve(void *context)
{
    member *self = context;
    fast_pool *pool = self->pool;
    unsigned long long round = 0;
    for (;;) {
        unsigned long long gate = wait_for_news(pool, round);
        if (atomic_load(&pool->ending))
            return NULL;
        if (!is_news(gate, round) || !atomic_compare_exchange_strong(&pool->gate, &gate, gate + 1))
            continue; /* closed, or another has joined: look again */
        round = gate / one_round;
        take_items(pool, self->worker);
        atomic_fetch_sub(&pool->gate, 1);
    }
}

static void open_gate(fast_pool *pool)
{
    unsigned long long round = atomic_load(&pool->gate) / one_round + 1;
    atomic_store(&pool->gate, round * one_round + open_bit);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
    }
}

/* Nobody joins any more; waits for those who have. */
static void close_gate(fast_pool *pool)
{
    atomic_fetch_and(&pool->gate, ~open_bit);
    for (int looks = 0; atomic_load(&pool->gate) % open_bit != 0;) {
        pause_briefly();
        if (looks < LOOKS)
            looks++;
        else /* more threads than processors: let the others run */
            sched_yield();
    }
}

/* How many of a set with room for so many processors are ours; 0 where the machine has more, or does
 * not say. */
static int processors_of(int room)
{
    size_t size = CPU_ALLOC_SIZE(room);
    cpu_set_t *set = CPU_ALLOC(room);
    int count = set != NULL && sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
    CPU_FREE(set);
    return count;
}

int fast_pool_processors(void)
{
    int count = 0;
    for (int room = 1 << 10; count == 0 && room <= 1 << 20; room *= 2)
        count = processors_of(room);
    if (count == 0)
        count = (int)sysconf(_SC_NPROCESSORS_ONLN);
    return count < 1 ? 1 : count < MAX_THREADS ? count : MAX_THREADS;
}

fast_pool *fast_pool_new(int threads, dsv4_error *err)
{
    if (threads == 0)
        threads = fast_pool_processors();
    if (threads < 1 || threads > MAX_THREADS) {
        dsv4_fail(err, "%d threads: expected 1 to %d", threads, MAX_THREADS);
        return NULL;
    }
    size_t size = (sizeof(fast_pool) + 63) / 64 * 64;
    fast_pool *pool = aligned_alloc(64, size);
    if (pool == NULL) {
        dsv4_fail(err, "no memory for a pool of threads");
        return NULL;
    }
    memset(pool, 0, size);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->members = dsv4_alloc((size_t)threads, sizeof *pool->members);
    pool->threads = 1;
    for (int i = 1; i < threads; i++) {
        pool->members[i] = (member){.pool = pool, .worker = i};
        int failed = pthread_create(&pool->members[i].thread, NULL, serve, &pool->members[i]);
        if (failed != 0) {
            dsv4_fail(err, "thread %d of %d: %s", i + 1, threads, strerror(failed));
            fast_pool_free(pool);
            return NULL;
        }
        pool->threads++;
    }
    return pool;
}

void fast_pool_free(fast_pool *pool)
{
    if (pool == NULL)
        return;
    atomic_store(&pool->ending, true);
    open_gate(pool);
    for (int i = 1; i < pool->threads; i++)
        pthread_join(pool->members[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->members);
    free(pool);
}

int fast_pool_threads(const fast_pool *pool)
{
    return pool->threads;
}

void fast_pool_run(fast_pool *pool, int64_t items, void (*work)(void *, int64_t, int), void *context)
{
    if (pool->threads == 1 || items <= 1) {
        for (int64_t item = 0; item < items; item++)
            work(context, item, 0);
        return;
    }
    pool->work = work;
    pool->context = context;
    pool->items = items;
    atomic_store(&pool->next, 0);
    open_gate(pool);
    take_items(pool, 0);
    close_gate(pool);
}
