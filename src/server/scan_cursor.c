#include "server/scan_cursor.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/random.h>

#include "base/check.h"

struct scan_position {
    uint64_t number; /* 0: free */
    char *key;
    size_t len;
};

/* A ring: number n lies at n % SCAN_CURSORS_MAX until a later one overwrites it. */
struct scan_cursors {
    pthread_mutex_t mutex;
    uint64_t next, oldest;
    size_t key_bytes;
    struct scan_position ring[SCAN_CURSORS_MAX];
};

struct scan_cursors *scan_cursors_create(void)
{
    struct scan_cursors *c = calloc(1, sizeof *c);
    CHECK(c != NULL);
    pthread_mutex_init(&c->mutex, NULL);
    uint32_t start = 0; /* numbers of an earlier process are unlikely to be taken for ours */
    ssize_t ignored = getrandom(&start, sizeof start, 0);
    (void)ignored;
    c->next = c->oldest = ((uint64_t)start << 14) + 1;
    return c;
}

static void forget_oldest(struct scan_cursors *c)
{
    struct scan_position *p = &c->ring[c->oldest++ % SCAN_CURSORS_MAX];
    c->key_bytes -= p->len;
    free(p->key);
    *p = (struct scan_position){0};
}

void scan_cursors_destroy(struct scan_cursors *c)
{
    while (c->oldest < c->next)
        forget_oldest(c);
    pthread_mutex_destroy(&c->mutex);
    free(c);
}

uint64_t scan_cursors_put(struct scan_cursors *c, struct slice key)
{
    char *copy = malloc(key.len + 1);
    CHECK(copy != NULL);
    memcpy(copy, key.data, key.len);
    pthread_mutex_lock(&c->mutex);
    while (c->oldest < c->next &&
           (c->next - c->oldest == SCAN_CURSORS_MAX || c->key_bytes + key.len > SCAN_CURSORS_BYTES_MAX))
        forget_oldest(c);
    uint64_t number = c->next++;
    c->ring[number % SCAN_CURSORS_MAX] = (struct scan_position){number, copy, key.len};
    c->key_bytes += key.len;
    pthread_mutex_unlock(&c->mutex);
    return number;
}

bool scan_cursors_get(struct scan_cursors *c, uint64_t number, char *out, size_t *len)
{
    pthread_mutex_lock(&c->mutex);
    const struct scan_position *p = &c->ring[number % SCAN_CURSORS_MAX];
    bool found = number != 0 && p->number == number;
    if (found) {
        memcpy(out, p->key, p->len);
        *len = p->len;
    }
    pthread_mutex_unlock(&c->mutex);
    return found;
}
