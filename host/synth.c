#include "synth.h"

#include <argp.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "clock.h"
#include "file.h"
#include "json.h"
#include "model.h"

enum {
    MAX_LAYERS = 4096,      /* as in config.json */
    MAX_THREADS = 256,
    ALIGNMENT = 4096,       /* of the payload in the file, and of the tensors that allow it */
    BATCH = 8 * 1024 * 1024 /* bytes that a thread makes before it writes them */
};

/* Counts are 0, and `hash_layers` -1, where the geometry decides. */
typedef struct {
    const char *dir, *geometry;
    int64_t layers, experts, hash_layers;
    int64_t *ratios; /* [ratio_count], owned */
    int64_t ratio_count;
    uint64_t seed;
    int threads;
    bool mtp, sparse;
} synth_arguments;

typedef enum {
    WORDS,  /* random bits & keep, + add: any format of 1, 2, 4 or 8 bits with a range of its own */
    E4M3,   /* random codes but for the two NaN */
    REALS,  /* binary32, uniform in middle +- reach */
    EXPERTS /* rows of different experts */
} content;

/* A tensor to be filled. Its bytes depend on this alone, not on who makes which of them. */
typedef struct {
    uint64_t key;
    content content;
    uint64_t keep, add;   /* WORDS: for four or eight values at once */
    double middle, reach; /* REALS */
    int64_t choices;      /* EXPERTS: a row is some of the experts 0..choices - 1 */
    int64_t granule;      /* it may be made in pieces of a multiple of so many bytes */
    int64_t offset, bytes; /* in the payload */
} tensor;

/* Where the next piece begins; the tensors lie in the order of their offsets. */
typedef struct {
    int64_t tensor, byte;
} position;

typedef struct {
    const synth_arguments *arguments;
    dsv4_config geometry, config; /* as given, and as written */
    char *json;                   /* config.json as written */
    dsv4_dtype weight_dtype;      /* of the tensor visited last, unless that was a scale */
    tensor *tensors;
    int64_t count, room;
    int64_t bytes; /* of the payload */
    FILE *text;    /* of the header, while it is written */
    char *header;  /* all that comes before the payload */
    size_t header_size;
    bool made_directory;
    int directory, file; /* descriptors, or -1 */
    pthread_mutex_t lock; /* of the two below */
    position next;
    int problem; /* the first errno of a write */
} synth;

/* ---- config.json ---- */

static json_t *load_geometry(synth *s, dsv4_error *err)
{
    const char *name = s->arguments->geometry, *text = dsv4_geometry(name);
    dsv4_file file = {0};
    dsv4_error inner = {0};
    json_t *root = NULL;
    if (text == NULL && dsv4_file_map(&file, name, &inner) != 0) {
        dsv4_fail(err, "--geometry: expected flash, pro or a config.json: %s", inner.text);
        return NULL;
    }
    size_t length = text != NULL ? strlen(text) : file.size;
    text = text != NULL ? text : file.data;
    if (dsv4_config_parse(&s->geometry, text, length, name, err) == 0)
        root = dsv4_json_parse(text, length, name, err);
    dsv4_file_unmap(&file);
    return root;
}

static void set_integer(json_t *root, const char *key, int64_t value)
{
    json_object_set_new(root, key, json_integer((json_int_t)value));
}

static bool is_cut(const synth_arguments *arguments)
{
    return arguments->layers > 0 || arguments->ratio_count > 0;
}

static int64_t mtp_layers(const synth *s)
{
    int64_t given = is_cut(s->arguments) ? 0 : s->geometry.num_nextn_predict_layers;
    return given == 0 && s->arguments->mtp ? 1 : given;
}

/* One ratio per layer, those of the geometry again and again where it has fewer layers, and one per
 * MTP layer. */
