#include "server/info.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/check.h"
#include "server/commands.h"
#include "server/save.h"
#include "server/server.h"
#include "server/worker.h"
#include "sys/clock.h"
#include "sys/memory.h"

/* ---- sums over the workers ---- */

enum counter { /* those that CONFIG RESETSTAT sets back */
               COUNTER_ACCEPTED,
               COUNTER_OPERATIONS,
               COUNTER_HITS,
               COUNTER_MISSES,
               COUNTER_ERRORS,
               COUNTER_INPUT,
               COUNTER_OUTPUT,
               COUNTER_REFUSED,
               COUNTERS,
};

struct totals {
    uint64_t counters[COUNTERS];
    uint64_t held, parked, connections;
    uint64_t turns, turns_busy, system_calls;
    uint64_t retries, reads, read_turns;
    uint64_t input_bytes, pool_bytes; /* memory */
    uint64_t calls[WORKER_COMMANDS_MAX];
    uint64_t rejected[WORKER_COMMANDS_MAX];
    uint64_t failed[WORKER_COMMANDS_MAX];
    uint64_t errors[REPLY_ERROR_KINDS];
};

/* The totals at the last CONFIG RESETSTAT. */
struct info_base {
    struct totals totals;
};

static void add_up(struct server *server, struct totals *t)
{
    memset(t, 0, sizeof *t);
    for (unsigned i = 0; i < server->worker_count; i++) {
        struct worker *w = server->workers[i];
        t->counters[COUNTER_ACCEPTED] += STAT_GET(w->stats.accepted);
        t->counters[COUNTER_OPERATIONS] += STAT_GET(w->stats.operations);
        t->counters[COUNTER_HITS] += STAT_GET(w->stats.hits);
        t->counters[COUNTER_MISSES] += STAT_GET(w->stats.misses);
        t->counters[COUNTER_ERRORS] += STAT_GET(w->stats.errors);
        t->counters[COUNTER_INPUT] += STAT_GET(w->stats.input_bytes);
        t->counters[COUNTER_OUTPUT] += STAT_GET(w->stats.output_bytes);
        t->counters[COUNTER_REFUSED] += STAT_GET(w->stats.refused);
        t->held += STAT_GET(w->stats.held);
        t->parked += STAT_GET(w->stats.parked);
        t->connections += STAT_GET(w->connections);
        t->turns_busy += STAT_GET(w->stats.turns_busy);
        t->retries += STAT_GET(w->stats.retries);
        t->reads += STAT_GET(w->stats.reads);
        t->read_turns += STAT_GET(w->stats.read_turns);
        t->turns += __atomic_load_n(&w->loop->stats.turns, __ATOMIC_RELAXED);
        t->system_calls += __atomic_load_n(&w->loop->stats.system_calls, __ATOMIC_RELAXED);
        t->input_bytes += STAT_GET(w->input_memory);
        t->pool_bytes += reply_pool_bytes(w->pool);
        for (unsigned c = 0; c < command_count; c++) {
            t->calls[c] += STAT_GET(w->stats.calls[c]);
            t->rejected[c] += STAT_GET(w->stats.rejected[c]);
            t->failed[c] += STAT_GET(w->stats.failed[c]);
        }
        for (unsigned k = 0; k < REPLY_ERROR_KINDS; k++)
            t->errors[k] += reply_pool_errors(w->pool, k);
    }
}

/* The base may be newer: another worker may have reset while these were added up. */
static void subtract(uint64_t *from, const uint64_t *base, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        from[i] = from[i] > base[i] ? from[i] - base[i] : 0;
}

static void subtract_base(struct server *server, struct totals *t)
{
    pthread_mutex_lock(&server->registry_lock);
    if (server->info_base) {
        const struct totals *base = &server->info_base->totals;
        subtract(t->counters, base->counters, COUNTERS);
        subtract(t->calls, base->calls, command_count);
        subtract(t->rejected, base->rejected, command_count);
        subtract(t->failed, base->failed, command_count);
        subtract(t->errors, base->errors, REPLY_ERROR_KINDS);
    }
    pthread_mutex_unlock(&server->registry_lock);
}

void info_reset(struct server *server)
{
    struct info_base *base = malloc(sizeof *base);
    CHECK(base);
    add_up(server, &base->totals);
    pthread_mutex_lock(&server->registry_lock);
    free(server->info_base);
    server->info_base = base;
    pthread_mutex_unlock(&server->registry_lock);
}

