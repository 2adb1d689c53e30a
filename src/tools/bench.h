/* bench: the load generator's parts: what is asked for (config), what a thread counts (stats), and one
 * thread's run.
 *
 * One thread drives many connections through one epoll instance. A closed-loop connection sends `pipeline`
 * requests, awaits all their replies, and sends the next ones; with generated records it sends one for every
 * reply instead, as a disk measured at a fixed queue depth wants it. With a rate, requests have an intended
 * start each, whether or not the server keeps up; latency counts from there. Requests are formatted straight
 * into the connection's output buffer, replies are recognised in place.
 *
 * Files: bench_data (keys, values), bench_conn (formatting, sockets), bench_reply (replies), bench_thread
 * (the loop and the choice of operations), bench_run (threads, signals), bench_report (progress, table,
 * JSON), bench.c (options). Units: ns of CLOCK_MONOTONIC. */
#ifndef KVASIR_TOOLS_BENCH_H
#define KVASIR_TOOLS_BENCH_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include "base/histogram.h"
#include "base/prng.h"
#include "base/status.h"
#include "tools/bench_data.h"
#include "tools/bench_record.h"
#include "tools/reply_scan.h"

enum bench_protocol { BENCH_RESP, BENCH_MEMCACHED, BENCH_MEMCACHED_META };
enum bench_dist { BENCH_UNIFORM, BENCH_ZIPF, BENCH_LATEST };
enum bench_order { BENCH_ORDER_RANDOM, BENCH_ORDER_SEQ };

enum bench_op {
    BENCH_GET,
    BENCH_SET,
    BENCH_INSERT, /* SET of a key of its own */
    BENCH_RANGE,  /* RANGE key + LIMIT n */
    BENCH_RMW, /* GET, and after its reply a BENCH_RMW_SET, counted as one operation from the GET's start */
    BENCH_RMW_SET,
};

enum {
    BENCH_SCAN_KEYS_MAX = 100,     /* of a YCSB-E scan */
    BENCH_OPEN_LOOP_WINDOW = 1024, /* most requests in flight on a connection with --rate */
};

/* A workload: shares of operations, in 1/1000. */
struct bench_mix {
    unsigned get, set, insert, range, rmw;
};

struct bench_config {
    const char *connect;
    const char *workload;
    enum bench_protocol protocol;
    struct bench_mix mix;
    enum bench_dist dist;
    enum bench_order order;
    bool insert_only; /* ids 0..keys-1, each once, then the end */
    uint64_t clients, pipeline, threads, keys;
    struct bench_sizes sizes;
    bool generated;               /* keys and values are those of `records`, each reply is checked */
    struct bench_records records; /* if generated */
    uint64_t errors_max;          /* more errors end the run; 0: none do */
    uint64_t range_limit;         /* keys a page of the range workload; 0: 1..BENCH_SCAN_KEYS_MAX at random */
    double seconds;               /* whole run; 0: no end (insert) */
    double warmup_seconds;
    double rate;     /* requests a second over all connections; 0: closed loop */
    uint64_t beside; /* with a rate: further connections that send SETs, `pipeline` at a time, as fast as they
                        can */
    bool verify, load, json;
    int64_t pin; /* CPU of the first thread, the others follow; -1: none */
    uint64_t seed;
};

struct bench_stats {
    _Atomic uint64_t ops; /* replies that ended an operation */
    _Atomic uint64_t
        errors; /* error replies among them; of generated records also what nils and wrong count */
    _Atomic uint64_t nils;
    _Atomic uint64_t wrong;       /* --verify: not the value it should be */
    _Atomic uint64_t value_bytes; /* generated records: of values read or stored */
    _Atomic uint64_t range_keys;  /* keys that came in RANGE replies */
    _Atomic uint64_t behind_ns;   /* open loop: how late the last request was sent */
    _Atomic uint64_t beside_ops;  /* of the connections beside the measured ones */
    struct histogram latency;     /* ns */
};

/* Only the owning thread writes; relaxed: progress may be a little stale, and the end is read after
 * pthread_join. */
#define BENCH_COUNT(field, n)                                                                                \
    atomic_store_explicit(&(field), atomic_load_explicit(&(field), memory_order_relaxed) + (n),              \
                          memory_order_relaxed)
#define BENCH_LOAD(field) atomic_load_explicit(&(field), memory_order_relaxed)

/* What threads share. Counters are relaxed: nothing is published through them. */
struct bench_shared {
    const struct bench_config *config;
    struct permutation order;     /* of inserts */
    struct permutation scramble;  /* Zipf rank -> id */
    struct zipf zipf;             /* over config->keys */
    _Atomic uint64_t next_insert; /* next one to hand out */
    _Atomic uint64_t inserted;    /* acknowledged; all below exist, nearly: see BENCH_LATEST */
    _Atomic bool stop;            /* a thread failed, or a signal came */
    uint64_t start_ns;            /* of the run, same for all */
};

struct bench_request {
    uint64_t op_id; /* enum bench_op << 56 | id */
    uint64_t start_ns;
};

