#include "index/ordered_page.h"

#include "base/check.h"

static uint32_t head_of(struct slice key, uint32_t prefix_len)
{
    unsigned char bytes[4] = {0};
    size_t rest = key.len > prefix_len ? key.len - prefix_len : 0;
    if (LIKELY(rest >= 4))
        return __builtin_bswap32(load_u32(key.data + prefix_len));
    if (rest)
        memcpy(bytes, key.data + prefix_len, rest);
    return __builtin_bswap32(load_u32(bytes));
}

unsigned page_lower_bound(const struct arena *arena, const struct ordered_page *p, struct slice key,
                          bool after_equal)
{
    uint32_t head = head_of(key, p->prefix_len);
    unsigned low = 0, high = 0;
    for (unsigned i = 0; i < p->count; i++) { /* sorted: counting finds the bounds, and vectorises */
        low += p->heads[i] < head;
        high += p->heads[i] <= head;
    }
    if (low == high)
        return low;
    /* Mostly appending: look at the last first. */
    int c = slice_compare(page_key(arena, p, high - 1), key);
    if (c < 0 || (c == 0 && after_equal))
        return high;
    high--;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        c = slice_compare(page_key(arena, p, middle), key);
        if (c < 0 || (c == 0 && after_equal))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static uint32_t common_prefix(struct slice a, struct slice b)
{
    uint32_t n = (uint32_t)(a.len < b.len ? a.len : b.len), i = 0;
    while (i < n && a.data[i] == b.data[i])
        i++;
    return i;
}

static struct ordered_page *page_alloc(struct arena_cache *cache, size_t bytes, uint32_t *ref)
{
    unsigned class = arena_class(bytes);
    CHECK(class < ARENA_CLASSES);
    *ref = arena_alloc(cache, class);
    CHECK(*ref != 0);
    struct ordered_page *p = arena_at(cache->arena, *ref);
    p->class = (uint8_t) class;
    return p;
}

uint32_t page_build(struct arena_cache *cache, const struct ordered_draft *draft)
{
    size_t words = (size_t)draft->count * (draft->level ? 3 : 2);
    size_t bytes = sizeof(struct ordered_page) + words * 4 + draft->low.len + draft->high.len;
    for (unsigned i = 0; draft->level && i < draft->count; i++)
        bytes += draft->keys[i].len;
    uint32_t ref;
    struct ordered_page *p = page_alloc(cache, bytes, &ref);
    p->next = draft->next;
    p->low_len = (uint32_t)draft->low.len;
    p->high_len = (uint32_t)draft->high.len;
    p->prefix_len = draft->has_high ? common_prefix(draft->low, draft->high) : 0;
    p->count = (uint16_t)draft->count;
    p->level = (uint8_t)draft->level;
    p->has_high = draft->has_high;
    uint32_t *refs = p->heads + p->count, *ends = p->heads + 2 * p->count, end = 0;
    char *out = (char *)(p->heads + words);
    memcpy(out, draft->low.data, draft->low.len);
    out += draft->low.len;
    if (draft->high.len)
        memcpy(out, draft->high.data, draft->high.len);
    out += draft->high.len;
    for (unsigned i = 0; i < draft->count; i++) {
        p->heads[i] = head_of(draft->keys[i], p->prefix_len);
        refs[i] = draft->refs[i];
        if (draft->level) {
            memcpy(out + end, draft->keys[i].data, draft->keys[i].len);
            end += (uint32_t)draft->keys[i].len;
            ends[i] = end;
        }
    }
    return ref;
}

static void copy_words(uint32_t *to, const uint32_t *from, unsigned count)
{
    memcpy(to, from, count * sizeof *to);
}

uint32_t page_with(struct arena_cache *cache, const struct ordered_page *p, unsigned at, struct slice key,
                   uint32_t ref)
{
    unsigned n = p->count;
    uint32_t new_ref, bound_bytes = p->low_len + p->high_len;
    struct ordered_page *q = page_alloc(cache, sizeof *p + (size_t)(n + 1) * 8 + bound_bytes, &new_ref);
    uint8_t class = q->class;
    *q = *p;
    q->class = class;
    q->count = (uint16_t)(n + 1);
    copy_words(q->heads, p->heads, at);
    q->heads[at] = head_of(key, p->prefix_len);
    copy_words(q->heads + at + 1, p->heads + at, n - at);
    uint32_t *refs = q->heads + n + 1;
    copy_words(refs, page_refs(p), at);
    refs[at] = ref;
    copy_words(refs + at + 1, page_refs(p) + at, n - at);
    memcpy(refs + n + 1, page_bytes(p), bound_bytes);
    return new_ref;
}

uint32_t page_without(struct arena_cache *cache, const struct ordered_page *p, unsigned at)
{
    unsigned n = p->count;
    uint32_t new_ref, bound_bytes = p->low_len + p->high_len;
    struct ordered_page *q = page_alloc(cache, sizeof *p + (size_t)(n - 1) * 8 + bound_bytes, &new_ref);
    uint8_t class = q->class;
    *q = *p;
    q->class = class;
    q->count = (uint16_t)(n - 1);
    copy_words(q->heads, p->heads, at);
    copy_words(q->heads + at, p->heads + at + 1, n - 1 - at);
    uint32_t *refs = q->heads + n - 1;
    copy_words(refs, page_refs(p), at);
    copy_words(refs + at, page_refs(p) + at + 1, n - 1 - at);
    memcpy(refs + n - 1, page_bytes(p), bound_bytes);
    return new_ref;
}

void draft_add_page(struct ordered_draft *draft, const struct arena *arena, const struct ordered_page *p)
{
    CHECK(draft->count + p->count <= sizeof draft->refs / sizeof draft->refs[0]);
    for (unsigned i = 0; p->level == 0 && i < p->count; i++)
        __builtin_prefetch(arena_at(arena, page_refs(p)[i]));
    for (unsigned i = 0; i < p->count; i++) {
        draft->refs[draft->count] = page_refs(p)[i];
        draft->keys[draft->count++] = page_key(arena, p, i);
    }
}

void draft_insert(struct ordered_draft *draft, unsigned at, struct slice key, uint32_t ref)
{
    memmove(draft->refs + at + 1, draft->refs + at, (draft->count - at) * sizeof draft->refs[0]);
    memmove(draft->keys + at + 1, draft->keys + at, (draft->count - at) * sizeof draft->keys[0]);
    draft->refs[at] = ref;
    draft->keys[at] = key;
    draft->count++;
}

struct slice page_separator(struct slice left, struct slice right)
{
    uint32_t n = common_prefix(left, right) + 1;
    return slice_make(right.data, n < right.len ? n : right.len);
}
