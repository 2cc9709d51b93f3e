/* The semantics are those of fast/x86/tiles.h; here is what stands before them: which instruction it is,
 * and on which tiles, registers and addresses. */
#define DSV4_EMULATE_AMX 1
#include "trap_amx.h"

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "fast/kernels.h"
#include "fast/x86/tiles.h"

static _Thread_local int64_t answered;

int64_t trap_amx_count(void)
{
    return answered;
}

/* ---- one instruction ---- */

typedef struct {
    const uint8_t *code;
    int size;
    int opcode;              /* behind 0F 38 */
    int prefix;              /* 0: none, 1: 66, 2: F3, 3: F2 */
    int reg, rm, vvvv;
    bool memory, sib;
    uint64_t base, index;    /* of memory: where, and what lies between rows */
} instruction;

static _Noreturn void give_up(const instruction *i, const char *why)
{
    fprintf(stderr, "trap_amx: %p:", (const void *)i->code);
    for (int j = 0; j < 10; j++)
        fprintf(stderr, " %02x", i->code[j]);
    fprintf(stderr, ": %s\n", why);
    abort();
}

static uint64_t general(const ucontext_t *u, int number)
{
    static const int place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                  REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                  REG_R12, REG_R13, REG_R14, REG_R15};
    return (uint64_t)u->uc_mcontext.gregs[place[number]];
}

static int64_t displacement(const uint8_t *p, int bytes)
{
    int32_t wide = 0;
    if (bytes == 1)
        return (int8_t)*p;
    memcpy(&wide, p, (size_t)bytes);
    return wide;
}

/* The bytes from ModRM on; x and b are the fourth bits of index and base. */
static void read_operands(instruction *i, const ucontext_t *u, const uint8_t *p, int r, int x, int b)
{
    int mod = *p >> 6, low = *p & 7, bytes = mod == 1 ? 1 : mod == 2 ? 4 : 0;
    i->reg = (*p++ >> 3 & 7) | r << 3;
    i->rm = low | b << 3;
    i->memory = mod != 3;
    i->sib = i->memory && low == 4;
    if (i->sib) {
        int index = (*p >> 3 & 7) | x << 3, base = *p & 7;
        i->index = index == 4 ? 0 : general(u, index) << (*p >> 6);
        if (base == 5 && mod == 0)
            bytes = 4;
        else
            i->base = general(u, base | b << 3);
        p++;
    } else if (i->memory && low == 5 && mod == 0) { /* from the next instruction on */
        bytes = 4;
        i->base = (uint64_t)(uintptr_t)p + 4;
    } else if (i->memory) {
        i->base = general(u, i->rm);
    }
    i->base += (uint64_t)displacement(p, bytes);
    i->size = (int)(p + bytes - i->code);
}

static instruction read_instruction(const ucontext_t *u)
{
    instruction i = {.code = (const uint8_t *)(uintptr_t)u->uc_mcontext.gregs[REG_RIP]};
    const uint8_t *p = i.code;
    if (p[0] != 0xc4 || (p[1] & 0x1f) != 2 || (p[2] & 0x84) != 0) /* three bytes, 0F 38, W0, 128 bits */
        give_up(&i, "no instruction that is known here");
    i.prefix = p[2] & 3;
    i.vvvv = ~p[2] >> 3 & 15;
    i.opcode = p[3];
    read_operands(&i, u, p + 4, ~p[1] >> 7 & 1, ~p[1] >> 6 & 1, ~p[1] >> 5 & 1);
    return i;
}

/* ---- what they do ---- */

static void demand(const instruction *i, bool good, const char *why)
{
    if (!good)
        give_up(i, why);
}

static void *address(const instruction *i)
{
    return (void *)(uintptr_t)(i->base + (i->sib && i->opcode == 0x49 ? i->index : 0));
}

static void configure(const instruction *i)
{
    tile_config config;
    memcpy(&config, address(i), sizeof config);
    uint8_t reserved = 0;
    for (int j = 0; j < 14; j++)
        reserved |= config.reserved[j];
    for (int j = 8; j < 16; j++)
        reserved |= config.rows[j] | (config.bytes[j] != 0);
    demand(i, config.palette == 1 && reserved == 0, "a configuration with other palettes or tiles");
    demand(i, config.start_row == 0, "a configuration that starts in the middle");
    for (int j = 0; j < 8; j++)
        demand(i, config.rows[j] <= TILE_ROWS && config.bytes[j] <= TILE_BYTES &&
                      (config.rows[j] == 0) == (config.bytes[j] == 0),
               "a configuration with a tile that is too large, or half there");
    memset(&tile_state, 0, sizeof tile_state);
    tile_state.config = config;
}

static void demand_tile(const instruction *i, int tile)
{
    demand(i, tile_state.config.palette == 1, "tiles are not configured");
    demand(i, tile < 8 && tile_state.config.rows[tile] > 0, "no such tile");
}

static void move(const instruction *i)
{
    demand(i, i->memory && i->sib && i->vvvv == 0, "a wrong encoding");
    demand_tile(i, i->reg);
    if (i->prefix == 2)
        tile_store(i->reg, address(i), (int64_t)i->index);
    else
        tile_load(i->reg, address(i), (int64_t)i->index);
}

static void multiply(const instruction *i)
{
    const tile_config *config = &tile_state.config;
    int c = i->reg, a = i->rm, b = i->vvvv;
    demand(i, !i->memory && a != b && a != c && b != c, "operands that are not three tiles");
    demand_tile(i, c);
    demand_tile(i, a);
    demand_tile(i, b);
    demand(i, config->rows[c] == config->rows[a] && config->bytes[c] == config->bytes[b] &&
                  config->bytes[a] == 4 * config->rows[b] && config->bytes[c] % 4 == 0,
           "tiles that do not fit together");
    tile_multiply(c, a, b);
}

static void execute(const instruction *i)
{
    switch (i->opcode << 4 | i->prefix) {
    case 0x490: /* ldtilecfg, tilerelease */
        demand(i, i->vvvv == 0 && i->reg == 0 && (i->memory || i->rm == 0), "a wrong encoding");
        if (i->memory)
            configure(i);
        else
            tiles_end();
        break;
    case 0x493: /* tilezero */
        demand(i, i->vvvv == 0 && !i->memory && i->rm == 0, "a wrong encoding");
        demand_tile(i, i->reg);
        tile_zero(i->reg);
        break;
    case 0x4b1: /* tileloaddt1 */
    case 0x4b2: /* tilestored */
    case 0x4b3: /* tileloadd */
        move(i);
        break;
    case 0x5c2: /* tdpbf16ps */
        multiply(i);
        break;
    default:
        give_up(i, "no instruction that is known here");
    }
}

static void answer(int number, siginfo_t *info, void *context)
{
    ucontext_t *u = context;
    (void)number;
    (void)info;
    instruction i = read_instruction(u);
    execute(&i);
    u->uc_mcontext.gregs[REG_RIP] += i.size;
    answered++;
}

bool trap_amx_needed(void)
{
    int count;
    const fast_kernels *const *level = fast_levels(&count);
    return strcmp(level[count - 1]->name, "amx") != 0;
}

void trap_amx_install(void)
{
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGILL, &action, NULL) != 0) {
        perror("trap_amx");
        abort();
    }
}
