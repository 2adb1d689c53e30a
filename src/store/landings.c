/* The table of landings: by hash and version, in buckets that double. */
#include "store/landings.h"

#include <stdlib.h>

#include "base/check.h"
#include "store/internal.h"

static void buckets_grow(struct fetch *f)
{
    struct landing **old = f->buckets;
    size_t count = f->bucket_count;
    f->bucket_count *= 2;
    f->buckets = calloc(f->bucket_count, sizeof(struct landing *));
    CHECK(f->buckets);
    for (size_t i = 0; i < count; i++) {
        for (struct landing *l = old[i], *next; l; l = next) {
            next = l->bucket_next;
            struct landing **place = landing_place(f, l->hash, l->version);
            l->bucket_next = *place;
            *place = l;
        }
    }
    free(old);
}

void landing_insert(struct fetch *f, struct landing *l)
{
    if (f->count >= f->bucket_count * 2)
        buckets_grow(f);
    struct landing **place = landing_place(f, l->hash, l->version);
    l->bucket_next = *place;
    *place = l;
    f->count++;
    landing_list_add(&f->wanted, l);
}

static void landing_destroy(struct fetch *f, struct landing *l)
{
    if (l->file)
        segments_release(l->file);
    if (l->buffer) {
        NUMBER_ADD(f->numbers.memory, -(uint64_t)l->bytes);
        atomic_fetch_sub(&f->store->landing_bytes, l->bytes);
    }
    free(l->buffer);
    free(l);
}

void landing_free(struct fetch *f, struct landing *l)
{
    struct landing **at = landing_place(f, l->hash, l->version);
    while (*at != l)
        at = &(*at)->bucket_next;
    *at = l->bucket_next;
    f->count--;
    landing_account(f, l, ACCOUNT_NONE);
    landing_destroy(f, l);
}

void landing_drop(struct fetch *f, struct landing *l)
{
    landing_account(f, l, ACCOUNT_NONE);
    landing_list_add(&f->dropped, l);
}

void landings_deinit(struct fetch *f)
{
    for (size_t i = 0; i < f->bucket_count; i++) {
        for (struct landing *l = f->buckets[i], *next; l; l = next) {
            next = l->bucket_next;
            for (struct claim *c = l->claims, *other; c; c = other) {
                other = c->landing_next;
                free(c);
            }
            landing_destroy(f, l);
        }
    }
    free(f->buckets);
}