static int set_layers(const synth *s, json_t *root, int64_t layers, dsv4_error *err)
{
    const synth_arguments *arguments = s->arguments;
    const dsv4_config *geometry = &s->geometry;
    const int64_t given = arguments->ratio_count, mtp = mtp_layers(s);
    if (given > 0 && given != layers && given != layers + mtp)
        return dsv4_fail(err, "--ratios: expected %" PRId64 " entries, one per layer%s, got "
                         "%" PRId64, layers, mtp > 0 ? " (and one more for MTP)" : "", given);
    json_t *ratios = json_array();
    for (int64_t i = 0; i < layers; i++) {
        int64_t ratio = given > 0 ? arguments->ratios[i]
                                  : geometry->compress_ratios[i % geometry->num_hidden_layers];
        json_array_append_new(ratios, json_integer((json_int_t)ratio));
    }
    for (int64_t i = 0; i < mtp; i++) {
        int64_t ratio = 0;
        if (given > layers)
            ratio = arguments->ratios[layers];
        else if (i < geometry->num_nextn_predict_layers)
            ratio = geometry->compress_ratios[geometry->num_hidden_layers + i];
        json_array_append_new(ratios, json_integer((json_int_t)ratio));
    }
    json_object_set_new(root, "compress_ratios", ratios);
    set_integer(root, "num_hidden_layers", layers);
    set_integer(root, "num_nextn_predict_layers", mtp);
    return 0;
}

static int64_t minimum(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* The keys that describe the storage describe the released one, whatever the geometry came from. */
static void set_storage(json_t *root)
{
    const char *flash = dsv4_geometry("flash");
    json_t *released = json_loadb(flash, strlen(flash), 0, NULL);
    json_object_set(root, "expert_dtype", json_object_get(released, "expert_dtype"));
    if (!json_is_object(json_object_get(root, "quantization_config")))
        json_object_set(root, "quantization_config",
                        json_object_get(released, "quantization_config"));
    json_decref(released);
}

static int edit(const synth *s, json_t *root, dsv4_error *err)
{
    const synth_arguments *arguments = s->arguments;
    const dsv4_config *geometry = &s->geometry;
    int64_t layers = geometry->num_hidden_layers;
    if (is_cut(arguments))
        layers = arguments->layers > 0 ? arguments->layers : arguments->ratio_count;
    if ((is_cut(arguments) || mtp_layers(s) != geometry->num_nextn_predict_layers) &&
        set_layers(s, root, layers, err) != 0)
        return -1;
    set_integer(root, "num_hash_layers", arguments->hash_layers >= 0
                                             ? arguments->hash_layers
                                             : minimum(geometry->num_hash_layers, layers));
    if (arguments->experts > 0) {
        set_integer(root, "n_routed_experts", arguments->experts);
        set_integer(root, "num_experts_per_tok",
                    minimum(geometry->num_experts_per_tok, arguments->experts));
    }
    set_storage(root);
    return 0;
}

/* Numbers as short as they can be without changing: 1e-06 and not 9.9999999999999995e-07. */
static char *dump(const json_t *root)
{
    const size_t flags = JSON_INDENT(2);
    char *text = json_dumps(root, flags | JSON_REAL_PRECISION(15));
    json_t *again = text != NULL ? json_loads(text, 0, NULL) : NULL;
    if (!json_equal(root, again)) {
        free(text);
        text = json_dumps(root, flags);
    }
    json_decref(again);
    return text;
}

static int make_config(synth *s, dsv4_error *err)
{
    json_t *root = load_geometry(s, err);
    if (root == NULL)
        return -1;
    int status = edit(s, root, err);
    if (status == 0) {
        s->json = dump(root);
        status = dsv4_config_parse(&s->config, s->json, strlen(s->json), s->arguments->geometry,
                                   err);
    }
    json_decref(root);
    return status;
}

/* ---- what the tensors hold ---- */

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Number `i` of the splitmix64 sequence that starts at `key`. */
static uint64_t random_bits(uint64_t key, uint64_t i)
{
    return mix(key + (i + 1) * 0x9e3779b97f4a7c15u);
}

static uint64_t key_of(uint64_t seed, const char *name)
{
    uint64_t key = mix(seed + 1);
    for (; *name != '\0'; name++)
        key = mix(key ^ (unsigned char)*name);
    return key;
}

/* Mean squares of the codes as they are drawn. */
static const double e2m1_square = 8.5625;
static const double e4m3_square = 11501.33332657814;  /* with one more of each +-448, for the NaN */
static const double bf16_square = 2.321624755859375;  /* of the significands 1 to 1 + 127/128 */
static const double scale_square = (1 + 4 + 16 + 64) / 4.0; /* of four neighbouring powers of two */

/* The rms of M x for an x of rms 1. Sublayers add little to the streams, so that a difference does
 * not grow on its way through the layers; embed, of which one row is taken, has values of rms 1. */
static double gain_of(const dsv4_expected *e)
{
    if (strstr(e->name, "wo_b.") != NULL)
        return 0.5;
    if (strstr(e->name, ".w2.") != NULL)
        return 0.25;
    return e->component == DSV4_EMBED ? sqrt((double)e->cols) : 1;
}

/* The exponent of the lowest of the four powers of two that give the matrix its gain, within a
 * factor of sqrt(2): 4^exponent is the power of four nearest to a ratio of squares. */
static int exponent_of(const dsv4_expected *e, double code_square)
{
    double gain = gain_of(e);
    int twice = ilogb(gain * gain / ((double)e->cols * code_square * scale_square));
    return (int)floor((twice + 1) / 2.0);
}

static const uint64_t each_byte = 0x0101010101010101u, each_pair = 0x0001000100010001u;

static void fill_scale(const synth *s, const dsv4_expected *e, tensor *t)
{
    double square = s->weight_dtype == DSV4_I8 ? e2m1_square : e4m3_square;
    t->keep = 3 * each_byte;
    t->add = (uint64_t)(127 + exponent_of(e, square)) * each_byte;
}

static void fill_bf16(const dsv4_expected *e, tensor *t)
{
    if (e->rank == 1) { /* norms: 0.875 to 1.2421875 */
        t->keep = 0x3f * each_pair;
        t->add = 0x3f60 * each_pair;
    } else { /* sign, fraction and the low two bits of the exponent */
        t->keep = 0x81ff * each_pair;
        t->add = (uint64_t)(127 + exponent_of(e, bf16_square)) * 0x80 * each_pair;
    }
}

static void fill_reals(const dsv4_expected *e, tensor *t)
{
    static const struct {
        const char *part;
        double middle, reach;
    } kinds[] = {
        {"attn_sink", 0, 1}, {".ape", 0, 0.3}, {".bias", 0, 0.05}, {"_base", 0, 0.3},
        {"_scale", 0.3, 0.1},
    };
    t->content = REALS;
    t->reach = sqrt(3 / (double)e->cols); /* hc fn: rms 1 of normed streams */
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strstr(e->name, kinds[i].part) != NULL) {
            t->middle = kinds[i].middle;
            t->reach = kinds[i].reach;
        }
}

