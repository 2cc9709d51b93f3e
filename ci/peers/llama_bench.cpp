// llama_bench MODEL THREADS REPACK CONTEXT STEP...: times llama.cpp on a model, one line of JSON a step.
//
//   prefill:N   N tokens in one call, no logits        decode:N   N tokens one by one, logits of each
//   depth:N     fills the context up to N tokens       clear      forgets all tokens
//   warm:N      as prefill and decode, not reported
//
// REPACK 0: weights as they are in the file, mapped. 1: rearranged for the processor while they are loaded.
// Token ids are random. "other" is how many processors' worth of time went to anything but this process.
#include "llama.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

static const int CHUNK = 512; // of a depth; a prefill is one call

static double now()
{
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds of all processors since the start, idle and waiting time aside, stolen time included.
static double busy()
{
    long long user = 0, nice = 0, system = 0, idle, wait, irq = 0, softirq = 0, steal = 0;
    FILE *file = fopen("/proc/stat", "r");
    if (file == nullptr)
        return 0;
    if (fscanf(file, "cpu %lld %lld %lld %lld %lld %lld %lld %lld", &user, &nice, &system, &idle, &wait, &irq,
               &softirq, &steal) != 8)
        user = nice = system = irq = softirq = steal = 0;
    fclose(file);
    return (double)(user + nice + system + irq + softirq + steal) / 100;
}

static double own()
{
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

struct Bench {
    llama_context *context;
    int vocabulary;
    int position = 0;
    std::mt19937 random{1};
};

// The next `count` tokens in one call; -> seconds.
static double advance(Bench &bench, int count, bool logits)
{
    llama_batch batch = llama_batch_init(count, 0, 1);
    batch.n_tokens = count;
    for (int i = 0; i < count; i++) {
        batch.token[i] = (llama_token)(bench.random() % (unsigned)bench.vocabulary);
        batch.pos[i] = bench.position + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = logits;
    }
    double began = now();
    int result = llama_decode(bench.context, batch);
    llama_synchronize(bench.context);
    double seconds = now() - began;
    llama_batch_free(batch);
    if (result != 0) {
        fprintf(stderr, "llama_bench: llama_decode says %d at position %d\n", result, bench.position);
        exit(2);
    }
    bench.position += count;
    return seconds;
}

static void clear(Bench &bench)
{
    llama_memory_clear(llama_get_memory(bench.context), true);
    bench.position = 0;
}

// `calls` calls of `tokens` tokens each.
static void measure(Bench &bench, const char *what, int tokens, int calls, bool logits)
{
    int depth = bench.position;
    std::vector<double> seconds;
    double busy_before = busy(), own_before = own(), began = now();
    for (int i = 0; i < calls; i++)
        seconds.push_back(advance(bench, tokens, logits));
    double other = (busy() - busy_before - (own() - own_before)) / (now() - began);
    std::sort(seconds.begin(), seconds.end());
    printf("{\"kind\": \"%s\", \"depth\": %d, \"tokens_per_call\": %d, \"calls\": %d, \"seconds\": %.6f, "
           "\"best_seconds\": %.6f, \"other\": %.3f}\n",
           what, depth, tokens, calls, seconds[seconds.size() / 2], seconds[0], std::max(0.0, other));
    fflush(stdout);
}

static void step(Bench &bench, const std::string &text)
{
    size_t colon = text.find(':');
    std::string what = text.substr(0, colon);
    int count = colon == std::string::npos ? 0 : atoi(text.c_str() + colon + 1);
    if (what == "clear") {
        clear(bench);
    } else if (what == "depth" && count > 0) {
        while (bench.position < count)
            advance(bench, std::min(CHUNK, count - bench.position), false);
    } else if (what == "prefill" && count > 0) {
        measure(bench, "prefill", count, 1, false);
    } else if (what == "decode" && count > 0) {
        measure(bench, "decode", 1, count, true);
    } else if (what == "warm" && count > 0) {
        advance(bench, count, false);
        advance(bench, 1, true);
    } else {
        fprintf(stderr, "llama_bench: expected prefill:N, decode:N, depth:N, warm:N or clear, got '%s'\n",
                text.c_str());
        exit(2);
    }
}

static void warnings(ggml_log_level level, const char *text, void *)
{
    if (level >= GGML_LOG_LEVEL_WARN && level != GGML_LOG_LEVEL_CONT)
        fputs(text, stderr);
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "usage: llama_bench MODEL THREADS REPACK CONTEXT STEP...\n");
        return 2;
    }
    llama_log_set(warnings, nullptr);
    llama_backend_init();

    llama_model_params model_params = llama_model_default_params();
    model_params.use_extra_bufts = atoi(argv[3]) != 0;
    if (model_params.use_extra_bufts)
        model_params.load_mode = LLAMA_LOAD_MODE_NONE; // they are rearranged in any case
    llama_model *model = llama_model_load_from_file(argv[1], model_params);
    if (model == nullptr)
        return 2;

    llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t)atoi(argv[4]);
    params.n_batch = 2048;
    params.n_ubatch = 512;
    params.swa_full = false; // as its own programs have it: no more of the window's cache than the window
    params.n_threads = params.n_threads_batch = atoi(argv[2]);
    Bench bench;
    bench.context = llama_init_from_model(model, params);
    bench.vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    if (bench.context == nullptr)
        return 2;
    for (int i = 5; i < argc; i++)
        step(bench, argv[i]);
    llama_free(bench.context);
    llama_model_free(model);
    return 0;
}
