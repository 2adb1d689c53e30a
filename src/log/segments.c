#include "log/segments.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/check.h"

enum {
    REAP_BYTES = 4 << 20,
    PAGE_SLOTS = 1 << SEGMENTS_PAGE_SHIFT,
    PAGES = (SEGMENT_NUMBER_MAX + 1) / PAGE_SLOTS,
    KINDS = 2, /* log, data */
    DIRECT_UNIT_MIN = 512,
    DIRECT_UNIT_MAX = 4096,
};

/* Of files with neighbouring numbers. */
struct page {
    _Atomic(struct segment_file *) slots[PAGE_SLOTS];
};

/* What one lane counts for segments with neighbouring numbers. */
struct live_page {
    _Atomic int64_t bytes[PAGE_SLOTS]; /* the lane's thread writes, any reads. Relaxed: see segments.h */
};

struct lane {
    uint64_t pages_end[KINDS];                       /* none at or behind it; the lane's thread's */
    _Atomic(struct live_page *) pages[KINDS][PAGES]; /* mostly address space only */
};

struct file_list {
    struct segment_file *first, *last;
};

struct segments {
    struct disk *disk;
    /* Release by segments_add, acquire by find: a page's slots are empty, a slot's file is filled in. 1 MiB
     * of address space a kind, of which a table touches what it uses. */
    _Atomic(struct page *) *pages[KINDS];
    _Atomic(struct lane *) lanes[SEGMENT_LANES_MAX]; /* release by the lane's thread, acquire by readers */
    _Atomic uint32_t direct_unit;                    /* 0: not known yet. Relaxed */
    pthread_mutex_t mutex;                           /* everything below */
    struct file_list listed, leaving;                /* spare files are among the leaving */
    struct file_list unused;                         /* entries without a file */
    uint64_t last_spare;                             /* number given out */
    uint64_t reused;                                 /* spare files given out */
};

/* ---- lists, under the mutex ---- */

static void list_append(struct file_list *list, struct segment_file *file)
{
    file->next = NULL;
    if (list->last)
        list->last->next = file;
    else
        list->first = file;
    list->last = file;
}

static struct segment_file *list_pop(struct file_list *list)
{
    struct segment_file *file = list->first;
    if (file)
        list->first = file->next;
    if (list->first == NULL)
        list->last = NULL;
    return file;
}

static void list_remove(struct file_list *list, struct segment_file *file)
{
    struct segment_file *before = NULL;
    for (struct segment_file *f = list->first; f != file; f = f->next)
        before = f;
    if (before)
        before->next = file->next;
    else
        list->first = file->next;
    if (list->last == file)
        list->last = before;
}

static void lanes_free(struct segments *s);

/* ---- life ---- */

struct segments *segments_create(struct disk *disk)
{
    struct segments *s = calloc(1, sizeof *s);
    CHECK(s != NULL);
    s->disk = disk;
    pthread_mutex_init(&s->mutex, NULL);
    for (unsigned kind = 0; kind < KINDS; kind++) {
        s->pages[kind] = calloc(PAGES, sizeof *s->pages[kind]);
        CHECK(s->pages[kind] != NULL);
    }
    return s;
}

static void close_list(struct segments *s, struct file_list *list, bool open)
{
    struct segment_file *file;
    while ((file = list_pop(list))) {
        /* Acquire: pairs with segments_release; the last reader is done. */
        CHECK(atomic_load_explicit(&file->refs, memory_order_acquire) == 0);
        if (open)
            s->disk->ops->close(s->disk, file->fd);
        free(file);
    }
}