static int add_tensor(void *context, const dsv4_expected *e)
{
    synth *s = context;
    if (s->count == s->room) {
        s->room = 2 * s->room + 64;
        tensor *grown = dsv4_alloc((size_t)s->room, sizeof *grown);
        if (s->count > 0)
            memcpy(grown, s->tensors, (size_t)s->count * sizeof *grown);
        free(s->tensors);
        s->tensors = grown;
    }
    tensor *t = &s->tensors[s->count++];
    *t = (tensor){.key = key_of(s->arguments->seed, e->name), .content = WORDS,
                  .granule = ALIGNMENT, .bytes = e->bytes};
    switch (e->dtype) {
    case DSV4_F8_E8M0: fill_scale(s, e, t); break;
    case DSV4_F8_E4M3: t->content = E4M3; break;
    case DSV4_BF16: fill_bf16(e, t); break;
    case DSV4_F32: fill_reals(e, t); break;
    case DSV4_I64:
        t->content = EXPERTS;
        t->choices = s->config.n_routed_experts;
        t->granule = e->cols * dsv4_dtype_size(e->dtype);
        break;
    default: t->keep = UINT64_MAX; break; /* FP4: every code is a number */
    }
    if (e->dtype != DSV4_F8_E8M0)
        s->weight_dtype = e->dtype;
    return 0;
}

