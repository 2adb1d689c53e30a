/* fetch: internal: values on their way from disk into one worker's memory. The public half is in store.h,
 * "values on disk".
 *
 * A landing is one value that is wanted, being read, or there. It is known by (hash, version, key), not by
 * its place on disk: a record that is moved while it is being read is not read again. The landings of a
 * worker are its own; nothing here is shared between threads but the numbers and the segments' references. */
#ifndef KVASIR_STORE_FETCH_H
#define KVASIR_STORE_FETCH_H

#include "log/segments.h"
#include "store/store.h"

struct fetch_config {
    struct segments *segments;  /* finds an address's file; the owner's until fetch_deinit */
    uint64_t memory_bytes_max;  /* of landed values and those on their way; 0: FETCH_MEMORY_DEFAULT */
    uint64_t command_bytes_max; /* that one command may claim beyond its first value; 0: the default */
    unsigned io_depth;          /* 0: STORE_IO_DEPTH_DEFAULT */
};

enum {
    FETCH_MEMORY_DEFAULT = 64 << 20,
    FETCH_COMMAND_BYTES_DEFAULT = 256 << 20,
    FETCH_AHEAD_MS = 1000, /* how long a value that was read ahead waits to be looked at */
};

void fetch_init(struct store_worker *sw, const struct fetch_config *config);
/* No read may be under way. Waiters are forgotten. */
void fetch_deinit(struct store_worker *sw);

/* Has this value landed? STORE_OK: *value has len bytes, until the end of the turn, or while it is claimed.
 * STORE_COLD: no. STORE_CORRUPT, STORE_IO: it came and is no good. */
enum store_result fetch_look(struct store_worker *sw, uint64_t hash, struct slice key, uint64_t version,
                             uint32_t len, const char **value);

/* Provided by the index's side of the store: a value has come from disk and checks. One call is one touch of
 * a cold key (not a scan's); the second one may put the value back into its node, without a memory cap the
 * first, and a scan's. True if the key's value is in memory now. Called inside the worker's turn. */
bool store_value_arrived(struct store_worker *sw, const struct store_key *key, uint64_t address,
                         struct slice value, bool scan);

#endif