void segments_destroy(struct segments *s)
{
    if (s == NULL)
        return;
    close_list(s, &s->listed, true);
    close_list(s, &s->leaving, true);
    close_list(s, &s->unused, false);
    for (unsigned kind = 0; kind < KINDS; kind++) {
        for (unsigned i = 0; i < PAGES; i++)
            free(atomic_load_explicit(&s->pages[kind][i], memory_order_relaxed));
        free(s->pages[kind]);
    }
    lanes_free(s);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

/* ---- listing ---- */

static _Atomic(struct segment_file *) *slot_make(struct segments *s, bool data, uint64_t number)
{
    _Atomic(struct page *) *place = &s->pages[data][number / PAGE_SLOTS];
    struct page *page = atomic_load_explicit(place, memory_order_relaxed);
    if (page == NULL) {
        page = calloc(1, sizeof *page);
        CHECK(page != NULL);
        /* Release: pairs with slot_find. */
        atomic_store_explicit(place, page, memory_order_release);
    }
    return &page->slots[number % PAGE_SLOTS];
}

static _Atomic(struct segment_file *) *slot_find(const struct segments *s, uint64_t address)
{
    uint64_t number = (address & ~SEGMENT_DATA_ADDRESS) >> LOG_SEGMENT_SHIFT;
    /* Acquire: pairs with slot_make. */
    struct page *page =
        atomic_load_explicit(&s->pages[address >> 63][number / PAGE_SLOTS], memory_order_acquire);
    return page ? &page->slots[number % PAGE_SLOTS] : NULL;
}

static void learn_direct_unit(struct segments *s, int fd)
{
    if (atomic_load_explicit(&s->direct_unit, memory_order_relaxed))
        return;
    int unit = s->disk->ops->direct_unit(s->disk, fd);
    if (unit < DIRECT_UNIT_MIN || unit > DIRECT_UNIT_MAX || (unit & (unit - 1)))
        unit = unit > 0 && unit < DIRECT_UNIT_MIN ? DIRECT_UNIT_MIN : DIRECT_UNIT_MAX;
    atomic_store_explicit(&s->direct_unit, (uint32_t)unit, memory_order_relaxed);
}

/* Under the mutex. */
static struct segment_file *entry_get(struct segments *s)
{
    struct segment_file *file = list_pop(&s->unused);
    if (file == NULL) {
        file = aligned_alloc(_Alignof(struct segment_file), sizeof *file);
        CHECK(file != NULL);
        atomic_init(&file->refs, 0);
    }
    return file;
}

struct segment_file *segments_add(struct segments *s, bool data, uint64_t number, uint64_t generation,
                                  uint64_t bytes, int fd)
{
    CHECK(number <= SEGMENT_NUMBER_MAX);
    learn_direct_unit(s, fd);
    pthread_mutex_lock(&s->mutex);
    struct segment_file *file = entry_get(s);
    /* refs stays what it is: a reader that came too late may be about to take its reference back. */
    file->number = number;
    file->generation = generation;
    file->fd = fd;
    file->data = data;
    file->listed = true;
    file->spare = 0;
    file->dead_since = file->since_ms = 0;
    file->clean_failures = 0;
    atomic_store_explicit(&file->bytes, bytes, memory_order_relaxed);
    atomic_store_explicit(&file->sealed, false, memory_order_relaxed);
    list_append(&s->listed, file);
    _Atomic(struct segment_file *) *slot = slot_make(s, data, number);
    CHECK(atomic_load_explicit(slot, memory_order_relaxed) == NULL);
    /* Release: pairs with segments_find; the entry is filled in. */
    atomic_store_explicit(slot, file, memory_order_release);
    pthread_mutex_unlock(&s->mutex);
    return file;
}

void segments_seal(struct segment_file *file)
{
    /* Release: pairs with the acquire of whoever asks; the final size is there. */
    atomic_store_explicit(&file->sealed, true, memory_order_release);
}

void segments_unlist(struct segments *s, struct segment_file *file, uint64_t spare)
{
    pthread_mutex_lock(&s->mutex);
    CHECK(file->listed);
    file->listed = false;
    file->spare = spare;
    /* Sequentially consistent, as the reader's two steps in segments_acquire and the look in is_unread:
     * either that reader sees that the file has gone, or its reference is seen. */
    atomic_store_explicit(slot_make(s, file->data, file->number), NULL, memory_order_seq_cst);
    list_remove(&s->listed, file);
    list_append(&s->leaving, file);
    pthread_mutex_unlock(&s->mutex);
}

/* ---- leaving ---- */

void segments_leave(struct segments *s, uint64_t bytes, int fd)
{
    pthread_mutex_lock(&s->mutex);
    struct segment_file *file = entry_get(s);
    file->fd = fd;
    file->listed = false;
    file->spare = 0;
    atomic_store_explicit(&file->bytes, bytes, memory_order_relaxed);
    list_append(&s->leaving, file);
    pthread_mutex_unlock(&s->mutex);
}

/* Of an unlisted file. Pairs with segments_acquire and segments_release: see segments_unlist. Once true its
 * references may grow again only by late comers, who take them back without using them. */
static bool is_unread(struct segment_file *file)
{
    return atomic_load_explicit(&file->refs, memory_order_seq_cst) == 0;
}

static uint64_t bytes_of(const struct segment_file *file)
{
    return atomic_load_explicit(&((struct segment_file *)(uintptr_t)file)->bytes, memory_order_relaxed);
}

unsigned segments_reap(struct segments *s)
{
    struct file_list left = {0}, done = {0};
    struct segment_file *file;
    unsigned count = 0;
    pthread_mutex_lock(&s->mutex);
    while ((file = list_pop(&s->leaving))) {
        bool stays = file->spare || !is_unread(file);
        list_append(stays ? &left : &done, file);
        count += stays && !file->spare;
    }
    s->leaving = left;
    pthread_mutex_unlock(&s->mutex);
    while ((file = list_pop(&done))) {
        s->disk->ops->close(s->disk, file->fd); /* frees the blocks of a removed file: may take a while */
        pthread_mutex_lock(&s->mutex);
        list_append(&s->unused, file);
        pthread_mutex_unlock(&s->mutex);
    }
    return count;
}

/* One to be closed that nobody reads any more, taken off the list. */
static struct segment_file *take_unread(struct segments *s)
{
    struct segment_file *file;
    pthread_mutex_lock(&s->mutex);
    for (file = s->leaving.first; file; file = file->next)
        if (file->spare == 0 && is_unread(file))
            break;
    if (file)
        list_remove(&s->leaving, file);
    pthread_mutex_unlock(&s->mutex);
    return file;
}

bool segments_reap_step(struct segments *s)
{
    struct disk *disk = s->disk;
    struct segment_file *file = take_unread(s);
    if (file == NULL)
        return false;
    uint64_t bytes = bytes_of(file);
    bool shortened = bytes > REAP_BYTES && disk_may_overwrite(disk, file->fd, 0) &&
                     disk->ops->truncate(disk, file->fd, bytes - REAP_BYTES) >= 0;
    if (shortened)
        atomic_store_explicit(&file->bytes, bytes - REAP_BYTES, memory_order_relaxed);
    else
        disk->ops->close(disk, file->fd);
    pthread_mutex_lock(&s->mutex);
    list_append(shortened ? &s->leaving : &s->unused, file);
    pthread_mutex_unlock(&s->mutex);
    return true;
}

uint64_t segments_spare_number(struct segments *s)
{
    pthread_mutex_lock(&s->mutex);
    uint64_t number = ++s->last_spare;
    pthread_mutex_unlock(&s->mutex);
    return number;
}

/* Is a of more use than b, where so many bytes are wanted? */
static bool suits_better(uint64_t a, uint64_t b, uint64_t wanted)
{
    return a >= wanted && b >= wanted ? a < b : a > b;
}

static bool spare_suits(struct segment_file *f, uint64_t least, uint64_t most)
{
    uint64_t bytes = bytes_of(f);
    return f->spare && bytes >= least && bytes <= most && is_unread(f);
}

/* Under the mutex. See segments_spare_take. */
static struct segment_file *spare_find(const struct segments *s, uint64_t least, uint64_t most,
                                       uint64_t wanted)
{
    struct segment_file *best = NULL;
    for (struct segment_file *f = s->leaving.first; f; f = f->next) {
        if (spare_suits(f, least, most) &&
            (best == NULL || suits_better(bytes_of(f), bytes_of(best), wanted)))
            best = f;
    }
    return best;
}

bool segments_spare_take(struct segments *s, uint64_t least, uint64_t most, uint64_t wanted,
                         struct segments_spare *out)
{
    pthread_mutex_lock(&s->mutex);
    struct segment_file *file = spare_find(s, least, most, wanted);
    if (file) {
        *out = (struct segments_spare){.number = file->spare, .bytes = bytes_of(file), .fd = file->fd};
        list_remove(&s->leaving, file);
        list_append(&s->unused, file);
        s->reused++;
    }
    pthread_mutex_unlock(&s->mutex);
    return file != NULL;
}

uint64_t segments_spare_size(struct segments *s, uint64_t least, uint64_t most, uint64_t wanted)
{
    pthread_mutex_lock(&s->mutex);
    const struct segment_file *file = spare_find(s, least, most, wanted);
    uint64_t bytes = file ? bytes_of(file) : 0;
    pthread_mutex_unlock(&s->mutex);
    return bytes;
}

uint64_t segments_spare_sum(struct segments *s, uint64_t least, uint64_t most)
{
    uint64_t sum = 0;
    pthread_mutex_lock(&s->mutex);
    for (struct segment_file *f = s->leaving.first; f; f = f->next)
        sum += spare_suits(f, least, most) ? bytes_of(f) : 0;
    pthread_mutex_unlock(&s->mutex);
    return sum;
}

uint64_t segments_spare_drop(struct segments *s, uint64_t most)
{
    uint64_t number = 0;
    pthread_mutex_lock(&s->mutex);
    for (struct segment_file *f = s->leaving.first; f && number == 0; f = f->next) {
        if (bytes_of(f) > most)
            continue;
        number = f->spare;
        f->spare = 0;
    }
    pthread_mutex_unlock(&s->mutex);
    return number;
}

/* ---- finding ---- */

struct segment_file *segments_find(const struct segments *s, uint64_t address)
{
    _Atomic(struct segment_file *) *slot = slot_find(s, address);
    /* Acquire: pairs with segments_add. */
    return slot ? atomic_load_explicit(slot, memory_order_acquire) : NULL;
}

struct segment_file *segments_acquire(const struct segments *s, uint64_t address)
{
    _Atomic(struct segment_file *) *slot = slot_find(s, address);
    struct segment_file *file = slot ? atomic_load_explicit(slot, memory_order_acquire) : NULL;
    if (file == NULL)
        return NULL;
    /* Sequentially consistent, both: pairs with segments_unlist and segments_reap. */
    atomic_fetch_add_explicit(&file->refs, 1, memory_order_seq_cst);
    if (atomic_load_explicit(slot, memory_order_seq_cst) == file)
        return file;
    segments_release(file);
    return NULL;
}

void segments_release(struct segment_file *file)
{
    /* Release: what was read through the descriptor was read before; pairs with segments_reap. */
    uint32_t before = atomic_fetch_sub_explicit(&file->refs, 1, memory_order_release);
    CHECK(before > 0);
}

/* ---- what is live ---- */

void segments_lane_attach(struct segments_lane *lane, struct segments *segments, unsigned index)
{
    CHECK(index < SEGMENT_LANES_MAX);
    *lane = (struct segments_lane){.segments = segments, .index = index};
}

_Atomic int64_t *segments_lane_page(struct segments_lane *lane, uint64_t address)
{
    struct segments *s = lane->segments;
    unsigned kind = (unsigned)(address >> 63);
    uint64_t number = (address & ~SEGMENT_DATA_ADDRESS) >> LOG_SEGMENT_SHIFT >> SEGMENTS_PAGE_SHIFT;
    struct lane *l = atomic_load_explicit(&s->lanes[lane->index], memory_order_relaxed);
    if (l == NULL) {
        l = calloc(1, sizeof *l);
        CHECK(l != NULL);
        /* Release, both: pair with lane_bytes. What they point to is empty. */
        atomic_store_explicit(&s->lanes[lane->index], l, memory_order_release);
    }
    struct live_page *page = atomic_load_explicit(&l->pages[kind][number], memory_order_relaxed);
    if (page == NULL) {
        page = calloc(1, sizeof *page);
        CHECK(page != NULL);
        atomic_store_explicit(&l->pages[kind][number], page, memory_order_release);
        if (l->pages_end[kind] <= number)
            l->pages_end[kind] = number + 1;
    }
    lane->page[kind].number = address >> LOG_SEGMENT_SHIFT >> SEGMENTS_PAGE_SHIFT;
    lane->page[kind].bytes = page->bytes;
    return page->bytes;
}

static int64_t lane_bytes(const struct lane *lane, bool data, uint64_t number)
{
    struct lane *l = (struct lane *)(uintptr_t)lane;
    struct live_page *page =
        l ? atomic_load_explicit(&l->pages[data][number / PAGE_SLOTS], memory_order_acquire) : NULL;
    return page ? atomic_load_explicit(&page->bytes[number % PAGE_SLOTS], memory_order_relaxed) : 0;
}

int64_t segments_live_bytes(const struct segments *const_s, const struct segment_file *file)
{
    struct segments *s = (struct segments *)(uintptr_t)const_s;
    int64_t sum = 0;
    for (unsigned i = 0; i < SEGMENT_LANES_MAX; i++)
        sum += lane_bytes(atomic_load_explicit(&s->lanes[i], memory_order_acquire), file->data, file->number);
    return sum;
}

/* Every page of every lane. */
static void each_live_page(struct segments *s, void (*each)(struct live_page *page))
{
    for (unsigned i = 0; i < SEGMENT_LANES_MAX; i++) {
        struct lane *l = atomic_load_explicit(&s->lanes[i], memory_order_relaxed);
        for (unsigned kind = 0; l && kind < KINDS; kind++)
            for (uint64_t n = 0; n < l->pages_end[kind]; n++)
                if (atomic_load_explicit(&l->pages[kind][n], memory_order_relaxed))
                    each(atomic_load_explicit(&l->pages[kind][n], memory_order_relaxed));
    }
}

static void live_page_clear(struct live_page *page)
{
    for (unsigned i = 0; i < PAGE_SLOTS; i++)
        atomic_store_explicit(&page->bytes[i], 0, memory_order_relaxed);
}

static void live_page_free(struct live_page *page)
{
    free(page);
}

void segments_live_clear(struct segments *s)
{
    each_live_page(s, live_page_clear);
}

static void lanes_free(struct segments *s)
{
    each_live_page(s, live_page_free);
    for (unsigned i = 0; i < SEGMENT_LANES_MAX; i++)
        free(atomic_load_explicit(&s->lanes[i], memory_order_relaxed));
}

/* ---- numbers ---- */

uint32_t segments_direct_unit(const struct segments *s)
{
    uint32_t unit = atomic_load_explicit(&s->direct_unit, memory_order_relaxed);
    return unit ? unit : DIRECT_UNIT_MAX;
}

void segments_totals_get(struct segments *s, struct segments_totals *out)
{
    *out = (struct segments_totals){0};
    int64_t live = 0, dead = 0;
    pthread_mutex_lock(&s->mutex);
    for (struct segment_file *f = s->listed.first; f; f = f->next) {
        uint64_t bytes = atomic_load_explicit(&f->bytes, memory_order_relaxed);
        *(f->data ? &out->data_segments : &out->log_segments) += 1;
        *(f->data ? &out->data_bytes : &out->log_bytes) += bytes;
        int64_t weights = segments_live_bytes(s, f);
        live += weights;
        /* Weights are about right: a file may weigh more than it has bytes. */
        if (atomic_load_explicit(&f->sealed, memory_order_acquire) && (int64_t)bytes > weights)
            dead += (int64_t)bytes - weights;
    }
    for (struct segment_file *f = s->leaving.first; f; f = f->next) {
        out->leaving_segments += f->spare == 0;
        out->spare_segments += f->spare != 0;
        out->spare_bytes += f->spare ? bytes_of(f) : 0;
    }
    out->reused_segments = s->reused;
    pthread_mutex_unlock(&s->mutex);
    out->dead_bytes = (uint64_t)dead;
    out->live_bytes = live > 0 ? (uint64_t)live : 0; /* counts under way may come in any order */
}

struct segments_bytes segments_bytes_get(struct segments *s)
{
    struct segments_bytes bytes = {0};
    pthread_mutex_lock(&s->mutex);
    for (struct segment_file *f = s->listed.first; f; f = f->next)
        bytes.all += bytes_of(f);
    for (struct segment_file *f = s->leaving.first; f; f = f->next) {
        bytes.all += bytes_of(f);
        *(f->spare ? &bytes.spare : &bytes.leaving) += bytes_of(f);
    }
    pthread_mutex_unlock(&s->mutex);
    return bytes;
}

void segments_each(struct segments *s, bool (*each)(void *context, struct segment_file *file), void *context)
{
    pthread_mutex_lock(&s->mutex);
    for (struct segment_file *f = s->listed.first; f && each(context, f); f = f->next)
        ;
    pthread_mutex_unlock(&s->mutex);
}