/* The largest power of two up to ALIGNMENT that divides the size. */
static int64_t alignment_of(const tensor *t)
{
    return minimum(t->bytes & -t->bytes, ALIGNMENT);
}

/* The tensors of odd sizes come last: each then begins at a multiple of its own alignment, and the
 * large ones at the beginning of a page. */
static void lay_out(synth *s)
{
    for (int64_t alignment = ALIGNMENT; alignment > 0; alignment /= 2)
        for (int64_t i = 0; i < s->count; i++)
            if (alignment_of(&s->tensors[i]) == alignment) {
                s->tensors[i].offset = s->bytes;
                s->bytes += s->tensors[i].bytes;
            }
}

static int print_entry(void *context, const dsv4_expected *e)
{
    synth *s = context;
    const tensor *t = &s->tensors[s->count++];
    fprintf(s->text, "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%" PRId64, s->count == 1 ? '{' : ',',
            e->name, dsv4_dtype_name(e->dtype), e->shape[0]);
    if (e->rank == 2)
        fprintf(s->text, ",%" PRId64, e->shape[1]);
    fprintf(s->text, "],\"data_offsets\":[%" PRId64 ",%" PRId64 "]}", t->offset,
            t->offset + t->bytes);
    return 0;
}

static int by_offset(const void *left, const void *right)
{
    const tensor *a = left, *b = right;
    return (a->offset > b->offset) - (a->offset < b->offset);
}

static void plan(synth *s)
{
    dsv4_model_each(&s->config, add_tensor, s);
    lay_out(s);

    s->text = open_memstream(&s->header, &s->header_size);
    uint64_t length = 0;
    fwrite(&length, sizeof length, 1, s->text);
    s->count = 0;
    dsv4_model_each(&s->config, print_entry, s);
    fputc('}', s->text);
    for (int64_t size = ftell(s->text); size % ALIGNMENT != 0; size++)
        fputc(' ', s->text);
    fclose(s->text);
    length = htole64(s->header_size - sizeof length);
    memcpy(s->header, &length, sizeof length);

    qsort(s->tensors, (size_t)s->count, sizeof *s->tensors, by_offset);
}

/* ---- the payload ---- */

static uint64_t two_reals(const tensor *t, uint64_t random)
{
    uint64_t word = 0;
    for (int i = 0; i < 2; i++) {
        double uniform = (double)(random >> (32 * i) & 0xffffffffu) * 0x1p-31 - 1;
        float value = (float)(t->middle + t->reach * uniform);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        word |= (uint64_t)bits << (32 * i);
    }
    return word;
}

static uint64_t word_of(const tensor *t, uint64_t random)
{
    switch (t->content) {
    case WORDS:
        return (random & t->keep) + t->add;
    case E4M3: { /* where the low seven bits of a byte are ones, its lowest becomes 0 */
        uint64_t nan = (random & 0x7f * each_byte) + each_byte;
        return random - (nan >> 7 & each_byte);
    }
    default:
        return two_reals(t, random);
    }
}

static void fill_words(const tensor *t, int64_t byte, int64_t bytes, unsigned char *out)
{
    const tensor local = *t; /* which `out` cannot alias */
    uint64_t first = (uint64_t)byte / 8;
    for (int64_t i = 0; i < bytes; i += 8) {
        uint64_t word = htole64(word_of(&local, random_bits(local.key, first + (uint64_t)i / 8)));
        if (bytes - i >= 8)
            memcpy(out + i, &word, 8);
        else
            memcpy(out + i, &word, (size_t)(bytes - i));
    }
}

