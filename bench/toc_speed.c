/* toc_speed: nanoseconds per key of writing a toc, reading it back, and building the ordered index from nodes
 * in ascending order, each in one thread, random 16-byte keys. Usage: toc-speed FOLDER [KEYS]. */
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/prng.h"
#include "index/ordered_build.h"
#include "sys/clock.h"
#include "toc/toc_read.h"
#include "toc/toc_write.h"

enum { KEY_BYTES = 16 };

struct key {
    unsigned char bytes[KEY_BYTES];
};

static int compare(const void *a, const void *b)
{
    return memcmp(a, b, KEY_BYTES);
}

static void must(status_t s)
{
    if (!status_is_ok(&s)) {
        fprintf(stderr, "%s\n", s.text);
        exit(1);
    }
}

static struct key *make_keys(uint64_t n)
{
    struct key *keys = malloc(n * sizeof *keys);
    struct prng p;
    CHECK(keys != NULL);
    prng_seed(&p, 1);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t words[2] = {prng_next(&p), prng_next(&p)};
        memcpy(keys[i].bytes, words, KEY_BYTES);
    }
    qsort(keys, n, sizeof *keys, compare);
    return keys;
}

static void report(const char *what, uint64_t start_us, uint64_t n)
{
    double us = (double)(clock_monotonic_us() - start_us);
    printf("%-24s %7.1f ns per key, %.2f s\n", what, us * 1000 / (double)n, us / 1e6);
}

static void write_toc(struct disk *disk, int folder, const char *path, const struct key *keys, uint64_t n)
{
    struct toc_writer *w;
    uint64_t start = clock_monotonic_us();
    must(toc_write_begin(disk, folder, path, 1, 4096, &w));
    for (uint64_t i = 0; i < n; i++) {
        uint64_t version = (1ull << 36) + (prng_mix(i) >> 31 << 3); /* as if written in random order */
        struct toc_entry e = {slice_make((const char *)keys[i].bytes, KEY_BYTES), version, version, 0, 32};
        must(toc_write_add(w, &e));
    }
    report("write", start, n);
    must(toc_write_finish(w, UINT64_MAX, 0, NULL, 0));
    printf("%-24s %7.1f bytes per key\n", "file", (double)toc_write_totals(w)->bytes / (double)n);
    must(toc_write_publish(w));
    report("write, sync, publish", start, n);
}

struct sum {
    uint64_t keys, value;
};

static bool add_up(void *context, const struct toc_entry *e)
{
    struct sum *sum = context;
    sum->keys++;
    sum->value += e->version ^ load_u64(e->key.data);
    return true;
}

static void read_toc(struct disk *disk, int folder, const char *path, uint64_t n)
{
    struct toc *toc;
    struct sum sum = {0};
    uint64_t start = clock_monotonic_us();
    must(toc_open(disk, folder, path, 1, &toc));
    must(toc_read_blocks(toc, 0, toc_info(toc)->blocks, add_up, &sum));
    report("read", start, n);
    CHECK(sum.keys == n);
    toc_close(toc);
}

/* A node as after a load: no value in it. */
static uint32_t make_node(struct arena_cache *cache, const struct key *key)
{
    unsigned class = arena_class(sizeof(struct node) + KEY_BYTES);
    uint32_t ref = arena_alloc(cache, class);
    CHECK(ref != 0);
    struct node *node = arena_at(cache->arena, ref);
    atomic_init(&node->sequence, 2);
    atomic_init(&node->meta, KEY_BYTES | (uint32_t) class << NODE_CLASS_SHIFT);
    atomic_init(&node->value_len, 32);
    memcpy(node->data, key->bytes, KEY_BYTES);
    return ref;
}

static void build_index(const struct key *keys, uint64_t n)
{
    struct arena arena;
    struct arena_cache cache;
    struct ordered tree;
    must(arena_init(&arena));
    arena_cache_init(&cache, &arena);
    must(ordered_init(&tree, &arena, &cache));
    uint32_t *refs = malloc(n * sizeof *refs);
    CHECK(refs != NULL);
    uint64_t start = clock_monotonic_us();
    for (uint64_t i = 0; i < n; i++)
        refs[i] = make_node(&cache, &keys[i]);
    report("make nodes", start, n);
    int64_t nodes = atomic_load_explicit(&cache.live_bytes, memory_order_relaxed);
    start = clock_monotonic_us();
    struct ordered_builder *builder = ordered_builder_create(&cache);
    for (uint64_t i = 0; i < n; i++)
        CHECK(ordered_builder_add(builder, refs[i]));
    report("build leaves", start, n);
    start = clock_monotonic_us();
    must(ordered_builders_join(&tree, &cache, &builder, 1));
    report("join", start, n);
    int64_t all = atomic_load_explicit(&cache.live_bytes, memory_order_relaxed);
    printf("%-24s %7.2f bytes per key\n", "ordered index", (double)(all - nodes) / (double)n);
    CHECK(ordered_check(&tree) == (int64_t)n);
    ordered_builder_destroy(builder);
    free(refs);
    arena_deinit(&arena);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: %s FOLDER [KEYS]\n", argv[0]);
        return 2;
    }
    uint64_t n = argc > 2 ? strtoull(argv[2], NULL, 10) : 10000000;
    struct disk *disk = disk_real();
    int folder = disk->ops->folder_open(disk, argv[1], true);
    CHECK(folder >= 0 && n > 0);
    struct key *keys = make_keys(n);
    write_toc(disk, folder, argv[1], keys, n);
    read_toc(disk, folder, argv[1], n);
    (void)disk->ops->remove(disk, folder, "toc-0000000001.kv");
    build_index(keys, n);
    free(keys);
    return 0;
}
