/* What a forward call has to do at least, from the model's own table: the bytes that it has to
 * read, and the multiplications and additions of its products, without any padding. */
#ifndef DSV4_WORK_H
#define DSV4_WORK_H

#include "path.h"

typedef struct {
    double weights; /* bytes of the tensors that are read, each once */
    double cache;   /* bytes of the state that are read, each once */
    double flops;
} dsv4_amount;

typedef struct { dsv4_amount part[DSV4_PROFILE_KINDS][DSV4_PARTS]; } dsv4_work;

/* Bytes of what a path keeps of a sequence. */
typedef struct {
    double window; /* a row of it */
    double entry;  /* a compressed entry */
    double key;    /* of the indexer */
} dsv4_storage;

dsv4_storage dsv4_storage_of(const dsv4_path *path, const dsv4_config *config,
                             dsv4_numerics numerics);

/* A call with `rows` tokens after `position` others, logits for `logits` of them. Of the experts,
 * as many different ones are read as a router that prefers none would choose. */
void dsv4_work_of(const dsv4_model *model, const dsv4_storage *storage, int64_t position,
                  int64_t rows, int64_t logits, dsv4_work *work);

/* The sum over the parts of a kind (-1: of all), or over the kinds of a part (-1: of all). */
dsv4_amount dsv4_work_sum(const dsv4_work *work, int kind, int part);

#endif