/* Rows of experts: the first places of a shuffled pack, which is put in order after each row. */
static void fill_experts(const tensor *t, int64_t byte, int64_t bytes, unsigned char *out)
{
    const int64_t k = t->granule / 8;
    int64_t *pack = dsv4_alloc((size_t)t->choices, sizeof *pack);
    int64_t *swapped = dsv4_alloc((size_t)k, sizeof *swapped);
    for (int64_t i = 0; i < t->choices; i++)
        pack[i] = i;
    for (int64_t at = 0; at < bytes; at += t->granule) {
        for (int64_t i = 0; i < k; i++) {
            uint64_t random = random_bits(t->key, (uint64_t)((byte + at) / 8 + i)) >> 32;
            int64_t j = i + (int64_t)(random * (uint64_t)(t->choices - i) >> 32);
            int64_t drawn = pack[j];
            pack[j] = pack[i];
            pack[i] = drawn;
            swapped[i] = j;
            uint64_t word = htole64((uint64_t)drawn);
            memcpy(out + at + 8 * i, &word, 8);
        }
        for (int64_t i = k - 1; i >= 0; i--) {
            int64_t drawn = pack[i];
            pack[i] = pack[swapped[i]];
            pack[swapped[i]] = drawn;
        }
    }
    free(pack);
    free(swapped);
}

/* Steps over the next piece of one tensor that fits into `room`: its bytes, or 0. */
static int64_t step(const synth *s, position *p, int64_t room)
{
    if (p->tensor == s->count)
        return 0;
    const tensor *t = &s->tensors[p->tensor];
    int64_t rest = t->bytes - p->byte;
    if (rest > room) {
        room -= room % t->granule;
        p->byte += room;
        return room;
    }
    *p = (position){p->tensor + 1, 0};
    return rest;
}

/* The next batch: its bytes, or 0 when all is given away or something went wrong. */
static int64_t take(synth *s, position *start)
{
    int64_t total = 0, bytes = 0;
    pthread_mutex_lock(&s->lock);
    *start = s->next;
    if (s->problem == 0)
        do {
            bytes = step(s, &s->next, BATCH - total);
            total += bytes;
        } while (bytes > 0);
    pthread_mutex_unlock(&s->lock);
    return total;
}

static void fill(const synth *s, position p, int64_t total, unsigned char *out)
{
    for (int64_t done = 0; done < total;) {
        const position piece = p;
        const tensor *t = &s->tensors[piece.tensor];
        int64_t bytes = step(s, &p, BATCH - done);
        if (t->content == EXPERTS)
            fill_experts(t, piece.byte, bytes, out + done);
        else
            fill_words(t, piece.byte, bytes, out + done);
        done += bytes;
    }
}

/* 0, or an errno. */
static int write_all(int fd, const void *data, int64_t size, int64_t offset)
{
    const char *from = data;
    while (size > 0) {
        ssize_t written = pwrite(fd, from, (size_t)size, offset);
        if (written < 0 && errno != EINTR)
            return errno;
        if (written > 0) {
            from += written;
            size -= written;
            offset += written;
        }
    }
    return 0;
}

static void *work(void *context)
{
    synth *s = context;
    unsigned char *batch = dsv4_alloc(BATCH, 1);
    position start;
    for (int64_t bytes; (bytes = take(s, &start)) > 0;) {
        fill(s, start, bytes, batch);
        int64_t offset = s->tensors[start.tensor].offset + start.byte;
        int problem = write_all(s->file, batch, bytes, (int64_t)s->header_size + offset);
        if (problem != 0) {
            pthread_mutex_lock(&s->lock);
            s->problem = problem;
            pthread_mutex_unlock(&s->lock);
        }
    }
    free(batch);
    return NULL;
}

/* Fewer threads than asked for, down to this one alone, make the same bytes. */
static int write_payload(synth *s)
{
    pthread_t threads[MAX_THREADS];
    int started = 0;
    while (started < s->arguments->threads - 1 &&
           pthread_create(&threads[started], NULL, work, s) == 0)
        started++;
    work(s);
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    return s->problem;
}

/* ---- the directory ---- */

static const char config_name[] = "config.json", config_later[] = "config.json.part",
                  weights_name[] = "model.safetensors";

/* A run that fails or is interrupted leaves nothing behind. One process writes one checkpoint, so
 * one place is enough. */
static struct {
    int directory;
    const char *made; /* the directory itself, if it is new */
} unfinished = {-1, NULL};

static void remove_unfinished(void)
{
    unlinkat(unfinished.directory, config_name, 0);
    unlinkat(unfinished.directory, config_later, 0);
    unlinkat(unfinished.directory, weights_name, 0);
    if (unfinished.made != NULL)
        rmdir(unfinished.made);
}

