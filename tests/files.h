/* Files for tests: temporary directories, whole files, safetensors files to be tampered with. */
#ifndef TESTS_FILES_H
#define TESTS_FILES_H

#include <stddef.h>
#include <stdint.h>

#include "host/model.h"

/* Everything here ends the program with a message when the system refuses something. */

/* A new, empty directory. files_remove removes it with all that is in it, and frees the name. */
char *files_directory(void);
void files_remove(char *directory);

/* "directory/name", to be freed. */
char *files_path(const char *directory, const char *name);

void files_write(const char *directory, const char *name, const void *data, size_t size);
void files_write_text(const char *directory, const char *name, const char *text);

/* The whole file and a 0 behind it, to be freed. */
char *files_read(const char *path, size_t *size);

/* Copies the regular files of one directory into another, which exists. */
void files_copy(const char *from, const char *to);

/* The JSON object `text` with changes: path, JSON text, path, JSON text ... A path is a key or
 * "key.key", and no text (NULL) takes the key away. To be freed. */
char *files_json(const char *text, const char *const changes[]);

/* The changes as an argument; see above. */
#define CHANGES(...) ((const char *const[]){__VA_ARGS__, END_OF_CHANGES})
extern const char END_OF_CHANGES[];

/* A tensor as a safetensors file holds it. */
typedef struct {
    char name[160];
    char dtype[16];
    int rank;
    int64_t shape[16];
    size_t size;
    unsigned char *data; /* [size], owned */
} stored_tensor;

typedef struct {
    stored_tensor *at;
    size_t count;
} stored_tensors;

/* Appends a tensor of zeros. Pointers to other tensors of the list end with this. */
stored_tensor *stored_add(stored_tensors *list, const char *name, const char *dtype, int rank,
                          const int64_t *shape, size_t size);

/* The tensor of that name; there must be one. */
stored_tensor *stored_find(const stored_tensors *list, const char *name);
void stored_remove(stored_tensors *list, const char *name);

/* Another dtype, shape and size for a tensor that is there: zeros again. */
void stored_change(const stored_tensors *list, const char *name, const char *dtype, int rank,
                   const int64_t *shape, size_t size);

/* All tensors of a configuration in the released layout; then all of them plain, as F32, with I64
 * left as it is. */
void stored_fill(stored_tensors *list, const dsv4_config *config);
void stored_fill_plain(stored_tensors *list, const dsv4_config *config);

void stored_write(const stored_tensors *list, const char *directory, const char *name);

/* The same over `shards` files with an index. */
void stored_write_shards(const stored_tensors *list, const char *directory, size_t shards);
void stored_free(stored_tensors *list);

/* The path of a checkpoint of the oracle (DSV4_ORACLE, or the part of it in the repository); NULL where
 * it is not there. */
char *files_oracle(const char *name);

#endif
