#include "tools/bench.h"

#include <errno.h>
#include <unistd.h>

#include "base/check.h"
#include "tools/progress.h"

static double us(uint64_t ns)
{
    return (double)ns / 1e3;
}

static double quantile_us(const struct histogram *h, double fraction)
{
    return us(histogram_quantile(h, fraction));
}

static void add_stats(struct bench_totals *totals, const struct bench_stats *stats)
{
    totals->ops += BENCH_LOAD(stats->ops);
    totals->errors += BENCH_LOAD(stats->errors);
    totals->nils += BENCH_LOAD(stats->nils);
    totals->wrong += BENCH_LOAD(stats->wrong);
    totals->value_bytes += BENCH_LOAD(stats->value_bytes);
    totals->range_keys += BENCH_LOAD(stats->range_keys);
    totals->beside_ops += BENCH_LOAD(stats->beside_ops);
    if (BENCH_LOAD(stats->behind_ns) > totals->behind_ns)
        totals->behind_ns = BENCH_LOAD(stats->behind_ns);
    histogram_merge(&totals->latency, &stats->latency);
}

void bench_totals_collect(struct bench_totals *totals, const struct bench_thread *threads, unsigned count,
                          bool with_warmup)
{
    memset(totals, 0, sizeof *totals);
    for (unsigned i = 0; i < count; i++) {
        const struct bench_thread *t = &threads[i];
        add_stats(totals, &t->stats);
        if (with_warmup) { /* the run goes on: its times and texts are not there yet */
            add_stats(totals, &t->warmup);
            continue;
        }
        if (t->config->generated) { /* what is wrong, is wrong in the warm-up too */
            totals->errors += BENCH_LOAD(t->warmup.errors);
            totals->nils += BENCH_LOAD(t->warmup.nils);
            totals->wrong += BENCH_LOAD(t->warmup.wrong);
        }
        double seconds =
            t->count_end_ns > t->count_start_ns ? (double)(t->count_end_ns - t->count_start_ns) / 1e9 : 0;
        if (seconds > totals->seconds)
            totals->seconds = seconds;
        if (totals->error_text == NULL && t->error_text[0])
            totals->error_text = t->error_text;
    }
    totals->ops_per_second = totals->seconds > 0 ? (double)totals->ops / totals->seconds : 0;
}

/* now - before, into *out. The counters may have been reset in between (end of the warm-up): then all of now
 * is new. */
static void histogram_since(struct histogram *out, const struct histogram *now,
                            const struct histogram *before)
{
    histogram_init(out);
    uint64_t count = 0;
    for (unsigned b = 0; b < HISTOGRAM_BUCKETS; b++) {
        uint64_t n = BENCH_LOAD(now->counts[b]), old = BENCH_LOAD(before->counts[b]);
        n = n > old ? n - old : 0;
        atomic_store_explicit(&out->counts[b], n, memory_order_relaxed);
        count += n;
    }
    atomic_store_explicit(&out->count, count, memory_order_relaxed);
    atomic_store_explicit(&out->max, BENCH_LOAD(now->max), memory_order_relaxed);
}

static void print_line(const struct bench_totals *now, const struct bench_totals *before, const char *phase,
                       double elapsed, double step, bool terminal, const struct bench_config *config)
{
    static struct histogram step_latency; /* main thread only; too large for a stack */
    histogram_since(&step_latency, &now->latency, &before->latency);
    char behind[64] = "";
    uint64_t ops = BENCH_LOAD(step_latency.count);
    fputs(terminal ? "\r\033[K" : "", stderr);
    if (config->generated && config->insert_only) {
        progress_bar(stderr, (double)now->ops / (double)config->keys, now->ops,
                     (double)(now->ops - before->ops) / step, (double)now->value_bytes / 1e6 / elapsed,
                     elapsed);
        fputs(terminal ? "" : "\n", stderr);
        fflush(stderr);
        return;
    }
    if (config->rate > 0 && now->behind_ns > 100000000)
        snprintf(behind, sizeof behind, "  BEHIND by %.1f s: the rate is not reached",
                 (double)now->behind_ns / 1e9);
    fprintf(stderr, "%s %4.0f s  %11.0f ops/s  p50 %8.1f us  p99 %9.1f us%s%s", phase, elapsed,
            (double)ops / step, quantile_us(&step_latency, 0.5), quantile_us(&step_latency, 0.99), behind,
            terminal ? "" : "\n");
    fflush(stderr);
}

void bench_report_progress(struct bench_thread *threads, unsigned count, const char *phase,
                           _Atomic unsigned *running)
{
    static struct bench_totals totals[2]; /* main thread only; too large for a stack */
    bool terminal = isatty(STDERR_FILENO), printed = false;
    uint64_t start_ns = bench_now_ns(), last_ns = start_ns;
    unsigned turn = 0;
    memset(totals, 0, sizeof totals);
    /* relaxed: only says when to stop looking; results are read after pthread_join */
    while (atomic_load_explicit(running, memory_order_relaxed) > 0) {
        struct timespec nap = {0, 20000000};
        nanosleep(&nap, NULL);
        uint64_t now_ns = bench_now_ns();
        if (now_ns - last_ns < 1000000000)
            continue;
        turn ^= 1;
        bench_totals_collect(&totals[turn], threads, count, true);
        print_line(&totals[turn], &totals[turn ^ 1], phase, (double)(now_ns - start_ns) / 1e9,
                   (double)(now_ns - last_ns) / 1e9, terminal, threads[0].config);
        printed = true;
        last_ns = now_ns;
    }
    if (terminal && printed)
        fputs("\r\033[K", stderr);
}