static void stop(int signal_number)
{
    remove_unfinished();
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void remove_when_interrupted(const synth *s)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGXCPU};
    unfinished.directory = s->directory;
    unfinished.made = s->made_directory ? s->arguments->dir : NULL;
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        if (signal(signals[i], stop) == SIG_IGN)
            signal(signals[i], SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* the write then fails, and says why */
}

static bool is_empty(const char *dir)
{
    DIR *stream = opendir(dir);
    if (stream == NULL)
        return false;
    int entries = 0;
    for (const struct dirent *entry; (entry = readdir(stream)) != NULL;)
        entries += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(stream);
    return entries == 0;
}

static int open_directory(synth *s, dsv4_error *err)
{
    const char *dir = s->arguments->dir;
    s->made_directory = mkdir(dir, 0777) == 0;
    if (!s->made_directory && errno != EEXIST)
        return dsv4_fail(err, "%s: cannot create: %s", dir, strerror(errno));
    s->directory = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->directory < 0)
        return dsv4_fail(err, "%s: %s", dir, strerror(errno));
    if (!s->made_directory && !is_empty(dir))
        return dsv4_fail(err, "%s: not empty: expected a new directory", dir);
    remove_when_interrupted(s);
    return 0;
}

static int check_space(const synth *s, dsv4_error *err)
{
    struct statvfs system;
    uint64_t needed = s->header_size + (uint64_t)s->bytes;
    if (s->arguments->sparse || fstatvfs(s->directory, &system) != 0)
        return 0;
    uint64_t free_bytes = (uint64_t)system.f_bavail * system.f_frsize;
    if (needed <= free_bytes)
        return 0;
    return dsv4_fail(err, "%s: not enough space: expected %" PRIu64 " bytes, got %" PRIu64,
                     s->arguments->dir, needed, free_bytes);
}

static int fail_at(const synth *s, const char *name, int problem, dsv4_error *err)
{
    return dsv4_fail(err, "%s/%s: cannot write: %s", s->arguments->dir, name, strerror(problem));
}