static uint64_t used_bytes(const struct store_stats *s, const struct totals *t)
{
    return s->memory_index_bytes + s->memory_value_bytes + t->input_bytes + t->pool_bytes;
}

/* What each section prints from. */
struct info {
    FILE *out;
    struct server *server;
    struct store_worker *sw;
    struct totals totals;
    struct store_stats store;
    uint64_t now_us;
};

#define LINE_U64(info, name, value) fprintf((info)->out, "%s:%" PRIu64 "\r\n", name, (uint64_t)(value))

static const char *backend_name(const struct server *server)
{
    return server->workers[0]->loop->backend == LOOP_URING ? "io_uring" : "epoll";
}

/* ---- sections ---- */

static void print_server(struct info *i)
{
    struct server *server = i->server;
    struct utsname system;
    uint64_t uptime_s = (i->now_us - server->started_us) / 1000000;
    uname(&system);
    fprintf(i->out,
            "redis_version:%s\r\nredis_git_sha1:00000000\r\nredis_git_dirty:0\r\nredis_mode:"
            "standalone\r\nkvasir_version:%s\r\nos:%s %s %s\r\narch_bits:64\r\n"
            "multiplexing_api:%s\r\ngcc_version:%d.%d.%d\r\nprocess_id:%d\r\nrun_id:%s\r\ntcp_port:%d\r\n",
            SERVER_REDIS_VERSION, KVASIR_VERSION, system.sysname, system.release, system.machine,
            backend_name(server), __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__, (int)getpid(),
            server->run_id, server->port);
    LINE_U64(i, "server_time_usec", clock_unix_ms() * 1000);
    LINE_U64(i, "uptime_in_seconds", uptime_s);
    LINE_U64(i, "uptime_in_days", uptime_s / 86400);
    LINE_U64(i, "io_threads_active", server->worker_count > 1);
    fprintf(i->out, "config_file:%s\r\n", server->config.config_path ? server->config.config_path : "");
}

static void print_clients(struct info *i)
{
    LINE_U64(i, "connected_clients", i->totals.connections);
    LINE_U64(i, "maxclients", STAT_GET(i->server->clients_max));
    LINE_U64(i, "blocked_clients", 0);
}

static void print_human(struct info *i, const char *name, uint64_t bytes)
{
    static const char units[] = "BKMGT";
    double v = (double)bytes;
    unsigned unit = 0;
    while (v >= 1024 && unit < 4) {
        v /= 1024;
        unit++;
    }
    LINE_U64(i, name, bytes);
    fprintf(i->out, unit ? "%s_human:%.2f%c\r\n" : "%s_human:%.0f%c\r\n", name, v, units[unit]);
}

static void print_memory(struct info *i)
{
    print_human(i, "used_memory", used_bytes(&i->store, &i->totals));
    print_human(i, "used_memory_rss", memory_resident_bytes());
    LINE_U64(i, "used_memory_dataset", i->store.memory_index_bytes + i->store.memory_value_bytes);
    LINE_U64(i, "mem_clients_normal", i->totals.input_bytes + i->totals.pool_bytes);
    print_human(i, "maxmemory", STAT_GET(i->server->memory_bytes_max));
    fprintf(i->out, "maxmemory_policy:noeviction\r\nmem_allocator:%s\r\n",
#ifdef KVASIR_JEMALLOC
            "jemalloc"
#else
            "malloc"
#endif
    );
}

static void print_persistence(struct info *i)
{
    struct log *log = store_log(i->server->store);
    bool failed = log && log_failed(log);
    struct save_status save;
    save_status_get(i->server, &save);
    fprintf(i->out, "loading:0\r\nasync_loading:0\r\n"); /* while loading there is no INFO */
    LINE_U64(i, "current_save_keys_processed", save.keys_done);
    LINE_U64(i, "current_save_keys_total", save.keys_total);
    LINE_U64(i, "rdb_changes_since_last_save", 0); /* all are in the log */
    LINE_U64(i, "rdb_bgsave_in_progress", save.in_progress);
    LINE_U64(i, "rdb_last_save_time", save.last_unix_s);
    fprintf(i->out, "rdb_last_bgsave_status:%s\r\n", save.last_failed ? "err" : "ok");
    fprintf(i->out, "rdb_last_bgsave_time_sec:%" PRId64 "\r\nrdb_current_bgsave_time_sec:%" PRId64 "\r\n",
            save.last_duration_s, save.current_s);
    fprintf(i->out, "aof_enabled:%d\r\naof_rewrite_in_progress:0\r\naof_last_write_status:%s\r\n",
            log != NULL, failed ? "err" : "ok");
}

