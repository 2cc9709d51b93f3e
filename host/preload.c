#include "preload.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "clock.h"
#include "memory.h"

static const size_t BLOCK = 16u << 20;

static size_t page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static double total_bytes(const dsv4_checkpoint *checkpoint)
{
    const char *path;
    double bytes = 0;
    for (int64_t i = 0; i < dsv4_checkpoint_files(checkpoint); i++)
        bytes += (double)dsv4_checkpoint_file(checkpoint, i, &path).size;
    return bytes;
}

bool dsv4_preload_fits(const dsv4_checkpoint *checkpoint)
{
    return total_bytes(checkpoint) <= 0.75 * dsv4_memory_available();
}

/* ---- what is in memory ---- */

static double resident_bytes(dsv4_file file)
{
    enum { PAGES = 4096 };
    unsigned char in_memory[PAGES];
    size_t page = page_size();
    double bytes = 0;
    for (size_t at = 0, some; at < file.size; at += some) {
        some = file.size - at < PAGES * page ? file.size - at : PAGES * page;
        if (mincore((void *)(file.data + at), some, in_memory) != 0)
            return 0;
        for (size_t i = 0; i * page < some; i++)
            if (in_memory[i] & 1)
                bytes += (double)(some - i * page < page ? some - i * page : page);
    }
    return bytes;
}

dsv4_residency dsv4_residency_of(const dsv4_checkpoint *checkpoint)
{
    const char *path;
    dsv4_residency sum = {.bytes = total_bytes(checkpoint)};
    for (int64_t i = 0; i < dsv4_checkpoint_files(checkpoint); i++)
        sum.resident += resident_bytes(dsv4_checkpoint_file(checkpoint, i, &path));
    return sum;
}

int dsv4_evict(const dsv4_checkpoint *checkpoint, dsv4_error *err)
{
    for (int64_t i = 0; i < dsv4_checkpoint_files(checkpoint); i++) {
        const char *path;
        dsv4_file file = dsv4_checkpoint_file(checkpoint, i, &path);
        if (file.size == 0)
            continue;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return dsv4_fail(err, "%s: %s", path, strerror(errno));
        /* What is mapped, or not yet on the disk, would stay. */
        madvise((void *)file.data, file.size, MADV_DONTNEED);
        fdatasync(fd);
        int status = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
        if (status != 0)
            return dsv4_fail(err, "%s: cannot be dropped from memory: %s", path, strerror(status));
    }
    return 0;
}

/* ---- loading ---- */

enum { STREAMS = 4 };

struct dsv4_preloading {
    const dsv4_checkpoint *checkpoint;
    pthread_t thread[STREAMS];
    int threads;
    atomic_llong next;  /* block, of all files in a row */
    atomic_bool stopped;
    atomic_int error;   /* an errno of some block, or 0: */
    atomic_llong where; /* of this file */
};

/* The kernel reads and maps in one call. An older one has no such call: there, a byte of every page
 * is touched. */
static int bring(const char *data, size_t bytes)
{
#ifdef MADV_POPULATE_READ
    if (madvise((void *)data, bytes, MADV_POPULATE_READ) == 0)
        return 0;
    if (errno != EINVAL)
        return errno;
#endif
    const volatile char *page = data;
    for (size_t at = 0; at < bytes; at += page_size())
        (void)page[at];
    return 0;
}

/* The part of a file that is block `number` of all; -1 past the last one. */
static int64_t find_block(const dsv4_checkpoint *checkpoint, int64_t number, const char **data,
                          size_t *bytes)
{
    for (int64_t i = 0; i < dsv4_checkpoint_files(checkpoint); i++) {
        const char *path;
        dsv4_file file = dsv4_checkpoint_file(checkpoint, i, &path);
        int64_t blocks = (int64_t)((file.size + BLOCK - 1) / BLOCK);
        if (number < blocks) {
            size_t at = (size_t)number * BLOCK;
            *data = file.data + at;
            *bytes = file.size - at < BLOCK ? file.size - at : BLOCK;
            return i;
        }
        number -= blocks;
    }
    return -1;
}

