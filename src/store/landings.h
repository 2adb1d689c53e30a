/* landings: internal: the values of one worker that are wanted, being read, or there, and who waits for them:
 * what fetch.c (asking, reading, looking), landings.c (the table) and waiters.c (claims and their room)
 * share.
 *
 * Thread safety: the worker's own, but for the numbers. */
#ifndef KVASIR_STORE_LANDINGS_H
#define KVASIR_STORE_LANDINGS_H

#include <stdatomic.h>

#include "store/fetch.h"

enum { LANDING_BUCKETS_LEAST = 256 };

enum landing_state {
    LANDING_WANTED,  /* in the wanted queue */
    LANDING_READING, /* given out */
    LANDING_THERE,
    LANDING_CORRUPT,
    LANDING_IO,
    LANDING_NO_ROOM,
};

/* Whose half of the memory it counts against. */
enum landing_account { ACCOUNT_CLAIMED, ACCOUNT_AHEAD, ACCOUNTS, ACCOUNT_NONE };

struct claim {
    struct landing *landing;
    struct store_waiter *waiter;
    struct claim *next;                       /* of the waiter's */
    struct claim *landing_next, **landing_at; /* of the landing's */
};

struct landing {
    struct landing *bucket_next;
    struct landing *next, *previous; /* in one of the lists; NULL: in none */
    uint64_t hash, version, address;
    struct segment_file *file; /* with a reference until it has landed; then NULL */
    struct claim *claims;
    char *buffer; /* aligned; from store_fetch_take on */
    const char *value;
    uint64_t start; /* offset in the file that the buffer is read from */
    size_t bytes;   /* of the buffer */
    uint32_t unit;  /* of direct reads; start and bytes are multiples */
    uint64_t landed_ms;
    uint32_t value_len, key_len;
    uint8_t state;       /* enum landing_state */
    uint8_t account;     /* enum landing_account */
    bool scan;           /* nobody but walks wants it */
    bool ahead;          /* read ahead, and never claimed */
    uint64_t refused_ms; /* since when there is no room for its buffer; 0: not refused */
    char key[];
};

/* Circular, with a head. */
struct landing_list {
    struct landing *first, *last;
};

struct waiter_list {
    struct store_waiter *first, *last;
};

/* Written by the worker with relaxed stores, read by anybody. */
struct numbers {
    _Atomic uint64_t hits, preads, bytes, joined, unused, errors, corrupt, depth, depth_max, memory;
};

struct fetch {
    struct store *store;
    struct fetch_config config;
    struct landing **buckets;
    size_t bucket_count, count; /* bucket_count: a power of two */
    struct landing_list wanted;
    struct landing_list kept;    /* read ahead and landed, oldest first */
    struct landing_list dropped; /* of no more use; views of this turn may point into them */
    uint64_t turn;               /* in which the dropped ones were dropped */
    uint64_t used[ACCOUNTS];     /* bytes */
    uint32_t in_flight;
    struct waiter_list ready, hungry;
    struct store_waiter *privileged;
    struct store_waiter *owner; /* the store's landing_owner, if it is of this worker */
    uint64_t complaint_s;
    unsigned complaints;
    struct numbers numbers;
};

#define NUMBER_GET(field)    atomic_load_explicit(&(field), memory_order_relaxed)
#define NUMBER_SET(field, v) atomic_store_explicit(&(field), (v), memory_order_relaxed)
#define NUMBER_ADD(field, v) NUMBER_SET(field, NUMBER_GET(field) + (v)) /* one writer */

/* ---- lists ---- */

static inline void landing_list_add(struct landing_list *list, struct landing *l)
{
    l->next = NULL;
    l->previous = list->last;
    *(list->last ? &list->last->next : &list->first) = l;
    list->last = l;
}

static inline void landing_list_add_first(struct landing_list *list, struct landing *l)
{
    l->previous = NULL;
    l->next = list->first;
    *(list->first ? &list->first->previous : &list->last) = l;
    list->first = l;
}

static inline void landing_list_remove(struct landing_list *list, struct landing *l)
{
    *(l->previous ? &l->previous->next : &list->first) = l->next;
    *(l->next ? &l->next->previous : &list->last) = l->previous;
    l->next = l->previous = NULL;
}

/* ---- the table: landings.c ---- */

static inline struct landing **landing_place(const struct fetch *f, uint64_t hash, uint64_t version)
{
    return &f->buckets[(hash ^ version * 0x9e3779b97f4a7c15ull) >> 20 & (f->bucket_count - 1)];
}

static inline struct landing *landing_find(const struct fetch *f, uint64_t hash, struct slice key,
                                           uint64_t version, uint32_t value_len)
{
    for (struct landing *l = *landing_place(f, hash, version); l; l = l->bucket_next) {
        if (l->hash == hash && l->version == version && l->value_len == value_len &&
            slice_equal(slice_make(l->key, l->key_len), key))
            return l;
    }
    return NULL;
}

/* Puts a new one into the table and the wanted queue. */
void landing_insert(struct fetch *f, struct landing *l);
/* Of one that is in no list, without claims. */
void landing_free(struct fetch *f, struct landing *l);
/* It was looked at, or will not be: goes when the turn is over. */
void landing_drop(struct fetch *f, struct landing *l);
/* All, with their claims; in lists or not. */
void landings_deinit(struct fetch *f);

/* ---- room ---- */

static inline void landing_account(struct fetch *f, struct landing *l, enum landing_account to)
{
    if (l->account != ACCOUNT_NONE)
        f->used[l->account] -= l->bytes;
    if (to != ACCOUNT_NONE)
        f->used[to] += l->bytes;
    l->account = (uint8_t)to;
}

static inline bool landing_has_room(const struct fetch *f, enum landing_account which, uint64_t bytes)
{
    return f->used[which] + bytes <= f->config.memory_bytes_max / 2;
}

/* ---- waiters.c ---- */

/* May this waiter claim so much more? If not, it is hungry. */
bool waiter_may_claim(struct fetch *f, struct store_waiter *w, uint64_t bytes);
void waiter_claim(struct fetch *f, struct landing *l, struct store_waiter *w);
/* It becomes the store's landing_owner, as far as the worker is concerned. */
void waiter_owns(struct fetch *f, struct store_waiter *w);
/* One of its values has landed: queues the waiter when nothing is pending any more. */
void waiter_landed(struct fetch *f, struct store_waiter *w);

#endif
