/* internal: what check.c, check_report.c, check_log.c, check_toc.c and check_repair.c share. */
#ifndef KVASIR_TOOLS_CHECK_INTERNAL_H
#define KVASIR_TOOLS_CHECK_INTERNAL_H

#include "base/status.h"
#include "toc/toc_read.h"
#include "tools/check.h"
#include "tools/check_scan.h"

enum {
    CHECK_KEY_TEXT_BYTES = 160,
    CHECK_FINDINGS_MAX = 10000, /* more are counted only */
    CHECK_LINES_MAX = 1000,     /* more are counted only */
    CHECK_ENTRIES_MAX = 20,     /* keys of a toc without a value that are named */
};

#define CHECK_GROUP_BYTES ((uint64_t)16 << 30)
#define CHECK_NO_LIMIT    UINT64_MAX

/* A segment file that is there. */
struct check_segment {
    int fd; /* with a running server; else -1 */
    bool data;
    uint64_t number;
    uint64_t generation;
    uint64_t bytes;      /* of the file; of data: without what an earlier use has left behind its end */
    uint64_t made_bytes; /* of the file when it was made */
    uint64_t after;      /* number of the log segment that was written to then; 0: not known */
    bool reused;         /* the file had other bytes before: they may be behind the last batch */
    bool usable;         /* the generation is known: it can be scanned */
    bool unused;         /* nothing was ever written to it */
    bool bad_header;
    bool truncated;
    bool in_group;      /* starts is there */
    uint64_t starts_at; /* its first bit in check->starts */
};

struct check_toc {
    int fd; /* with a running server: nothing is read through it, but it holds the file; else -1 */
    uint64_t number;
    struct toc *toc; /* NULL: not even its header, footer and list are good */
    uint64_t keys;   /* met in good blocks */
    uint64_t bad_blocks;
    uint64_t missing_files; /* that it names */
    uint64_t lost_keys;     /* their records are not where it says */
    bool whole;             /* the server would start with it */
};

/* Something about a place in the log, which is damage only if that place was durable. */
struct check_finding {
    uint64_t from_lsn, to_lsn;
    bool breaks;   /* the chain of batches */
    bool expected; /* when a replay begins at or behind to_lsn */
    char *text;    /* NULL: has been said otherwise */
};

/* Where the chain of batches stands. */
struct check_chain {
    bool any;
    uint64_t first_lsn;    /* of the first whole batch */
    uint64_t before_first; /* the LSN that it names as the batch before it */
    uint64_t previous_lsn; /* of the last whole one */
    uint64_t end_lsn;      /* behind it */
    uint64_t gap_lsn;      /* behind the last before the first gap; 0: there is none */
};

struct check {
    struct disk *disk;
    const char *path;
    int folder;
    bool live;           /* a server has the folder open */
    bool changed;        /* files came or went while they were listed and opened */
    uint64_t limit_lsn;  /* what lies at or above it is not looked at */
    uint64_t start_lsn;  /* of the oldest toc whose header is good: files may be missing below */
    uint64_t chosen_lsn; /* where the replay of a server would begin; 0: at the log's beginning */
    const struct check_toc *chosen;
    struct check_segment *segments; /* of the log, by number, then data segments, by number */
    size_t segment_count, log_count;
    struct check_toc *tocs; /* newest first */
    size_t toc_count;
    uint64_t *starts; /* a bit for each 8 bytes of the group's segments: a value's record begins there */
    struct check_chain chain;
    uint64_t durable_lsn; /* the highest that anything calls durable */
    bool damage_since;    /* the last whole batch */
    uint64_t records, batches;
    struct check_finding *findings;
    size_t finding_count, finding_more;
    uint64_t more_breaks_to; /* of those that are counted only */
    /* The report. */
    FILE *out, *progress;
    uint64_t damages, unreadables, lines;
    bool refuses; /* the server would not start */
    uint64_t done_bytes, total_bytes, began_us, drawn_us;
};

/* check_report.c: one line each. */
void check_note(struct check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
void check_damage(struct check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
void check_unreadable(struct check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
void check_finding(struct check *c, uint64_t from_lsn, uint64_t to_lsn, bool breaks, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* A failure: unreadable, or damage if that is what its code says. */
void check_status(struct check *c, const status_t *s);
void check_progress(struct check *c, uint64_t bytes);
void check_progress_end(struct check *c);
/* A key as text, cut where it is long. */
const char *check_key_text(struct slice key, char text[CHECK_KEY_TEXT_BYTES]);

/* check_header.c: opens all segments and looks at their headers. */
void check_headers(struct check *c);

/* check_log.c */
struct check_segment *check_segment_find(const struct check *c, uint64_t address);
/* Name of the file that an address lies in. */
const char *check_file_name(uint64_t address, char name[SEGMENT_NAME_BYTES]);
/* Scans one, taking in its batches; the sink gets the rest (its batch function is not called). */
void check_log_segment(struct check *c, struct check_segment *s);
/* After the last. */
void check_log_end(struct check *c);
/* Opens a segment, unless it is held. -errno: it cannot be. Whoever asked closes it. */
int check_segment_open(struct check *c, const struct check_segment *s);
void check_segment_close(struct check *c, const struct check_segment *s, int fd);
/* Reads a segment to a sink, up to the limit. */
void check_scan(struct check *c, const struct check_segment *s, const struct scan_sink *sink);
bool check_starts_get(const struct check *c, uint64_t address);
void check_starts_set(struct check *c, uint64_t address);

/* check_toc.c */
void check_toc_headers(struct check *c);
/* Entries against the segments of the group; blocks and list too when it is the first time. */
void check_toc_group(struct check *c, struct check_toc *t, bool first);
/* All that is left of a toc's entries, good block by good block. */
void check_toc_each(struct check *c, struct check_toc *t, bool tells,
                    bool (*each)(void *context, const struct toc_entry *entry), void *context);
void check_toc_choose(struct check *c);

/* check.c: calls `segment` for each usable segment, and group behind those of one group, while their bits are
 * there. */
void check_groups(struct check *c, void (*segment)(struct check *c, struct check_segment *s, void *context),
                  void (*group)(struct check *c, bool first, void *context), void *context);

/* check_repair.c: after everything else. */
enum check_code check_repair(struct check *c, const char *new_path);
/* Not in the folder that is checked. Makes the folder if it is absent. Before everything else: a check may
 * take long. */
STATUS_MUST_USE status_t check_repair_target(const struct check *c, const char *new_path);

#endif
