/* Who waits for landings, and the room that they may claim.
 *
 * Claimed landings and those read ahead have half of the memory each, so that what was read ahead is not
 * dropped for want of room. A waiter that finds none is hungry and waits in a queue. Two large commands could
 * wait for each other: one waiter at a time is privileged and gets room beyond the limit. The others hold
 * nothing while they are hungry (store_waiter_let_go): what the privileged one has read would stay in memory
 * behind it for all who have claimed it too, and each next one would add to that.
 *
 * Buffers have a share of the cap too, and one waiter of all workers, the owner, gets them beyond that
 * (fetch.c). It must wait for nobody else: it may claim as the privileged one does, and what it wants stands
 * in front of what others want. */
#include <stdlib.h>

#include "base/check.h"
#include "store/internal.h"
#include "store/landings.h"

/* ---- queues ---- */

static struct waiter_list *queue_of(struct fetch *f, const struct store_waiter *w)
{
    return w->hungry ? &f->hungry : &f->ready;
}

/* Queues the waiter when nothing is pending any more. */
static void waiter_settle(struct fetch *f, struct store_waiter *w)
{
    if (w->pending || w->queued)
        return;
    struct waiter_list *queue = queue_of(f, w);
    w->queued = true;
    w->next = NULL;
    w->previous = queue->last;
    *(queue->last ? &queue->last->next : &queue->first) = w;
    queue->last = w;
}

static void waiter_unqueue(struct fetch *f, struct store_waiter *w)
{
    if (!w->queued)
        return;
    struct waiter_list *queue = queue_of(f, w);
    *(w->previous ? &w->previous->next : &queue->first) = w->next;
    *(w->next ? &w->next->previous : &queue->last) = w->previous;
    w->next = w->previous = NULL;
    w->queued = false;
}

/* ---- claims ---- */

bool waiter_may_claim(struct fetch *f, struct store_waiter *w, uint64_t bytes)
{
    if (f->used[ACCOUNT_CLAIMED] == 0 || landing_has_room(f, ACCOUNT_CLAIMED, bytes))
        return true;
    if (f->privileged == NULL)
        f->privileged = w;
    if (f->privileged == w || f->owner == w)
        return true;
    if (!w->hungry) {
        waiter_unqueue(f, w);
        w->hungry = true;
        w->hungry_bytes = 0;
        waiter_settle(f, w);
    }
    w->hungry_bytes += bytes;
    return false;
}

/* What is wanted is looked at from the front, and not far. */
static void come_first(struct fetch *f, struct landing *l)
{
    if (l->state != LANDING_WANTED)
        return;
    landing_list_remove(&f->wanted, l);
    landing_list_add_first(&f->wanted, l);
}

void waiter_owns(struct fetch *f, struct store_waiter *w)
{
    f->owner = w;
    waiter_unqueue(f, w); /* one that is hungry waits for the privileged one; now for what it has claimed */
    w->hungry = false;
    waiter_settle(f, w);
    for (struct claim *c = w->claims; c; c = c->next)
        come_first(f, c->landing);
}

void waiter_claim(struct fetch *f, struct landing *l, struct store_waiter *w)
{
    if (l->claims && l->claims->waiter == w) /* one command that names a key twice */
        return;
    struct claim *c = malloc(sizeof *c);
    CHECK(c);
    *c = (struct claim){l, w, w->claims, l->claims, &l->claims};
    if (l->claims)
        l->claims->landing_at = &c->landing_next;
    l->claims = c;
    w->claims = c;
    w->bytes += l->bytes;
    w->pending++;
    l->ahead = false;
    if (l->account != ACCOUNT_CLAIMED)
        landing_account(f, l, ACCOUNT_CLAIMED);
    if (f->owner == w)
        come_first(f, l);
}

void waiter_landed(struct fetch *f, struct store_waiter *w)
{
    w->pending--;
    waiter_settle(f, w);
}

static void unclaim(struct fetch *f, struct claim *c)
{
    struct landing *l = c->landing;
    *c->landing_at = c->landing_next;
    if (c->landing_next)
        c->landing_next->landing_at = c->landing_at;
    free(c);
    if (l->claims)
        return;
    switch ((enum landing_state)l->state) {
    case LANDING_WANTED:
        landing_list_remove(&f->wanted, l);
        landing_free(f, l);
        break;
    case LANDING_READING: /* goes when it has landed */
        landing_account(f, l, ACCOUNT_AHEAD);
        break;
    default:
        landing_drop(f, l);
        break;
    }
}

static void unclaim_all(struct fetch *f, struct store_waiter *w)
{
    while (w->claims) {
        struct claim *c = w->claims;
        w->claims = c->next;
        unclaim(f, c);
    }
}

void store_waiter_let_go(struct store_worker *sw, struct store_waiter *waiter)
{
    struct fetch *f = sw->fetch;
    if (!waiter->hungry || waiter->claims == NULL || f->privileged == waiter || f->owner == waiter)
        return;
    unclaim_all(f, waiter);
    waiter->hungry_bytes += waiter->bytes; /* it asks for all again: not before there is room for that */
    waiter->bytes = 0;
    waiter->pending = 0;
    waiter_settle(f, waiter);
}

void store_waiter_release(struct store_worker *sw, struct store_waiter *waiter)
{
    struct fetch *f = sw->fetch;
    if (f == NULL)
        return;
    waiter_unqueue(f, waiter);
    if (f->privileged == waiter)
        f->privileged = NULL;
    if (UNLIKELY(f->owner == waiter)) {
        f->owner = NULL;
        atomic_store(&sw->store->landing_owner, NULL);
    }
    unclaim_all(f, waiter);
    *waiter = (struct store_waiter){0};
}

/* ---- whose turn it is ---- */

static bool hungry_may_go(const struct fetch *f)
{
    const struct store_waiter *w = f->hungry.first;
    return w && (f->privileged == NULL || f->used[ACCOUNT_CLAIMED] == 0 ||
                 landing_has_room(f, ACCOUNT_CLAIMED, w->hungry_bytes));
}

bool store_waiter_due(const struct store_worker *sw)
{
    const struct fetch *f = sw->fetch;
    return f && (f->ready.first || hungry_may_go(f));
}

bool store_waiter_holds_several(const struct store_waiter *waiter)
{
    return waiter->claims && waiter->claims->next;
}

struct store_waiter *store_waiter_next(struct store_worker *sw)
{
    struct fetch *f = sw->fetch;
    struct store_waiter *w = f ? f->ready.first : NULL;
    if (w) {
        waiter_unqueue(f, w);
        return w;
    }
    while (f && hungry_may_go(f)) {
        w = f->hungry.first;
        waiter_unqueue(f, w);
        if (w->pending) /* it comes back when that has landed */
            continue;
        w->hungry = false;
        return w;
    }
    return NULL;
}
