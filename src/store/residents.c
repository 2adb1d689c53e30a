#include "store/residents.h"

#include <stdlib.h>

#include "base/check.h"
#include "base/relaxed.h"
#include "base/spin.h"

struct resident_chunk {
    struct resident_chunk *next;
    struct resident items[RESIDENTS_CHUNK];
};

/* With the lock. */
static void put_one(struct resident_queue *q, struct resident item)
{
    if (q->tail == NULL || q->tail_at == RESIDENTS_CHUNK) {
        struct resident_chunk *chunk = q->spare;
        q->spare = NULL;
        if (chunk == NULL)
            chunk = malloc(sizeof *chunk);
        CHECK(chunk != NULL);
        chunk->next = NULL;
        if (q->tail)
            q->tail->next = chunk;
        else
            q->head = chunk;
        q->tail = chunk;
        q->tail_at = 0;
    }
    q->tail->items[q->tail_at++] = item;
}

/* With the lock; there is one. */
static struct resident take_one(struct resident_queue *q, uint64_t left)
{
    struct resident item = q->head->items[q->head_at++];
    if (q->head_at == RESIDENTS_CHUNK || left == 0) {
        struct resident_chunk *done = q->head;
        q->head = done->next;
        q->head_at = 0;
        if (q->head == NULL)
            q->tail = NULL;
        free(q->spare);
        q->spare = done;
    }
    return item;
}

void residents_put(struct resident_queue *q, const struct resident *items, unsigned n)
{
    spin_lock(&q->lock);
    for (unsigned i = 0; i < n; i++)
        put_one(q, items[i]);
    atomic_store_explicit(&q->count, relaxed_load(&q->count) + n, memory_order_relaxed);
    spin_unlock(&q->lock);
}

unsigned residents_take(struct resident_queue *q, struct resident *items, unsigned n, bool pass)
{
    spin_lock(&q->lock);
    uint64_t count = relaxed_load(&q->count), pass_left = relaxed_load(&q->pass_left),
             most = pass ? pass_left : count;
    if (n > most)
        n = (unsigned)most;
    for (unsigned i = 0; i < n; i++)
        items[i] = take_one(q, count - 1 - i);
    atomic_store_explicit(&q->count, count - n, memory_order_relaxed);
    atomic_store_explicit(&q->pass_left, pass_left > n ? pass_left - n : 0, memory_order_relaxed);
    spin_unlock(&q->lock);
    return n;
}

void residents_deinit(struct resident_queue *q)
{
    while (q->head) {
        struct resident_chunk *next = q->head->next;
        free(q->head);
        q->head = next;
    }
    free(q->spare);
    free(q->seen);
    *q = (struct resident_queue){0};
}

bool residents_pass_begin(struct resident_queue *q, uint64_t refs)
{
    q->seen = calloc(1, sizeof *q->seen + (refs / 64 + 1) * sizeof *q->seen->words);
    if (q->seen == NULL)
        return false;
    q->seen->refs = refs;
    spin_lock(&q->lock);
    atomic_store_explicit(&q->pass_left, relaxed_load(&q->count), memory_order_relaxed);
    spin_unlock(&q->lock);
    return true;
}

void residents_pass_end(struct resident_queue *q)
{
    free(q->seen);
    q->seen = NULL;
}

bool residents_was_seen(struct seen_refs *seen, uint32_t ref)
{
    uint64_t bit = 1ull << ref % 64;
    if (ref >= seen->refs)
        return false;
    bool was = seen->words[ref / 64] & bit;
    seen->words[ref / 64] |= bit;
    return was;
}
