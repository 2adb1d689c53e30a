/* A data folder with a history, made by a store on real files; copies of it to damage; what is in a folder
 * when a store has opened it. */
#ifndef KVASIR_TESTS_CHECK_FIXTURE_H
#define KVASIR_TESTS_CHECK_FIXTURE_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/prng.h"
#include "store/store.h"
#include "tools/check.h"
#include "unit/store/by_hand.h"
#include "unit/store/cold_values.h"
#include "unit/store/relocate.h"

enum { PATH_BYTES = 256, FILES_MAX = 32, OUT_BYTES = 1 << 16 };

struct folder_file {
    char name[64];
    size_t bytes;
};

/* ---- folders ---- */

static char root[PATH_BYTES];

static inline const char *under(const char *folder, const char *name, char path[PATH_BYTES])
{
    snprintf(path, PATH_BYTES, "%s/%s%s%s", root, folder, name[0] ? "/" : "", name);
    return path;
}

static inline unsigned folder_files(const char *folder, struct folder_file files[FILES_MAX])
{
    char path[PATH_BYTES];
    unsigned n = 0;
    DIR *dir = opendir(under(folder, "", path));
    if (dir == NULL)
        return 0;
    for (struct dirent *e; (e = readdir(dir)) && n < FILES_MAX;) {
        struct stat s;
        if (e->d_name[0] == '.')
            continue;
        assert_int_equal(stat(under(folder, e->d_name, path), &s), 0);
        snprintf(files[n].name, sizeof files[n].name, "%s", e->d_name);
        files[n++].bytes = (size_t)s.st_size;
    }
    closedir(dir);
    return n;
}

static inline void folder_remove(const char *folder)
{
    struct folder_file files[FILES_MAX];
    char path[PATH_BYTES];
    unsigned n = folder_files(folder, files);
    for (unsigned i = 0; i < n; i++)
        if (unlink(under(folder, files[i].name, path)) < 0)
            assert_int_equal(rmdir(path), 0);
    (void)rmdir(under(folder, "", path));
}

static inline char *file_read(const char *folder, const char *name, size_t *bytes)
{
    char path[PATH_BYTES];
    struct stat s;
    int fd = open(under(folder, name, path), O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &s), 0);
    char *data = malloc((size_t)s.st_size + 1);
    assert_non_null(data);
    assert_int_equal(read(fd, data, (size_t)s.st_size), s.st_size);
    close(fd);
    *bytes = (size_t)s.st_size;
    return data;
}

static inline void file_write(const char *folder, const char *name, const char *data, size_t bytes)
{
    char path[PATH_BYTES];
    int fd = open(under(folder, name, path), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, bytes), bytes);
    close(fd);
}

static inline void folder_copy(const char *from, const char *to)
{
    struct folder_file files[FILES_MAX];
    char path[PATH_BYTES];
    unsigned n = folder_files(from, files);
    folder_remove(to);
    assert_int_equal(mkdir(under(to, "", path), 0755), 0);
    for (unsigned i = 0; i < n; i++) {
        size_t bytes;
        char *data = file_read(from, files[i].name, &bytes);
        file_write(to, files[i].name, data, bytes);
        free(data);
    }
}

