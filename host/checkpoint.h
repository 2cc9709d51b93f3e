/* A checkpoint directory: safetensors files, memory-mapped. spec/checkpoint.md. */
#ifndef DSV4_CHECKPOINT_H
#define DSV4_CHECKPOINT_H

#include <stdint.h>

#include "error.h"
#include "file.h"

typedef enum {
    DSV4_F32, DSV4_BF16, DSV4_F16, DSV4_F8_E4M3, DSV4_F8_E8M0, DSV4_I8, DSV4_I32, DSV4_I64,
    DSV4_OTHER, /* a dtype of safetensors that no tensor of this model may have */
    DSV4_DTYPES = DSV4_OTHER
} dsv4_dtype;

/* "BF16" and so on, as safetensors spells it. */
const char *dsv4_dtype_name(dsv4_dtype dtype);

/* Bytes per element. */
int64_t dsv4_dtype_size(dsv4_dtype dtype);

enum { DSV4_MAX_RANK = 8 };

/* One stored tensor. `data` points into the mapped file and may be unaligned: read it by memcpy. */
typedef struct {
    const char *name; /* canonical: no leading "model.", ".scale" for ".weight_scale_inv" */
    const char *file; /* path of the file it is in, for messages */
    const char *dtype_name; /* as spelt in the file */
    dsv4_dtype dtype;
    int rank;
    int64_t shape[DSV4_MAX_RANK];
    int64_t bytes;
    const void *data; /* little-endian, row-major */
} dsv4_tensor;

typedef struct dsv4_checkpoint dsv4_checkpoint;

/* Opens model.safetensors, or the shards of model.safetensors.index.json, in directory `dir`.
 * Headers are read and checked whole; payloads are only mapped. NULL with one line in `err`. */
dsv4_checkpoint *dsv4_checkpoint_open(const char *dir, dsv4_error *err);
void dsv4_checkpoint_close(dsv4_checkpoint *checkpoint);

/* The tensor of a canonical name, or NULL. Constant time. */
const dsv4_tensor *dsv4_checkpoint_find(const dsv4_checkpoint *checkpoint, const char *name);

/* All tensors, in the order of file and offset: one array, `at(0)` its start. */
int64_t dsv4_checkpoint_count(const dsv4_checkpoint *checkpoint);
const dsv4_tensor *dsv4_checkpoint_at(const dsv4_checkpoint *checkpoint, int64_t index);

/* The files that it is in, as they are mapped, and the path of each. */
int64_t dsv4_checkpoint_files(const dsv4_checkpoint *checkpoint);
dsv4_file dsv4_checkpoint_file(const dsv4_checkpoint *checkpoint, int64_t index, const char **path);

#endif
