/* load_generate: `kvasir load --generate`, records made from a seed (see bench_record.h) over many
 * connections.
 *
 * Thread safety: none needed; runs the load generator's thread and waits for it. */
#ifndef KVASIR_TOOLS_LOAD_GENERATE_H
#define KVASIR_TOOLS_LOAD_GENERATE_H

#include "base/status.h"
#include "tools/bench_record.h"

struct load_generate {
    uint64_t count;             /* records; 0: none are to be made */
    uint64_t clients, pipeline; /* 0: not named */
    struct bench_record_options records;
};

/* What was named for loading from a file. */
struct load_file_options {
    bool format;
    const char *prefix, *sep, *acked, *path; /* NULL: not named */
};

/* Refuses options of one kind of loading beside the other, naming them. */
STATUS_MUST_USE status_t load_generate_check(const struct load_generate *generate,
                                             const struct load_file_options *file);

/* Stores the records; returns the exit code. count > 0, checked. */
int load_generate(const char *connect, const struct load_generate *generate);

#endif
