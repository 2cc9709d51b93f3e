#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int dsv4_file_map(dsv4_file *file, const char *path, dsv4_error *err)
{
    *file = (dsv4_file){.data = "", .size = 0};
    /* Without O_NONBLOCK, opening a named pipe would wait for its writer. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return dsv4_fail(err, "%s: %s", path, strerror(errno));
    int status = 0;
    struct stat information;
    if (fstat(fd, &information) != 0)
        status = dsv4_fail(err, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(information.st_mode))
        status = dsv4_fail(err, "%s: not a regular file", path);
    else if (information.st_size > 0) {
        size_t size = (size_t)information.st_size;
        void *data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
            status = dsv4_fail(err, "%s: cannot map %zu bytes: %s", path, size, strerror(errno));
        else {
            /* A page that is missing is then read with the 4 MB around it, into huge pages. A cold
             * file comes from the disk several times as fast, and a warm one is found in fewer
             * faults and fewer entries of the processor's tables. Where it is refused, nothing is
             * lost. */
            madvise(data, size, MADV_HUGEPAGE);
            *file = (dsv4_file){.data = data, .size = size};
        }
    }
    close(fd);
    return status;
}

void dsv4_file_unmap(dsv4_file *file)
{
    if (file->size > 0)
        munmap((void *)file->data, file->size);
    *file = (dsv4_file){0};
}