static void *stream(void *context)
{
    dsv4_preloading *p = context;
    const char *data;
    size_t bytes;
    int64_t file;
    while (!atomic_load(&p->stopped) &&
           (file = find_block(p->checkpoint, atomic_fetch_add(&p->next, 1), &data, &bytes)) >= 0) {
        int error = bring(data, bytes);
        if (error == 0)
            continue;
        atomic_store(&p->where, file);
        atomic_store(&p->error, error);
        atomic_store(&p->stopped, true);
    }
    return NULL;
}

dsv4_preloading *dsv4_preload_begin(const dsv4_checkpoint *checkpoint)
{
    dsv4_preloading *p = dsv4_alloc(1, sizeof *p);
    p->checkpoint = checkpoint;
    while (p->threads < STREAMS &&
           pthread_create(&p->thread[p->threads], NULL, stream, p) == 0)
        p->threads++;
    return p;
}

int dsv4_preload_end(dsv4_preloading *p, bool stop, dsv4_error *err)
{
    const char *path;
    if (p == NULL)
        return 0;
    if (stop)
        atomic_store(&p->stopped, true);
    stream(p); /* where no thread could be had, this one does it all */
    for (int i = 0; i < p->threads; i++)
        pthread_join(p->thread[i], NULL);
    int error = atomic_load(&p->error);
    int64_t file = atomic_load(&p->where);
    const dsv4_checkpoint *checkpoint = p->checkpoint;
    free(p);
    if (error == 0)
        return 0;
    dsv4_checkpoint_file(checkpoint, file, &path);
    return dsv4_fail(err, "%s: cannot be read: %s", path, strerror(error));
}

/* ---- the disk itself ---- */

static int read_directly(int fd, const char *path, size_t from, size_t bytes, double *rate,
                         dsv4_error *err)
{
    void *buffer = NULL;
    if (posix_memalign(&buffer, page_size(), BLOCK) != 0)
        return dsv4_fail(err, "no room for %zu bytes", BLOCK);
    memset(buffer, 0, BLOCK);
    double began = dsv4_now();
    size_t done = 0;
    ssize_t some = 1;
    size_t wanted = 0;
    for (; done < bytes && (size_t)some >= wanted; done += some > 0 ? (size_t)some : 0) {
        wanted = bytes - done < BLOCK ? bytes - done : BLOCK;
        some = pread(fd, buffer, wanted, (off_t)(from + done)); /* the end of a file comes short */
        if (some < 0)
            break;
    }
    *rate = (double)done / (dsv4_now() - began);
    free(buffer);
    if (some < 0 || done == 0)
        return dsv4_fail(err, "%s: direct reading (O_DIRECT) is refused: %s", path,
                         some < 0 ? strerror(errno) : "no bytes");
    return 0;
}

int dsv4_direct_rate(const dsv4_checkpoint *checkpoint, double place, double *rate,
                     dsv4_error *err)
{
    const size_t most = 256u << 20, page = page_size();
    const char *path = "", *one;
    size_t size = 0;
    for (int64_t i = 0; i < dsv4_checkpoint_files(checkpoint); i++) {
        dsv4_file file = dsv4_checkpoint_file(checkpoint, i, &one);
        if (file.size > size || i == 0) {
            size = file.size;
            path = one;
        }
    }
    size_t bytes = size / 16 / page * page, from = (size_t)(place * (double)size) / page * page;
    bytes = bytes > most ? most : bytes < page ? page : bytes;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (fd < 0)
        return dsv4_fail(err, "%s: direct reading (O_DIRECT) is refused: %s", path,
                         strerror(errno));
    int result = read_directly(fd, path, from, bytes, rate, err);
    close(fd);
    return result;
}
