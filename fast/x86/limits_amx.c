/* The machine's limits in AMX: 2 x 2 tiles of sums, from operands that stay in registers, or that are
 * loaded from the first caches, as a product of matrices has to. */
#include "fast/limits.h"

#include <immintrin.h>
#include <string.h>

enum { TILE = 1024, ROW = 64, DEPTH = 8, SUMS = 4, BF16_PAIR = 0x3c003c00 };

/* All eight tiles are 16 rows of 64 bytes. */
static const struct {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64))) shapes = {
    .palette = 1,
    .row_bytes = {ROW, ROW, ROW, ROW, ROW, ROW, ROW, ROW},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

typedef struct { uint8_t tile[4][DEPTH][TILE]; } __attribute__((aligned(64))) operands;

static void begin(operands *o)
{
    const int32_t pair = BF16_PAIR;
    for (size_t i = 0; i < sizeof *o; i += sizeof pair)
        memcpy((uint8_t *)o + i, &pair, sizeof pair);
    /* Compilers may take only the first bytes of what this reads for read. */
    __asm__ volatile("" ::"m"(shapes), "r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, o->tile[0][0], ROW);
    _tile_loadd(5, o->tile[1][0], ROW);
    _tile_loadd(6, o->tile[2][0], ROW);
    _tile_loadd(7, o->tile[3][0], ROW);
}

static void finish(operands *o)
{
    _tile_stored(0, o->tile[0][0], ROW);
    _tile_release();
    volatile uint8_t sink = o->tile[0][0][0];
    (void)sink;
}

#define LOAD(o, i)                          \
    do {                                    \
        _tile_loadd(4, (o)->tile[0][i], ROW); \
        _tile_loadd(5, (o)->tile[1][i], ROW); \
        _tile_loadd(6, (o)->tile[2][i], ROW); \
        _tile_loadd(7, (o)->tile[3][i], ROW); \
    } while (0)

#define MULTIPLY(instruction) \
    do {                      \
        instruction(0, 4, 6); \
        instruction(1, 4, 7); \
        instruction(2, 5, 6); \
        instruction(3, 5, 7); \
    } while (0)

static void bf16_loaded(int64_t rounds)
{
    operands o;
    begin(&o);
    for (int64_t i = 0; i < rounds; i++) {
        LOAD(&o, i % DEPTH);
        MULTIPLY(_tile_dpbf16ps);
    }
    finish(&o);
}

static void bf16_registers(int64_t rounds)
{
    operands o;
    begin(&o);
    for (int64_t i = 0; i < rounds; i++)
        MULTIPLY(_tile_dpbf16ps);
    finish(&o);
}

static void int8_loaded(int64_t rounds)
{
    operands o;
    begin(&o);
    for (int64_t i = 0; i < rounds; i++) {
        LOAD(&o, i % DEPTH);
        MULTIPLY(_tile_dpbssd);
    }
    finish(&o);
}

static const fast_peak peaks[] = {
    {"amx_bf16", "AMX bf16, tiles loaded", 2.0 * 16 * 16 * 32 * SUMS, bf16_loaded},
    {"amx_bf16_registers", "AMX bf16, in registers", 2.0 * 16 * 16 * 32 * SUMS, bf16_registers},
    {"amx_int8", "AMX int8, tiles loaded", 2.0 * 16 * 16 * 64 * SUMS, int8_loaded},
};

const fast_limits fast_limits_amx = {"amx", NULL, 3, peaks};