static inline uint64_t bench_op_id(enum bench_op op, uint64_t id)
{
    return (uint64_t)op << 56 | id;
}

struct bench_conn {
    int fd;
    bool want_out; /* EPOLLOUT is armed */
    bool dirty;    /* open loop: formatted, not sent yet */
    bool beside;   /* see bench_config; closed loop whatever the rate */
    char *out;     /* out_head..out_tail waits to be sent */
    size_t out_head, out_tail, out_capacity;
    char *in; /* in_head..in_tail waits to be recognised */
    size_t in_head, in_tail, in_capacity;
    struct bench_request *ring; /* in flight, in order */
    uint32_t ring_head, ring_tail, ring_mask;
    struct bench_request *follow; /* BENCH_RMW_SETs due */
    uint32_t follow_count;
    uint64_t quota;         /* closed loop: requests of this batch not formatted yet */
    uint64_t range_next;    /* range workload: first id of the next page */
    struct reply_scan scan; /* of the reply at in_head */
};

struct bench_thread {
    struct bench_shared *shared;
    const struct bench_config *config;
    unsigned index;
    pthread_t thread;
    int epoll;
    struct bench_conn *conns; /* the measured ones, then those beside */
    uint32_t conn_count;      /* all */
    uint32_t measured_count;
    struct prng prng;
    uint64_t insert_next, insert_end; /* handed out by shared->next_insert, not used yet */
    bool insert_done;                 /* no more to hand out */
    bool draining;                    /* the run is over: replies count no more */
    uint64_t issued;                  /* open loop */
    uint32_t turn;                    /* open loop: connection of the next request */
    uint32_t beside_turn;             /* the connection beside that sends next */
    uint32_t idle_conns;              /* insert: connections that have nothing more to do */
    /* expected replies of fixed size */
    char get_head[24];
    uint32_t get_head_bytes, get_reply_bytes;
    uint64_t get_head_word, get_head_mask; /* its first 8 bytes */
    bool get_fixed;                        /* all values have one length and are not checked */
    size_t request_bytes_max;
    struct bench_stats warmup, stats;      /* what came in the warm-up, and after it */
    struct bench_stats *current;           /* the one that counts now; the owning thread only */
    uint64_t count_start_ns, count_end_ns; /* measured part of the run */
    char error_text[200];                  /* first error reply */
    status_t failure;
};

static inline uint64_t bench_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static inline uint32_t bench_in_flight(const struct bench_conn *c)
{
    return c->ring_tail - c->ring_head;
}

/* bench_conn.c */
STATUS_MUST_USE status_t bench_conn_open(struct bench_thread *t, struct bench_conn *c, uint32_t index);
void bench_conn_close(struct bench_conn *c);
/* True when one more request fits into the output buffer and the ring. */
bool bench_conn_room(const struct bench_thread *t, const struct bench_conn *c);
/* Formats a request; bench_conn_room must have been true. */
void bench_conn_put(const struct bench_thread *t, struct bench_conn *c, enum bench_op op, uint64_t id,
                    uint64_t start_ns);
/* Sends what the socket takes and arms EPOLLOUT for the rest. */
STATUS_MUST_USE status_t bench_conn_send(struct bench_thread *t, struct bench_conn *c);
/* One recv; *got false when nothing was there. */
STATUS_MUST_USE status_t bench_conn_receive(struct bench_conn *c, bool *got);

/* bench_reply.c: recognises all whole replies in the input buffer, which arrived at now_ns. */
void bench_reply_init(struct bench_thread *t);
STATUS_MUST_USE status_t bench_reply_take(struct bench_thread *t, struct bench_conn *c, uint64_t now_ns);

/* bench_thread.c: the thread's whole run; pthread start routine. */
void *bench_thread_run(void *thread);
STATUS_MUST_USE status_t bench_thread_open(struct bench_thread *t, struct bench_shared *shared,
                                           unsigned index);
void bench_thread_close(struct bench_thread *t);

/* bench_report.c */
struct bench_totals {
    uint64_t ops, errors, nils, wrong, value_bytes, range_keys, behind_ns, beside_ops;
    double seconds, ops_per_second;
    struct histogram latency;
    const char *error_text;
};
/* with_warmup: everything so far; else what was measured. */
void bench_totals_collect(struct bench_totals *totals, const struct bench_thread *threads, unsigned count,
                          bool with_warmup);
/* Prints a line a second until every thread has ended. phase: "load" or the workload's name. */
void bench_report_progress(struct bench_thread *threads, unsigned count, const char *phase,
                           _Atomic unsigned *running);
void bench_report_table(FILE *out, const struct bench_config *config, const struct bench_totals *totals);
void bench_report_json(FILE *out, const struct bench_config *config, const struct bench_totals *totals);

/* bench_run.c */
/* Once, first: signals (SIGINT and SIGTERM end the run), limit of open files, CPU. */
void bench_prepare_process(const struct bench_config *config);
/* Opens every connection, runs, and collects. *totals->error_text points into static memory. */
STATUS_MUST_USE status_t bench_run(const struct bench_config *config, const char *phase,
                                   struct bench_totals *totals);

#endif
