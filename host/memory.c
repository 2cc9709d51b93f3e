#include "memory.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

/* The two ways to limit groups, and where each of them has its numbers. */
typedef struct {
    const char *type, *controller; /* of the mount; controller NULL: one mount has all */
    const char *limit, *used, *idle[2]; /* idle: those of memory.stat that are of files */
} hierarchy;

static const hierarchy hierarchies[] = {
    {"cgroup2", NULL, "memory.max", "memory.current", {"inactive_file", "active_file"}},
    {"cgroup", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
     {"total_inactive_file", "total_active_file"}},
};

/* ---- the system's files ---- */

static char *joined(const char *a, const char *b, const char *c)
{
    char *path = dsv4_alloc(strlen(a) + strlen(b) + strlen(c) + 1, 1);
    return strcat(strcat(strcpy(path, a), b), c);
}

/* Shows the file's lines until one is what is sought; false where none is, or there is no such
 * file. */
static bool search_lines(const char *path, bool (*is_it)(void *sought, char *line), void *sought)
{
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;
    bool found = false;
    while (file != NULL && !found && getline(&line, &room, file) >= 0)
        found = is_it(sought, line);
    free(line);
    if (file != NULL)
        fclose(file);
    return found;
}

typedef struct { const char *key; double value; } entry;

/* "KEY VALUE", or "VALUE" where the key is empty. */
static bool is_entry(void *sought, char *line)
{
    entry *e = sought;
    size_t length = strlen(e->key);
    return strncmp(line, e->key, length) == 0 && sscanf(line + length, " %lf", &e->value) == 1;
}

static double number_at(const char *directory, const char *file, const char *key, double otherwise)
{
    entry e = {.key = key};
    char *path = joined(directory, "/", file);
    bool found = search_lines(path, is_entry, &e);
    free(path);
    return found ? e.value : otherwise;
}

/* ---- groups ---- */

static bool is_listed(const char *list, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = list; (at = strstr(at, name)) != NULL; at += length)
        if ((at == list || at[-1] == ',') && strchr(",", at[length]) != NULL)
            return true;
    return false;
}

typedef struct {
    const hierarchy *of;
    char *root, *mount; /* this group of the hierarchy is at that place; to be freed */
    char *group;        /* in which the process is; to be freed */
} place;

/* A word of the line, counted from 0; "" where it has fewer. To be freed. */
static char *word_of(const char *line, int number)
{
    for (; number > 0; number--) {
        line += strcspn(line, " \n");
        line += strspn(line, " \n");
    }
    size_t length = strcspn(line, " \n");
    return memcpy(dsv4_alloc(length + 1, 1), line, length);
}

/* "36 25 0:31 ROOT MOUNT rw,relatime shared:9 - TYPE SOURCE OPTIONS" */
static bool is_mount(void *sought, char *line)
{
    place *p = sought;
    const char *rest = strstr(line, " - ");
    if (rest == NULL)
        return false;
    char *type = word_of(rest + 3, 0), *options = word_of(rest + 3, 2);
    bool found = strcmp(type, p->of->type) == 0 &&
                 (p->of->controller == NULL || is_listed(options, p->of->controller));
    free(type);
    free(options);
    if (found) {
        p->root = word_of(line, 3);
        p->mount = word_of(line, 4);
    }
    return found;
}

/* "NUMBER:CONTROLLERS:GROUP"; number 0, without controllers, is cgroup2. */
static bool is_group(void *sought, char *line)
{
    place *p = sought;
    char *list = strchr(line, ':'), *group = list != NULL ? strchr(list + 1, ':') : NULL;
    if (group == NULL)
        return false;
    *group++ = '\0';
    if (p->of->controller == NULL ? strcmp(line, "0:") != 0 : !is_listed(list + 1, p->of->controller))
        return false;
    group[strcspn(group, "\n")] = '\0';
    p->group = joined(group, "", "");
    return true;
}

/* The group's directory, seen from the mount: what is mounted may be a group itself. */
static const char *below_mount(const place *p)
{
    size_t length = strcmp(p->root, "/") == 0 ? 0 : strlen(p->root);
    if (strncmp(p->group, p->root, length) != 0 || strchr("/", p->group[length]) == NULL)
        return ""; /* not to be seen from here: what is mounted stands above it */
    return p->group + length;
}

static double lesser(double a, double b)
{
    return a < b ? a : b;
}

/* Pages of files count as used, but go when others are needed, as in MemAvailable. */
static void limit_by_group(const char *group, const hierarchy *h, dsv4_memory *memory)
{
    double limit = number_at(group, h->limit, "", INFINITY);
    double used = number_at(group, h->used, "", 0);
    for (int i = 0; i < 2; i++)
        used -= number_at(group, "memory.stat", h->idle[i], 0);
    memory->total = lesser(memory->total, limit);
    memory->available = lesser(memory->available, limit - (used > 0 ? used : 0));
}

/* The limits of all groups from the process's own up to the one that is mounted. */
static void limit_by(const hierarchy *h, const char *root, dsv4_memory *memory)
{
    place p = {.of = h};
    char *mounts = joined(root, "/proc/self", "/mountinfo");
    char *groups = joined(root, "/proc/self", "/cgroup");
    if (search_lines(mounts, is_mount, &p) && search_lines(groups, is_group, &p)) {
        char *group = joined(root, p.mount, below_mount(&p));
        size_t top = strlen(root) + strlen(p.mount);
        for (;;) {
            limit_by_group(group, h, memory);
            if (strlen(group) <= top)
                break;
            *strrchr(group, '/') = '\0';
        }
        free(group);
    }
    free(mounts);
    free(groups);
    free(p.root);
    free(p.mount);
    free(p.group);
}

/* ---- all of it ---- */

static double known(double bytes)
{
    return bytes == INFINITY ? 0 : bytes < 1 ? 1 : bytes; /* 0 is for what is not known */
}

dsv4_memory dsv4_memory_under(const char *root)
{
    char *proc = joined(root, "/proc", "");
    dsv4_memory memory = {1024 * number_at(proc, "meminfo", "MemTotal:", INFINITY),
                          1024 * number_at(proc, "meminfo", "MemAvailable:", INFINITY)};
    free(proc);
    for (size_t i = 0; i < sizeof hierarchies / sizeof *hierarchies; i++)
        limit_by(&hierarchies[i], root, &memory);
    return (dsv4_memory){known(memory.total), known(memory.available)};
}

double dsv4_memory_total(void)
{
    return dsv4_memory_under("").total;
}

double dsv4_memory_available(void)
{
    return dsv4_memory_under("").available;
}
