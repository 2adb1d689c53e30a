/* epoch: when may memory that lock-free readers can still see be used again?
 *
 * A worker's loop turn is a read section. What is unlinked from the index is retired, not freed; it is freed
 * by the worker that retired it once two epochs have passed, when every section that could have seen it has
 * ended. There are no reader counts, and memory comes back while readers always exist. Source: Fraser,
 * "Practical lock-freedom", 2004, section 5.2.3.
 *
 * The store that unlinks has reached memory, by a full fence, before the global epoch is read for the tag. So
 * who still finds the memory has entered in epoch tag at most, and keeps the global one at tag + 1 or below.
 * (Without the fence it takes three epochs, and memory comes back later.)
 *
 * Thread safety: struct epoch is shared; a participant belongs to one thread. */
#ifndef KVASIR_INDEX_EPOCH_H
#define KVASIR_INDEX_EPOCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "index/arena.h"

enum {
    EPOCH_PARTICIPANTS_MAX = 65,
    EPOCH_LISTS = 3, /* those of this epoch, of the last one, and of the one that is free by now */
};

struct epoch {
    _Atomic uint64_t global; /* starts at 1 */
    struct {
        _Atomic uint64_t local; /* the epoch of the section this participant is in; 0: in none */
        char padding[56];
    } participants[EPOCH_PARTICIPANTS_MAX];
    unsigned count;
    /* Tests: the global epoch moves on so many microseconds after the last time, as if a thread in a section
     * got no processor. 0: when it can. Set before there are sections. */
    uint64_t hold_us;
    _Atomic uint64_t moved_us; /* monotonic; relaxed */
};

struct epoch_list {
    uint64_t tag; /* global epoch at the time of retiring */
    uint64_t *items;
    size_t count, capacity;
    uint64_t bytes; /* of its items that were malloc'd, as told */
};

struct epoch_participant {
    struct epoch *epoch;
    unsigned index;
    struct arena_cache *cache;
    struct epoch_list lists[EPOCH_LISTS];
    uint64_t pending;       /* items retired and not yet freed */
    _Atomic uint64_t bytes; /* of those that were malloc'd, as told; the owner writes, relaxed */
};

void epoch_init(struct epoch *epoch, unsigned participants);
void epoch_participant_init(struct epoch_participant *p, struct epoch *epoch, unsigned index,
                            struct arena_cache *cache);
/* No other participant may be in a section any more: frees everything retired. */
void epoch_participant_deinit(struct epoch_participant *p);

/* Start and end of a read section. enter also moves the global epoch on if it can, and frees what has become
 * free. */
void epoch_enter(struct epoch_participant *p);
void epoch_exit(struct epoch_participant *p);

/* Hands over memory that was unlinked: nobody who enters a section after this call can reach it. */
void epoch_retire_block(struct epoch_participant *p, uint32_t ref, unsigned class);
void epoch_retire_malloc(struct epoch_participant *p, void *memory, uint64_t bytes);
/* A mapping; its first word holds its length in bytes. */
void epoch_retire_mapping(struct epoch_participant *p, void *mapping);

#endif