static inline void flip(const char *folder, const char *name, size_t offset, unsigned bit)
{
    char path[PATH_BYTES], byte;
    int fd = open(under(folder, name, path), O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
    byte = (char)(byte ^ 1 << bit);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
    close(fd);
}

static inline bool folder_same(const char *a, const char *b)
{
    struct folder_file files[FILES_MAX], others[FILES_MAX];
    unsigned n = folder_files(a, files);
    bool same = n == folder_files(b, others);
    for (unsigned i = 0; i < n && same; i++) {
        size_t x_bytes, y_bytes;
        char *x = file_read(a, files[i].name, &x_bytes), *y = file_read(b, files[i].name, &y_bytes);
        same = x_bytes == y_bytes && memcmp(x, y, x_bytes) == 0;
        free(x);
        free(y);
    }
    return same;
}

/* ---- stores ---- */

static inline status_t open_store(const char *folder, struct store **store)
{
    static char path[PATH_BYTES];
    const struct store_config config = {.disk = disk_real(),
                                        .path = under(folder, "", path),
                                        .workers = 1,
                                        .log_segment_bytes_first = 1 << 20,
                                        .log_segment_bytes_max = 1 << 20,
                                        .no_threads = true};
    return store_open(&config, store);
}

static inline void flush_store(struct store *store)
{
    by_hand_flush(store, disk_real(), by_hand_write, 0);
}

/* values[i].data NULL: delete. One turn and one flush, or some when it has to wait. */
static inline void write_keys(struct store *store, unsigned n, const char *const *keys,
                              const struct slice *values, uint64_t expire_ms)
{
    struct slice names[BY_HAND_KEYS_MAX];
    enum store_result r = STORE_BUSY;
    assert_in_range(n, 1, BY_HAND_KEYS_MAX);
    for (unsigned i = 0; i < n; i++)
        names[i] = slice_make(keys[i], strlen(keys[i]));
    for (int turns = 0; r == STORE_BUSY && turns < BY_HAND_TRIES; turns++) {
        r = by_hand_commit(store_worker_get(store, 0), n, names, values, expire_ms);
        flush_store(store);
    }
    assert_int_equal(r, STORE_OK);
}

static inline void write_key(struct store *store, const char *key, struct slice value, uint64_t expire_ms)
{
    write_keys(store, 1, &key, &value, expire_ms);
}

static inline void expire_key(struct store *store, const char *key, uint64_t expire_ms)
{
    struct store_worker *sw = store_worker_get(store, 0);
    struct store_entry entry;
    store_turn_begin(sw);
    sw->depends_lsn = 0;
    store_key_prepare(sw, &entry.key, slice_make(key, strlen(key)));
    assert_int_equal(store_write_begin(sw, &entry, 1, 0), STORE_OK);
    store_stage_expire(sw, &entry, 0, expire_ms);
    assert_int_equal(store_write_commit(sw), STORE_OK);
    store_turn_end(sw);
    flush_store(store);
}

static inline void delete_tree(struct store *store, const char *path)
{
    struct store_worker *sw = store_worker_get(store, 0);
    uint64_t count;
    store_turn_begin(sw);
    sw->depends_lsn = 0;
    assert_int_equal(store_delete_tree(sw, slice_make(path, strlen(path)), &count), STORE_OK);
    store_turn_end(sw);
    flush_store(store);
    by_hand_background(sw);
}

static inline void checkpoint(struct store *store)
{
    by_hand_checkpoint(store, disk_real(), by_hand_write);
}

/* Moves each value with probability share/256 to a data segment, as a cleaner does. */
static inline void move_values(struct store *store, uint64_t number, unsigned share)
{
    struct store_worker *sw = store_worker_get(store, 0);
    struct prng p;
    prng_seed(&p, number);
    store_turn_begin(sw);
    assert_true(relocate_some(sw, &p, share, number, store->keeper.folder) > 5);
    store_turn_end(sw);
}

/* One line a key, in order: key, length and hash of the value, expiry; "corrupt" for one whose value is. For
 * free(). */
static inline char *dump(struct store *store)
{
    struct store_worker *sw = store_worker_get(store, 0);
    struct ordered_cursor cursor;
    const struct node *node;
    char *out;
    size_t out_bytes;
    FILE *f = open_memstream(&out, &out_bytes);
    assert_non_null(f);
    store_turn_begin(sw);
    ordered_seek(&cursor, &store->ordered, slice_make("", 0), false);
    while ((node = ordered_next(&cursor))) {
        struct store_view view;
        struct store_waiter waiter = {0};
        enum store_result r = cold_node_view(sw, node, &view, &waiter);
        if (r == STORE_ABSENT)
            continue;
        fprintf(f, "%.*s ", (int)store_node_key(node).len, store_node_key(node).data);
        if (r == STORE_OK) {
            char *value = malloc(view.len + 1);
            assert_non_null(value);
            assert_true(store_view_copy(&view, value, 0, view.len));
            uint64_t hash = 0;
            for (uint32_t i = 0; i < view.len; i++)
                hash = hash * 31 + (unsigned char)value[i];
            fprintf(f, "%u %llx %llu\n", view.len, (unsigned long long)hash,
                    (unsigned long long)view.expire_ms);
            free(value);
        } else {
            fputs("corrupt\n", f);
        }
        store_waiter_release(sw, &waiter);
    }
    store_turn_end(sw);
    fclose(f);
    return out;
}

/* NULL: the store does not open. The folder changes as a start changes it. */
static inline char *dump_folder(const char *folder)
{
    struct store *store;
    status_t s = open_store(folder, &store);
    if (!status_is_ok(&s))
        return NULL;
    char *lines = dump(store);
    store_close(store);
    return lines;
}

/* ---- check ---- */

static char out_text[OUT_BYTES];

static inline enum check_code run_check(const char *folder, const char *new_folder)
{
    char path[PATH_BYTES], new_path[PATH_BYTES];
    FILE *out = fmemopen(out_text, OUT_BYTES, "w");
    assert_non_null(out);
    struct check_options options = {.disk = disk_real(),
                                    .path = under(folder, "", path),
                                    .new_path = new_folder ? under(new_folder, "", new_path) : NULL,
                                    .out = out};
    enum check_code code = check_run(&options);
    fclose(out);
    return code;
}

static inline void assert_says(const char *what)
{
    if (strstr(out_text, what) == NULL)
        fail_msg("'%s' is missing in:\n%s", what, out_text);
}

#endif