void bench_report_table(FILE *out, const struct bench_config *config, const struct bench_totals *t)
{
    const struct histogram *h = &t->latency;
    fprintf(out, "%s, %llu keys, %llu client%s, pipeline %llu", config->workload,
            (unsigned long long)config->keys, (unsigned long long)config->clients,
            config->clients == 1 ? "" : "s", (unsigned long long)config->pipeline);
    if (config->rate > 0)
        fprintf(out, ", open-loop at %.0f/s", config->rate);
    fprintf(out, ": %llu operations in %.2f s\n", (unsigned long long)t->ops, t->seconds);
    fprintf(out, "  throughput   %14.0f ops/s\n", t->ops_per_second);
    if (config->generated)
        fprintf(out, "  values       %14.1f MB/s\n",
                t->seconds > 0 ? (double)t->value_bytes / 1e6 / t->seconds : 0);
    if (t->range_keys)
        fprintf(out, "  keys read    %14.0f keys/s\n", (double)t->range_keys / t->seconds);
    if (config->beside)
        fprintf(out, "  SETs beside  %14.0f ops/s\n",
                t->seconds > 0 ? (double)t->beside_ops / t->seconds : 0);
    fprintf(out, "  latency  avg %14.1f us\n", histogram_mean(h) / 1e3);
    fprintf(out, "           p50 %14.1f us\n", quantile_us(h, 0.5));
    fprintf(out, "           p90 %14.1f us\n", quantile_us(h, 0.9));
    fprintf(out, "           p99 %14.1f us\n", quantile_us(h, 0.99));
    fprintf(out, "         p99.9 %14.1f us\n", quantile_us(h, 0.999));
    fprintf(out, "           max %14.1f us\n", us(BENCH_LOAD(h->max)));
    if (t->nils)
        fprintf(out, "  absent keys  %14llu  (%s stores them first)\n", (unsigned long long)t->nils,
                config->generated ? "load --generate" : "--load");
    if (config->verify)
        fprintf(out, "  wrong values %14llu\n", (unsigned long long)t->wrong);
    if (t->errors)
        fprintf(out, "  errors       %14llu  %sfirst: %s\n", (unsigned long long)t->errors,
                config->generated ? "(with the warm-up's) " : "", t->error_text);
    if (config->rate > 0 && t->behind_ns > 100000000)
        fprintf(out, "  BEHIND by %.1f s at the end: the server did not keep up with the rate\n",
                (double)t->behind_ns / 1e9);
}

/* JSON text, quotes included. */
static void print_text(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 32 || c > 126)
            fprintf(out, "\\u%04x", c);
        else
            fputc(c, out);
    }
    fputc('"', out);
}

void bench_report_json(FILE *out, const struct bench_config *config, const struct bench_totals *t)
{
    static const char *const protocols[] = {"resp", "memcached", "memcached-meta"};
    static const char *const dists[] = {"uniform", "zipf", "latest"};
    const struct histogram *h = &t->latency;
    fputs("{\"connect\":", out);
    print_text(out, config->connect);
    fputs(",\"workload\":", out);
    print_text(out, config->workload);
    fprintf(out,
            ",\"protocol\":\"%s\",\"dist\":\"%s\",\"clients\":%llu,\"pipeline\":%llu,\"threads\":%llu,"
            "\"keys\":%llu,"
            "\"value_size_min\":%u,\"value_size_max\":%u,\"range_limit\":%llu,\"rate\":%.1f,\"warmup_"
            "seconds\":%.3f,"
            "\"verify\":%s,\"pin\":%lld,\"seed\":%llu",
            protocols[config->protocol], dists[config->dist], (unsigned long long)config->clients,
            (unsigned long long)config->pipeline, (unsigned long long)config->threads,
            (unsigned long long)config->keys, config->sizes.min, config->sizes.max,
            (unsigned long long)config->range_limit, config->rate, config->warmup_seconds,
            config->verify ? "true" : "false", (long long)config->pin,
            (unsigned long long)(config->generated ? config->records.seed : config->seed));
    fprintf(out, ",\"ops\":%llu,\"seconds\":%.6f,\"ops_per_second\":%.1f", (unsigned long long)t->ops,
            t->seconds, t->ops_per_second);
    fprintf(out, ",\"value_bytes\":%llu", (unsigned long long)t->value_bytes);
    fprintf(out, ",\"range_keys\":%llu,\"range_keys_per_second\":%.1f", (unsigned long long)t->range_keys,
            t->seconds > 0 ? (double)t->range_keys / t->seconds : 0);
    fprintf(out, ",\"beside_ops_per_second\":%.1f", t->seconds > 0 ? (double)t->beside_ops / t->seconds : 0);
    fprintf(
        out,
        ",\"latency_us\":{\"mean\":%.3f,\"p50\":%.3f,\"p90\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f}",
        histogram_mean(h) / 1e3, quantile_us(h, 0.5), quantile_us(h, 0.9), quantile_us(h, 0.99),
        quantile_us(h, 0.999), us(BENCH_LOAD(h->max)));
    fprintf(out, ",\"errors\":%llu,\"nils\":%llu,\"wrong\":%llu,\"behind_ms\":%.1f,\"first_error\":",
            (unsigned long long)t->errors, (unsigned long long)t->nils, (unsigned long long)t->wrong,
            (double)t->behind_ns / 1e6);
    if (t->error_text)
        print_text(out, t->error_text);
    else
        fputs("null", out);
    fputs("}\n", out);
}
