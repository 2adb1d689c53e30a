/* descriptors: how many open files a server may have, and who gets them: clients, segment files (each stays
 * open as long as it exists), and a reserve for the rest. Main thread, before anything is opened. */
#ifndef KVASIR_TOOLS_DESCRIPTORS_H
#define KVASIR_TOOLS_DESCRIPTORS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct descriptors_need {
    uint64_t clients;
    uint64_t files_now; /* segments that are there */
    uint64_t files_max; /* with those that the disk has room for */
};

struct descriptors_plan {
    uint64_t clients; /* at most need.clients; 0: not even what is there can be opened */
    uint64_t files;   /* that there can be beside so many clients; at most files_max counts */
};

/* For everything that is needed. */
uint64_t descriptors_wanted(const struct descriptors_need *need);
/* Divides a limit: first the segments that are there; of the rest, growth has precedence over clients, but
 * takes no more than half from them. */
struct descriptors_plan descriptors_divide(uint64_t limit, const struct descriptors_need *need);

/* Raises the process's limit to so many, or as far as it may. Returns the limit that there is then. */
uint64_t descriptors_raise_limit(uint64_t wanted);

/* Raises the process's limit as far as it may. Lowers *clients where that is not enough, and says so, and how
 * much data there can be; an error when what is in the folder cannot be opened. dir NULL: no files. */
STATUS_MUST_USE status_t descriptors_raise(const char *dir, uint64_t *clients);

#endif