static int create(const synth *s, const char *name)
{
    return openat(s->directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
}

static int write_config(const synth *s, dsv4_error *err)
{
    int fd = create(s, config_name);
    FILE *file = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (file == NULL)
        return fail_at(s, config_name, errno, err);
    fprintf(file, "%s\n", s->json);
    bool bad = ferror(file) != 0;
    return fclose(file) != 0 || bad ? fail_at(s, config_name, errno, err) : 0;
}

static int start_weights(synth *s, dsv4_error *err)
{
    s->file = create(s, weights_name);
    int problem = s->file < 0 ? errno : write_all(s->file, s->header, (int64_t)s->header_size, 0);
    if (problem == 0 && ftruncate(s->file, (int64_t)s->header_size + s->bytes) != 0)
        problem = errno;
    return problem != 0 ? fail_at(s, weights_name, problem, err) : 0;
}

/* The rules of the layout are those that a released run opens a model by. */
static int check_layout(const synth *s, dsv4_error *err)
{
    dsv4_model model;
    dsv4_error inner = {0};
    if (dsv4_model_open(&model, s->arguments->dir, DSV4_RELEASED,
                        s->config.num_nextn_predict_layers > 0, &inner) != 0)
        return dsv4_fail(err, "%s: not possible in the released layout: %s", s->arguments->geometry,
                         inner.text);
    dsv4_model_close(&model);
    return 0;
}

/* While the weights are written there is no config.json, so that nobody takes the directory for a
 * checkpoint, whatever ends the run. */
static int finish_weights(synth *s, dsv4_error *err)
{
    if (renameat(s->directory, config_name, s->directory, config_later) != 0)
        return fail_at(s, config_later, errno, err);
    int problem = write_payload(s);
    if (problem != 0)
        return fail_at(s, weights_name, problem, err);
    if (renameat(s->directory, config_later, s->directory, config_name) != 0)
        return fail_at(s, config_name, errno, err);
    return 0;
}

static int write_checkpoint(synth *s, dsv4_error *err)
{
    int status = -1;
    if (check_space(s, err) == 0 && write_config(s, err) == 0 && start_weights(s, err) == 0 &&
        check_layout(s, err) == 0)
        status = s->arguments->sparse ? 0 : finish_weights(s, err);
    if (s->file >= 0 && close(s->file) != 0)
        status = fail_at(s, weights_name, errno, err);
    if (status != 0)
        remove_unfinished();
    return status;
}

/* ---- the command ---- */

static void print_lowered(const char *key, int64_t from, int64_t to, const char *limit)
{
    if (to < from)
        fprintf(stderr, "dsv4 synth: %s: %" PRId64 " lowered to %" PRId64 ", %s\n", key, from, to,
                limit);
}

static void report(const synth *s, double elapsed)
{
    const dsv4_config *from = &s->geometry, *to = &s->config;
    print_lowered("num_experts_per_tok", from->num_experts_per_tok, to->num_experts_per_tok,
                  "the number of experts");
    if (s->arguments->hash_layers < 0)
        print_lowered("num_hash_layers", from->num_hash_layers, to->num_hash_layers,
                      "the number of layers");
    printf("%s: %" PRId64 " tensors, %" PRId64 " bytes%s, %.1f seconds\n", s->arguments->dir,
           s->count, s->bytes, s->arguments->sparse ? " of zeros" : "", elapsed);
}

static int run(const synth_arguments *arguments, dsv4_error *err)
{
    double begin = dsv4_now();
    synth s = {.arguments = arguments, .directory = -1, .file = -1,
               .lock = PTHREAD_MUTEX_INITIALIZER};
    int status = make_config(&s, err);
    if (status == 0) {
        plan(&s);
        status = open_directory(&s, err);
    }
    if (status == 0)
        status = write_checkpoint(&s, err);
    unfinished.directory = -1;
    unfinished.made = NULL;
    if (status == 0)
        report(&s, dsv4_now() - begin);
    if (s.directory >= 0)
        close(s.directory);
    free(s.header);
    free(s.tensors);
    free(s.json);
    dsv4_config_free(&s.geometry);
    dsv4_config_free(&s.config);
    return status;
}

static const char documentation[] =
    "Writes a checkpoint of random weights in the released layout: config.json and "
    "model.safetensors, in the new directory OUT.\v"
    "The same options and seed give the same bytes on every machine. The weights are such that "
    "activations keep their size from layer to layer; the text that such a model writes means "
    "nothing.\n"
    "\n"
    "With --layers or --ratios there are no MTP layers unless --mtp asks for one, and the ratios "
    "of the geometry are repeated where it has fewer layers. Where there are fewer experts than "
    "num_experts_per_tok, or fewer layers than num_hash_layers, these are lowered.\n"
    "\n"
    "Example: dsv4 synth model/ --geometry flash --ratios 0,4,128 --experts 8\n"
    "\n"
    "Exit codes: 0 good, 2 cannot run; then nothing is left behind.";

enum {
    KEY_GEOMETRY = 256, KEY_LAYERS, KEY_RATIOS, KEY_HASH_LAYERS, KEY_EXPERTS, KEY_MTP, KEY_SEED,
    KEY_SPARSE, KEY_THREADS
};

static const struct argp_option options[] = {
    {"geometry", KEY_GEOMETRY, "NAME", 0, "flash, pro, or the path of a config.json", 1},
    {"layers", KEY_LAYERS, "N", 0, "So many layers", 1},
    {"ratios", KEY_RATIOS, "LIST", 0, "compress_ratios, one per layer: 0,4,128; with --mtp maybe "
     "one more", 1},
    {"hash-layers", KEY_HASH_LAYERS, "N", 0, "num_hash_layers", 1},
    {"experts", KEY_EXPERTS, "N", 0, "n_routed_experts", 1},
    {"mtp", KEY_MTP, NULL, 0, "An MTP layer too", 1},
    {"seed", KEY_SEED, "N", 0, "Of the random numbers, default 0", 2},
    {"sparse", KEY_SPARSE, NULL, 0, "No weights: zeros that take no space on the disk", 2},
    {"threads", KEY_THREADS, "N", 0, "Default: as many as there are processors", 2},
    {0},
};

static bool is_number(const char *text, uint64_t most, uint64_t *out)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    *out = number;
    return *text >= '0' && *text <= '9' && *end == '\0' && errno == 0 && number <= most;
}