static void print_stats(struct info *i)
{
    const uint64_t *c = i->totals.counters;
    LINE_U64(i, "total_connections_received", c[COUNTER_ACCEPTED]);
    LINE_U64(i, "total_commands_processed", c[COUNTER_OPERATIONS]);
    LINE_U64(i, "instantaneous_ops_per_sec", STAT_GET(i->server->operations_second));
    LINE_U64(i, "total_net_input_bytes", c[COUNTER_INPUT]);
    LINE_U64(i, "total_net_output_bytes", c[COUNTER_OUTPUT]);
    LINE_U64(i, "rejected_connections", c[COUNTER_REFUSED]);
    LINE_U64(i, "expired_keys", i->store.keys_expired);
    LINE_U64(i, "evicted_keys", 0);
    LINE_U64(i, "keyspace_hits", c[COUNTER_HITS]);
    LINE_U64(i, "keyspace_misses", c[COUNTER_MISSES]);
    LINE_U64(i, "total_error_replies", c[COUNTER_ERRORS]);
}

static void print_replication(struct info *i)
{
    fprintf(i->out, "role:master\r\nconnected_slaves:0\r\nmaster_replid:%s\r\nmaster_repl_offset:0\r\n",
            i->server->run_id);
}

static void print_cluster(struct info *i)
{
    LINE_U64(i, "cluster_enabled", 0);
}

static void print_cpu(struct info *i)
{
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    fprintf(i->out, "used_cpu_sys:%ld.%06ld\r\nused_cpu_user:%ld.%06ld\r\n", (long)use.ru_stime.tv_sec,
            (long)use.ru_stime.tv_usec, (long)use.ru_utime.tv_sec, (long)use.ru_utime.tv_usec);
}

/* Clients expect all five fields and find some by their place; the time of a call is not measured. */
static void print_commandstats(struct info *i)
{
    const struct totals *t = &i->totals;
    for (unsigned c = 0; c < command_count; c++) {
        if (t->calls[c] + t->rejected[c])
            fprintf(i->out,
                    "cmdstat_%s:calls=%" PRIu64 ",usec=0,usec_per_call=0.00,rejected_calls=%" PRIu64
                    ",failed_calls=%" PRIu64 "\r\n",
                    command_table[c]->name, t->calls[c], t->rejected[c], t->failed[c]);
    }
}

static void print_errorstats(struct info *i)
{
    for (unsigned k = 0; k < REPLY_ERROR_KINDS; k++) {
        if (i->totals.errors[k])
            fprintf(i->out, "errorstat_%s:count=%" PRIu64 "\r\n", reply_error_kinds[k], i->totals.errors[k]);
    }
}

/* As DBSIZE, the reply waits until what is counted is durable. */
static void print_keyspace(struct info *i)
{
    uint64_t keys = store_count(i->sw);
    if (keys)
        fprintf(i->out, "db0:keys=%" PRIu64 ",expires=%" PRIu64 ",avg_ttl=0\r\n", keys,
                i->store.keys_expiring);
}

static void print_log(struct info *i, struct log *log, const struct log_stats *s)
{
    LINE_U64(i, "flushes", s->flushes);
    LINE_U64(i, "records_flushed", s->records);
    fprintf(i->out, "records_per_flush:%.2f\r\n", s->flushes ? (double)s->records / (double)s->flushes : 0.0);
    LINE_U64(i, "flush_us_p50", histogram_quantile(&s->flush_us, 0.5));
    LINE_U64(i, "flush_us_p99", histogram_quantile(&s->flush_us, 0.99));
    LINE_U64(i, "flush_us_p999", histogram_quantile(&s->flush_us, 0.999));
    LINE_U64(i, "flush_us_max", histogram_quantile(&s->flush_us, 1.0));
    LINE_U64(i, "commit_lsn", log_commit_lsn(log));
    LINE_U64(i, "tail_lsn", log_tail_lsn(log));
    LINE_U64(i, "log_bytes", s->files_bytes);
    LINE_U64(i, "log_bytes_written", s->bytes_written);
    LINE_U64(i, "log_segments", s->segments);
    LINE_U64(i, "log_replayed_records", s->replayed_records);
    LINE_U64(i, "disk_full", log_disk_full(log));
}

