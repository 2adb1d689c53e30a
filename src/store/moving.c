#include "store/moving.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "store/internal.h"

enum {
    RUN_VALUES = 64, /* sorted at once: some 10 us */
    SAMPLES = 255,   /* for the median of the versions */
};

static int by_key(const void *a, const void *b)
{
    return slice_compare(moving_key(a), moving_key(b));
}

static void sort_run(struct moving *m)
{
    size_t start = (m->count - 1) / RUN_VALUES * RUN_VALUES;
    qsort(m->values + start, m->count - start, sizeof *m->values, by_key);
}

void moving_add(struct moving *m, const struct moving_value *v, struct slice key, struct slice value)
{
    m->values = store_grow(m->values, &m->capacity, m->count + 1, sizeof *m->values);
    struct moving_value *own = &m->values[m->count++];
    *own = *v;
    own->key_len = (uint32_t)key.len;
    own->value_len = (uint32_t)value.len;
    own->data = malloc(key.len + value.len + 1);
    CHECK(own->data != NULL);
    memcpy(own->data, key.data, key.len);
    memcpy(own->data + key.len, value.data, value.len);
    if (m->count % RUN_VALUES == 0)
        sort_run(m);
}

/* ---- the heap ---- */

/* Shorter keys end in zeros: where heads are equal the keys decide. */
static uint64_t head_of(const struct moving_value *v)
{
    uint64_t head = 0;
    memcpy(&head, v->data, v->key_len < sizeof head ? v->key_len : sizeof head);
    return htobe64(head);
}

static bool comes_before(const struct moving *m, const struct moving_run *a, const struct moving_run *b)
{
    if (a->head != b->head)
        return a->head < b->head;
    return by_key(&m->values[a->at], &m->values[b->at]) < 0;
}

static void sift_down(struct moving *m, size_t i)
{
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= m->run_count)
            return;
        if (child + 1 < m->run_count && comes_before(m, &m->runs[child + 1], &m->runs[child]))
            child++;
        if (!comes_before(m, &m->runs[child], &m->runs[i]))
            return;
        struct moving_run run = m->runs[i];
        m->runs[i] = m->runs[child];
        m->runs[child] = run;
        i = child;
    }
}

void moving_seal(struct moving *m)
{
    if (m->count % RUN_VALUES)
        sort_run(m);
    m->run_count = (m->count + RUN_VALUES - 1) / RUN_VALUES;
    m->runs = calloc(m->run_count + 1, sizeof *m->runs);
    CHECK(m->runs != NULL);
    for (size_t i = 0; i < m->run_count; i++) {
        size_t end = (i + 1) * RUN_VALUES;
        m->runs[i] = (struct moving_run){.at = (uint32_t)(i * RUN_VALUES),
                                         .end = (uint32_t)(end < m->count ? end : m->count),
                                         .head = head_of(&m->values[i * RUN_VALUES])};
    }
    for (size_t i = m->run_count / 2; i-- > 0;)
        sift_down(m, i);
}

struct moving_value *moving_first(const struct moving *m)
{
    return m->run_count ? &m->values[m->runs[0].at] : NULL;
}

void moving_advance(struct moving *m)
{
    if (++m->runs[0].at == m->runs[0].end)
        m->runs[0] = m->runs[--m->run_count];
    else
        m->runs[0].head = head_of(&m->values[m->runs[0].at]);
    sift_down(m, 0);
}

/* ---- hot and cold ---- */

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

uint64_t moving_median_version(const struct moving *m)
{
    uint64_t versions[SAMPLES];
    size_t n = 0, step = m->count / SAMPLES + 1;
    for (size_t i = 0; i < m->count && n < SAMPLES; i += step)
        versions[n++] = m->values[i].version;
    qsort(versions, n, sizeof *versions, by_number);
    return n ? versions[n / 2] : 0;
}

/* ---- end ---- */

void moving_drop(struct moving_value *v)
{
    free(v->data);
    v->data = NULL;
}

void moving_free(struct moving *m)
{
    for (size_t i = 0; i < m->count; i++)
        free(m->values[i].data);
    free(m->values);
    free(m->runs);
}