static int64_t parse_number(const char *option, const char *text, int64_t least, int64_t most,
                            struct argp_state *state)
{
    uint64_t number;
    if (!is_number(text, (uint64_t)most, &number) || (int64_t)number < least)
        argp_error(state, "%s: expected a number from %" PRId64 " to %" PRId64 ", got '%s'", option,
                   least, most, text);
    return (int64_t)number;
}

static uint64_t parse_seed(const char *text, struct argp_state *state)
{
    uint64_t seed;
    if (!is_number(text, UINT64_MAX, &seed))
        argp_error(state, "--seed: expected a number below 2^64, got '%s'", text);
    return seed;
}

static void parse_ratios(synth_arguments *arguments, const char *text, struct argp_state *state)
{
    free(arguments->ratios);
    arguments->ratios = dsv4_alloc(MAX_LAYERS + 1, sizeof *arguments->ratios);
    arguments->ratio_count = 0;
    for (const char *at = text; at != NULL; at = strchr(at, ',')) {
        at += at > text; /* the comma */
        char item[24];
        uint64_t ratio;
        int length = (int)strcspn(at, ",");
        snprintf(item, sizeof item, "%.*s", length, at);
        if (!is_number(item, 1 << 24, &ratio) || (ratio > 0 && ratio < 4))
            argp_error(state, "--ratios: expected numbers, 0, 4 or larger, with commas between "
                       "them, got '%s'", text);
        if (arguments->ratio_count > MAX_LAYERS)
            argp_error(state, "--ratios: expected at most %d entries", MAX_LAYERS + 1);
        arguments->ratios[arguments->ratio_count++] = (int64_t)ratio;
    }
}

static void check_arguments(const synth_arguments *arguments, struct argp_state *state)
{
    if (arguments->dir == NULL)
        argp_error(state, "expected OUT, a directory to write");
    if (arguments->geometry == NULL)
        argp_error(state, "expected --geometry: flash, pro or the path of a config.json");
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    synth_arguments *arguments = state->input;
    switch (key) {
    case KEY_GEOMETRY: arguments->geometry = text; return 0;
    case KEY_LAYERS:
        arguments->layers = parse_number("--layers", text, 1, MAX_LAYERS, state);
        return 0;
    case KEY_RATIOS: parse_ratios(arguments, text, state); return 0;
    case KEY_HASH_LAYERS:
        arguments->hash_layers = parse_number("--hash-layers", text, 0, MAX_LAYERS, state);
        return 0;
    case KEY_EXPERTS:
        arguments->experts = parse_number("--experts", text, 1, 65536, state);
        return 0;
    case KEY_MTP: arguments->mtp = true; return 0;
    case KEY_SEED: arguments->seed = parse_seed(text, state); return 0;
    case KEY_SPARSE: arguments->sparse = true; return 0;
    case KEY_THREADS:
        arguments->threads = (int)parse_number("--threads", text, 1, MAX_THREADS, state);
        return 0;
    case ARGP_KEY_ARG:
        if (arguments->dir != NULL)
            argp_error(state, "expected one OUT, got a second: '%s'", text);
        arguments->dir = text;
        return 0;
    case ARGP_KEY_END: check_arguments(arguments, state); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

int dsv4_synth_main(int argc, char **argv)
{
    const struct argp argp = {.options = options, .parser = parse_option, .args_doc = "OUT",
                              .doc = documentation};
    argp_err_exit_status = 2;
    int64_t processors = sysconf(_SC_NPROCESSORS_ONLN);
    synth_arguments arguments = {.hash_layers = -1};
    arguments.threads = (int)minimum(processors > 0 ? processors : 1, MAX_THREADS);
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    dsv4_error err = {0};
    int status = run(&arguments, &err);
    if (status != 0)
        fprintf(stderr, "dsv4 synth: %s\n", err.text);
    free(arguments.ratios);
    return status != 0 ? 2 : 0;
}