/* Bytes that went to the disk, for each byte of clients' records. */
static void print_write_amplification(struct info *i, const struct log_stats *s)
{
    struct store_checkpoint_stats tocs;
    struct store_cleaner_stats cleaner;
    store_checkpoint_stats_get(i->server->store, &tocs);
    store_cleaner_stats_get(i->server->store, &cleaner);
    uint64_t written = s->bytes_written + cleaner.copied_bytes + tocs.bytes_written;
    fprintf(i->out, "write_amplification:%.2f\r\n", s->bytes ? (double)written / (double)s->bytes : 0.0);
}

/* Segments, the weights of what is live in them, and what gets their space back. */
static void print_disk(struct info *i)
{
    const struct segments_totals *d = &i->store.disk;
    struct store_cleaner_stats c;
    store_cleaner_stats_get(i->server->store, &c);
    uint64_t used = d->log_bytes + d->data_bytes + d->spare_bytes + c.tocs_bytes;
    LINE_U64(i, "data_segments", d->data_segments);
    LINE_U64(i, "disk_used_bytes", used);
    LINE_U64(i, "disk_live_bytes", d->live_bytes);
    LINE_U64(i, "disk_dead_bytes", d->dead_bytes);
    LINE_U64(i, "disk_spare_bytes", d->spare_bytes);
    LINE_U64(i, "disk_limit", i->server->config.disk_limit_bytes);
    fprintf(i->out, "space_amplification:%.2f\r\n",
            d->live_bytes ? (double)used / (double)d->live_bytes : 0.0);
    LINE_U64(i, "segments_free_pending", c.pending_segments);
    LINE_U64(i, "segments_removed", c.removed_segments);
    LINE_U64(i, "segments_reused", d->reused_segments);
    LINE_U64(i, "cleaner_running", c.running);
    LINE_U64(i, "cleaner_rounds", c.rounds);
    LINE_U64(i, "cleaner_segments", c.segments);
    LINE_U64(i, "cleaner_values_moved", c.moved);
    LINE_U64(i, "cleaner_bytes_copied", c.copied_bytes);
    LINE_U64(i, "cleaner_failures", c.failures);
    LINE_U64(i, "cleaner_damaged_segments", c.damaged);
}

static void print_cold(struct info *i)
{
    struct store_fetch_stats s;
    store_fetch_stats_get(i->server->store, &s);
    LINE_U64(i, "cold_hits", s.hits);
    LINE_U64(i, "cold_preads", s.preads);
    LINE_U64(i, "cold_bytes", s.bytes);
    LINE_U64(i, "cold_joined", s.joined);
    LINE_U64(i, "cold_unused", s.unused);
    LINE_U64(i, "cold_errors", s.errors);
    LINE_U64(i, "cold_corrupt", s.corrupt);
    LINE_U64(i, "io_depth", i->server->config.io_depth);
    LINE_U64(i, "io_depth_now", s.depth);
    LINE_U64(i, "io_depth_max", s.depth_max);
    LINE_U64(i, "memory_cold_bytes", s.memory_bytes);
    LINE_U64(i, "read_submissions", i->totals.read_turns);
    fprintf(i->out, "reads_per_submission:%.2f\r\n",
            i->totals.read_turns ? (double)i->totals.reads / (double)i->totals.read_turns : 0.0);
}

static void print_checkpoints(struct info *i)
{
    struct store_checkpoint_stats s;
    store_checkpoint_stats_get(i->server->store, &s);
    LINE_U64(i, "checkpoint_number", s.number);
    LINE_U64(i, "checkpoint_keys", s.keys);
    LINE_U64(i, "checkpoint_bytes", s.bytes);
    LINE_U64(i, "checkpoint_us", s.duration_us);
    LINE_U64(i, "checkpoint_running", s.running);
    LINE_U64(i, "checkpoint_keys_done", s.keys_done);
    LINE_U64(i, "checkpoint_keys_total", s.keys_total);
    LINE_U64(i, "checkpoint_failures", s.failures);
}

