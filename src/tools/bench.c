/* kvasir bench: options, threads, phases (load, run). See bench.h for the parts. */
#include "tools/bench.h"

#include "base/parse.h"
#include "tools/options.h"
#include "tools/tools.h"

static const char usage[] = "bench [OPTIONS]";
static const char about[] =
    "Load generator for kvasir and any other server of the Redis protocol (or memcached's). Key i is "
    "key:%012d.\n"
    "Workloads: get, set (of the keys 0..N-1), insert (each of the keys once, then the end), mixed:R (share "
    "of reads R:\n"
    "0.9 or 90%), range (RANGE pages in order), ycsb-a..f. Reads want the keys there: add --load the first "
    "time.\n"
    "Of the records that `kvasir load --generate N` made, named by the same --keys N, --seed, --min-size, "
    "--max-size, --key:\n"
    "cold (GETs; a missing one is an error, and with --verify one of other content), overwrite (SETs of "
    "fresh "
    "content\n"
    "that verifies as well).\n"
    "Without --rate a client sends --pipeline requests, awaits their replies, and sends the next. With "
    "--rate requests\n"
    "start on schedule and latency counts from there. Exit code 1 when a value was wrong, or with cold and "
    "overwrite\n"
    "anything else was; 2 when nothing but errors came back, or no run was possible.";

enum { VALUE_BYTES_MAX = 1 << 26, LOAD_PIPELINE = 200, LOAD_CLIENTS = 8 };

static status_t parse_value_size(const char *text, struct bench_sizes *sizes)
{
    const char *dash = strchr(text, '-');
    uint64_t min, max;
    size_t len = dash ? (size_t)(dash - text) : strlen(text);
    bool fine = parse_size(slice_make(text, len), &min);
    max = min;
    if (fine && dash)
        fine = parse_size(slice_make(dash + 1, strlen(dash + 1)), &max);
    if (!fine || min > max || max > VALUE_BYTES_MAX)
        return status_error(STATUS_INVALID, "--value-size: '%.60s' is not A or A-B, sizes up to 64M", text);
    *sizes = (struct bench_sizes){(uint32_t)min, (uint32_t)max};
    return status_ok();
}

static bool parse_share(const char *text, unsigned *thousandths)
{
    size_t len = strlen(text);
    bool percent = len && text[len - 1] == '%';
    double v;
    if (!parse_double(slice_make(text, len - percent), &v) || v < 0)
        return false;
    if (percent)
        v /= 100;
    if (!(v <= 1))
        return false;
    *thousandths = (unsigned)(v * 1000 + 0.5);
    return true;
}

/* Sets mix, insert_only, generated, and the distribution where the workload names one and the user did not
 * (dist -1). */
static status_t parse_workload(struct bench_config *config, int dist)
{
    static const struct {
        const char *name;
        struct bench_mix mix;
        enum bench_dist dist;
    } table[] = {
        {"get", {.get = 1000}, BENCH_UNIFORM},
        {"set", {.set = 1000}, BENCH_UNIFORM},
        {"insert", {.insert = 1000}, BENCH_UNIFORM},
        {"range", {.range = 1000}, BENCH_UNIFORM},
        {"cold", {.get = 1000}, BENCH_UNIFORM},
        {"overwrite", {.set = 1000}, BENCH_UNIFORM},
        {"ycsb-a", {.get = 500, .set = 500}, BENCH_ZIPF},
        {"ycsb-b", {.get = 950, .set = 50}, BENCH_ZIPF},
        {"ycsb-c", {.get = 1000}, BENCH_ZIPF},
        {"ycsb-d", {.get = 950, .insert = 50}, BENCH_LATEST},
        {"ycsb-e", {.range = 950, .insert = 50}, BENCH_ZIPF},
        {"ycsb-f", {.get = 500, .rmw = 500}, BENCH_ZIPF},
    };
    const char *w = config->workload;
    for (unsigned i = 0; i < sizeof table / sizeof *table; i++) {
        if (strcmp(w, table[i].name) != 0)
            continue;
        config->mix = table[i].mix;
        config->dist = dist >= 0 ? (enum bench_dist)dist : table[i].dist;
        config->insert_only = config->mix.insert == 1000;
        config->generated = strcmp(w, "cold") == 0 || strcmp(w, "overwrite") == 0;
        if (config->mix.range != 1000)
            config->range_limit = 0;
        return status_ok();
    }
    if (strncmp(w, "mixed:", 6) != 0 || !parse_share(w + 6, &config->mix.get))
        return status_error(STATUS_INVALID,
                            "--workload: '%.60s' is not get, set, insert, mixed:R (share of reads, as 0.9 "
                            "or 90%%), range, cold, overwrite, or ycsb-a..f",
                            w);
    config->mix.set = 1000 - config->mix.get;
    config->dist = dist >= 0 ? (enum bench_dist)dist : BENCH_UNIFORM;
    return status_ok();
}

