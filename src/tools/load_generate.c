#include "tools/load_generate.h"

#include <inttypes.h>

#include "tools/bench.h"
#include "tools/tools.h"

enum { CLIENTS = 16, PIPELINE = 64, ERRORS_MAX = 10000 /* then loading ends */ };

status_t load_generate_check(const struct load_generate *generate, const struct load_file_options *file)
{
    const char *name = bench_record_option_named(&generate->records);
    if (generate->count == 0) {
        if (generate->clients || generate->pipeline)
            name = generate->clients ? "clients" : "pipeline";
        return name ? status_error(STATUS_INVALID, "--%s goes with --generate", name) : status_ok();
    }
    name = file->format   ? "--format"
           : file->prefix ? "--prefix"
           : file->sep    ? "--sep"
           : file->acked  ? "--acked"
                          : file->path;
    if (name)
        return status_error(STATUS_INVALID, "--generate: %.100s is for loading from a file", name);
    return status_ok();
}

static int finish(const struct bench_config *config, const struct bench_totals *totals, const status_t *s)
{
    uint64_t stored = totals->ops > totals->errors ? totals->ops - totals->errors : 0;
    if (!status_is_ok(s))
        fprintf(stderr, "kvasir load: %s\n", s->text);
    if (totals->errors)
        fprintf(stderr, "kvasir load: %" PRIu64 " errors, the first: %s\n", totals->errors,
                totals->error_text);
    else if (status_is_ok(s) && stored < config->keys)
        fprintf(stderr, "kvasir load: interrupted before the end\n");
    printf("stored %" PRIu64 " keys, %" PRIu64 " bytes in %.2f s\n", stored,
           totals->value_bytes + stored * BENCH_KEY_BYTES, totals->seconds);
    bool whole = status_is_ok(s) && stored == config->keys;
    return fflush(stdout) == 0 && whole ? TOOL_OK : TOOL_ERROR;
}

int load_generate(const char *connect, const struct load_generate *generate)
{
    static struct bench_totals totals; /* too large for a stack */
    struct bench_config config = {
        .connect = connect,
        .workload = "generate",
        .mix = {.insert = 1000},
        .order = BENCH_ORDER_SEQ,
        .insert_only = true,
        .clients = generate->clients ? generate->clients : CLIENTS,
        .pipeline = generate->pipeline ? generate->pipeline : PIPELINE,
        .threads = 1,
        .keys = generate->count,
        .generated = true,
        .errors_max = ERRORS_MAX,
        .pin = -1,
    };
    status_t s = bench_records_init(&config.records, &generate->records);
    if (!status_is_ok(&s)) {
        fprintf(stderr, "kvasir load: %s\n", s.text);
        return TOOL_ERROR;
    }
    config.sizes = config.records.sizes;
    bench_prepare_process(&config);
    s = bench_run(&config, "load", &totals);
    return finish(&config, &totals, &s);
}