static void print_kvasir(struct info *i)
{
    static const char *const durability[] = {"fsync", "interval", "none"};
    const struct totals *t = &i->totals;
    uint64_t operations = t->counters[COUNTER_OPERATIONS];
    fprintf(i->out, "durability:%s\r\nio_backend:%s\r\n", durability[i->server->config.durability],
            backend_name(i->server));
    LINE_U64(i, "threads", i->server->worker_count);
    struct log *log = store_log(i->server->store);
    if (log) {
        struct log_stats *stats = malloc(sizeof *stats); /* its histogram is too large for the stack */
        CHECK(stats);
        log_stats_get(log, stats);
        print_log(i, log, stats);
        print_checkpoints(i);
        print_write_amplification(i, stats);
        free(stats);
    }
    print_disk(i);
    print_cold(i);
    LINE_U64(i, "held_replies", t->held);
    LINE_U64(i, "parked_commands", t->parked);
    LINE_U64(i, "command_retries", t->retries);
    LINE_U64(i, "loop_turns", t->turns);
    LINE_U64(i, "operations", operations);
    fprintf(i->out, "operations_per_turn:%.2f\r\n",
            t->turns_busy ? (double)operations / (double)t->turns_busy : 0.0);
    LINE_U64(i, "system_calls", t->system_calls);
    fprintf(i->out, "system_calls_per_operation:%.4f\r\n",
            operations ? (double)t->system_calls / (double)operations : 0.0);
    LINE_U64(i, "tombstones", i->store.tombstones);
    LINE_U64(i, "load_us", i->store.load_us);
    LINE_U64(i, "memory_index_bytes", i->store.memory_index_bytes);
    LINE_U64(i, "memory_value_bytes", i->store.memory_value_bytes);
    LINE_U64(i, "memory_buffer_bytes", t->input_bytes + t->pool_bytes);
    LINE_U64(i, "memory_input_bytes", t->input_bytes);
    LINE_U64(i, "clients_waiting_for_room", atomic_load(&i->server->budget.waiting));
    LINE_U64(i, "memory_slack_bytes", i->store.memory_slack_bytes);
    LINE_U64(i, "values_evicted", i->store.values_evicted);
    LINE_U64(i, "values_promoted", i->store.values_promoted);
}

static const struct section {
    const char *name;
    const char *title;
    void (*print)(struct info *info);
    bool by_default;
} sections[] = {
    {"server", "Server", print_server, true},
    {"clients", "Clients", print_clients, true},
    {"memory", "Memory", print_memory, true},
    {"persistence", "Persistence", print_persistence, true},
    {"stats", "Stats", print_stats, true},
    {"replication", "Replication", print_replication, true},
    {"cpu", "CPU", print_cpu, true},
    {"commandstats", "Commandstats", print_commandstats, false},
    {"errorstats", "Errorstats", print_errorstats, true},
    {"cluster", "Cluster", print_cluster, true},
    {"keyspace", "Keyspace", print_keyspace, true},
    {"kvasir", "Kvasir", print_kvasir, true},
};

static bool is_wanted(const struct command_call *call, const struct section *section)
{
    if (call->argc == 1)
        return section->by_default;
    for (int i = 1; i < call->argc; i++) {
        struct slice name = call->argv[i];
        if (command_word_is(name, section->name) || command_word_is(name, "all") ||
            command_word_is(name, "everything") || (section->by_default && command_word_is(name, "default")))
            return true;
    }
    return false;
}

char *info_text(const struct command_call *call, size_t *size)
{
    struct info info = {.server = call->server, .sw = call->sw, .now_us = clock_monotonic_us()};
    char *text = NULL;
    bool first = true;
    info.out = open_memstream(&text, size);
    CHECK(info.out);
    add_up(call->server, &info.totals);
    subtract_base(call->server, &info.totals);
    store_stats_get(call->server->store, &info.store);
    for (unsigned s = 0; s < sizeof sections / sizeof sections[0]; s++) {
        if (!is_wanted(call, &sections[s]))
            continue;
        fprintf(info.out, "%s# %s\r\n", first ? "" : "\r\n", sections[s].title);
        sections[s].print(&info);
        first = false;
    }
    fclose(info.out);
    CHECK(text);
    return text;
}