/* Sizes, and which records. --seed is that of the records if they are generated, else of the choice of keys,
 * whose default is the time. */
static status_t parse_data(struct bench_config *config, const char *value_size,
                           const struct bench_record_options *options)
{
    config->seed = bench_now_ns();
    if (!config->generated) {
        struct bench_record_options others = *options;
        others.seed = UINT64_MAX;
        const char *name = bench_record_option_named(&others);
        if (name)
            return status_error(STATUS_INVALID, "--%s goes with --workload cold and overwrite", name);
        if (options->seed != UINT64_MAX)
            config->seed = options->seed;
        return parse_value_size(value_size ? value_size : "64", &config->sizes);
    }
    if (value_size)
        return status_error(STATUS_INVALID, "--value-size: --workload %s has --min-size and --max-size",
                            config->workload);
    TRY(bench_records_init(&config->records, options));
    if (config->protocol != BENCH_RESP && config->records.key == BENCH_KEY_UUID)
        return status_error(STATUS_INVALID, "--key: memcached's keys are text; use --key counter");
    config->sizes = config->records.sizes;
    return status_ok();
}

static status_t parse_rest(struct bench_config *config, double seconds)
{
    if (config->protocol != BENCH_RESP && config->mix.range)
        return status_error(STATUS_INVALID, "--protocol: memcached knows no ranges");
    if (config->threads > config->clients)
        config->threads = config->clients;
    config->seconds = seconds > 0 ? seconds : config->insert_only ? 0 : 10;
    config->warmup_seconds = config->insert_only ? 0 : config->seconds >= 3 ? 1 : config->seconds / 5;
    if (config->beside && (config->rate <= 0 || config->protocol != BENCH_RESP))
        return status_error(STATUS_INVALID, "--beside goes with --rate and the Redis protocol");
    if (config->rate > 0 && config->pipeline > BENCH_OPEN_LOOP_WINDOW)
        config->pipeline = BENCH_OPEN_LOOP_WINDOW;
    return status_ok();
}

static status_t load_keys(const struct bench_config *config, struct bench_totals *totals)
{
    struct bench_config load = *config;
    load.workload = "insert";
    load.mix = (struct bench_mix){.insert = 1000};
    load.insert_only = true;
    load.dist = BENCH_UNIFORM;
    load.seconds = load.warmup_seconds = load.rate = 0;
    load.beside = 0;
    load.pipeline = LOAD_PIPELINE;
    load.clients = LOAD_CLIENTS;
    load.threads = 1;
    TRY(bench_run(&load, "load", totals));
    if (totals->errors)
        return status_error(STATUS_INVALID, "loading: %llu errors, the first: %s",
                            (unsigned long long)totals->errors, totals->error_text);
    fprintf(stderr, "loaded %llu keys in %.2f s (%.0f/s)\n", (unsigned long long)totals->ops, totals->seconds,
            totals->ops_per_second);
    return status_ok();
}

static int bench(const struct bench_config *config)
{
    static struct bench_totals totals;
    status_t s = status_ok();
    bench_prepare_process(config);
    if (config->load)
        s = load_keys(config, &totals);
    if (status_is_ok(&s))
        s = bench_run(config, config->workload, &totals);
    if (!status_is_ok(&s)) {
        fprintf(stderr, "kvasir bench: %s\n", s.text);
        return TOOL_ERROR;
    }
    if (config->json)
        bench_report_json(stdout, config, &totals);
    else
        bench_report_table(stdout, config, &totals);
    if (fflush(stdout) != 0)
        return TOOL_ERROR;
    if (config->json && totals.errors)
        fprintf(stderr, "kvasir bench: %llu errors, the first: %s\n", (unsigned long long)totals.errors,
                totals.error_text);
    if (totals.wrong || (config->generated && totals.errors))
        return TOOL_WRONG;
    return totals.errors && totals.errors >= totals.ops ? TOOL_ERROR : TOOL_OK;
}

int tool_bench(int argc, char **argv)
{
    struct bench_config config = {.connect = TOOL_CONNECT_DEFAULT,
                                  .workload = "get",
                                  .clients = 50,
                                  .pipeline = 1,
                                  .threads = 1,
                                  .keys = 1000000,
                                  .range_limit = 1000};
    struct bench_record_options records = BENCH_RECORD_UNSET;
    const char *value_size = NULL;
    int protocol = BENCH_RESP, dist = -1, order = BENCH_ORDER_RANDOM, rest;
    uint64_t pin = UINT64_MAX;
    double seconds = 0;
    const struct option_spec specs[] = {
        TOOL_CONNECT_OPTIONS(&config.connect),
        {"workload", OPTION_TEXT, &config.workload, "W", "see above (get)", 0, 0},
        {"clients", OPTION_U64, &config.clients, "N", "connections (50)", 1, 100000},
        {"pipeline", OPTION_U64, &config.pipeline, "N", "requests in flight per connection (1)", 1, 100000},
        {"threads", OPTION_U64, &config.threads, "N", "threads that share the connections (1)", 1, 64},
        {"keys", OPTION_U64, &config.keys, "N", "number of keys (1000000)", 1, 100000000000},
        {"value-size", OPTION_TEXT, &value_size, "A[-B]", "bytes of a value (64)", 0, 0},
        {"min-size", OPTION_SIZE, &records.min_bytes, "B", "of a generated record's value (1024)", 0, 0},
        {"max-size", OPTION_SIZE, &records.max_bytes, "B", "(4096; one of the two alone: all of that size)",
         0, 0},
        {"key", OPTION_CHOICE, &records.key, "uuid|counter", "of a generated record (uuid)", 0, 0},
        {"dist", OPTION_CHOICE, &dist, "uniform|zipf", "how keys are chosen (uniform; zipf for ycsb)", 0, 0},
        {"order", OPTION_CHOICE, &order, "random|seq", "of inserted keys (random)", 0, 0},
        {"range-limit", OPTION_U64, &config.range_limit, "N", "keys a page of the range workload (1000)", 1,
         1000000},
        {"seconds", OPTION_DOUBLE, &seconds, "S", "whole run, with 1 s of warm-up (10; insert: until done)",
         0, 1000000},
        {"rate", OPTION_DOUBLE, &config.rate, "OPS", "open-loop: this many requests a second in all", 0,
         1000000000},
        {"beside", OPTION_U64, &config.beside, "N",
         "with --rate: each thread has N more connections that saturate the server with pipelined SETs; "
         "counted apart",
         0, 1000},
        {"load", OPTION_FLAG, &config.load, NULL, "store the keys first", 0, 0},
        {"verify", OPTION_FLAG, &config.verify, NULL, "compare every value read with what belongs there", 0,
         0},
        {"protocol", OPTION_CHOICE, &protocol, "resp|memcached|memcached-meta",
         "what the server speaks (resp)", 0, 0},
        {"pin", OPTION_U64, &pin, "CPU", "run the first thread on this CPU, others on the next", 0, 1023},
        {"seed", OPTION_U64, &records.seed, "N",
         "of the choice of keys (the time); cold, overwrite: of the records (1)", 0, UINT64_MAX - 1},
        {"json", OPTION_FLAG, &config.json, NULL, "one JSON object on stdout instead of the table", 0, 0},
        {0},
    };
    int rc = options_begin("bench", usage, about, specs, argc, argv, 0, 0, &rest);
    if (rc >= 0)
        return rc;
    config.protocol = (enum bench_protocol)protocol;
    config.order = (enum bench_order)order;
    config.pin = pin == UINT64_MAX ? -1 : (int64_t)pin;
    status_t s = parse_workload(&config, dist);
    if (status_is_ok(&s))
        s = parse_data(&config, value_size, &records);
    if (status_is_ok(&s))
        s = parse_rest(&config, seconds);
    if (!status_is_ok(&s)) {
        fprintf(stderr, "kvasir bench: %s\n", s.text);
        return TOOL_ERROR;
    }
    return bench(&config);
}
