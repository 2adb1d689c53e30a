/* The segment files: are they there, what do their headers say. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/check.h"
#include "tools/check_internal.h"

enum {
    HEADER_GENERATION_AT = 24,
    HEADER_CHECKSUM_AT = 48,
    HEADER_AFTER_AT = 56,
    HEADER_REUSED_AT = 72,
    HEADER_END = 80,
    LOOK_BYTES = 1 << 20,
};

/* Nothing but zeros from the second block on? False also when it cannot be read. */
static bool never_used(struct check *c, int fd, uint64_t bytes)
{
    char *buffer = aligned_alloc(LOG_BLOCK_BYTES, LOOK_BYTES);
    CHECK(buffer != NULL);
    bool zero = bytes == 0 || bytes >= LOG_BLOCK_BYTES;
    for (uint64_t at = LOG_BLOCK_BYTES; at < bytes && zero; at += LOOK_BYTES) {
        int64_t n = c->disk->ops->read(c->disk, fd, buffer, LOOK_BYTES, at);
        zero = n > 0;
        for (int64_t i = 0; i < n && zero; i++)
            zero = buffer[i] == 0;
    }
    free(buffer);
    return zero;
}

/* Undoes the change of one byte, if that is all that is wrong with a header. */
static void mend_header(const char *header, char mended[HEADER_CHECKSUM_AT + 8])
{
    memcpy(mended, header, HEADER_CHECKSUM_AT + 8);
    for (unsigned i = 0; i < HEADER_CHECKSUM_AT; i++) {
        for (unsigned change = 1; change < 256; change++) {
            mended[i] = (char)(header[i] ^ (char)change);
            if (XXH3_64bits(mended, HEADER_CHECKSUM_AT) == load_u64(header + HEADER_CHECKSUM_AT))
                return;
        }
        mended[i] = header[i];
    }
}

/* The generation of a file whose header does not check: the one in the header may be right all the same, or
 * with one byte changed, or a toc knows it. It is right if anything in the file checks with it. */
static bool guess_generation(struct check *c, struct check_segment *s, int fd, const char *header)
{
    struct scan_file f = {.disk = c->disk, .fd = fd, .data = s->data, .number = s->number, .end = s->bytes};
    char mended[HEADER_CHECKSUM_AT + 8];
    mend_header(header, mended);
    const char *const headers[] = {header, mended};
    for (unsigned i = 0; i < 2; i++) {
        f.generation = s->generation = load_u64(headers[i] + HEADER_GENERATION_AT);
        if (scan_is_generation(&f))
            return true;
    }
    for (size_t i = 0; i < c->toc_count; i++) {
        const struct toc_info *info = c->tocs[i].toc ? toc_info(c->tocs[i].toc) : NULL;
        for (uint32_t j = 0; info && j < info->segment_count; j++) {
            const struct toc_segment *listed = &info->segments[j];
            if (listed->number != s->number || (listed->kind == TOC_SEGMENT_DATA) != s->data)
                continue;
            f.generation = s->generation = listed->generation;
            if (scan_is_generation(&f))
                return true;
        }
    }
    return false;
}

static void bad_header(struct check *c, struct check_segment *s, int fd, const char *header)
{
    char name[SEGMENT_NAME_BYTES];
    segment_file_name(name, s->data, s->number);
    if (s->unused) {
        check_note(c, "%s/%s was never used: a crash, or a full disk, while it was made", c->path, name);
        return;
    }
    s->bad_header = true;
    s->usable = guess_generation(c, s, fd, header);
    s->made_bytes = s->bytes;
    check_damage(c, "%s/%s at offset 0: its header does not check%s", c->path, name,
                 s->usable ? "" : ", and without it nothing in the file can be read");
}

/* *n: bytes of the block that there are, or -errno. */
static status_t read_header(struct check *c, struct check_segment *s, int fd, char *block, int64_t *n,
                            struct segment *header)
{
    memset(block, 0, LOG_BLOCK_BYTES);
    *n = c->disk->ops->read(c->disk, fd, block, LOG_BLOCK_BYTES, 0);
    return segment_read_header(c->disk, fd, c->path, s->data, s->number, header);
}

static void look_at_header(struct check *c, struct check_segment *s, int fd)
{
    struct segment header;
    int64_t n;
    char *block = aligned_alloc(LOG_BLOCK_BYTES, LOG_BLOCK_BYTES), name[SEGMENT_NAME_BYTES];
    CHECK(block != NULL);
    segment_file_name(name, s->data, s->number);
    status_t r = read_header(c, s, fd, block, &n, &header);
    s->unused = !s->data && r.code == STATUS_CORRUPT && never_used(c, fd, s->bytes);
    /* The server may have got ready with it, and begun to write to it, between two looks. */
    if (c->live && r.code == STATUS_CORRUPT && !s->unused) {
        int64_t size = c->disk->ops->size(c->disk, fd);
        s->bytes = size > 0 ? (uint64_t)size : s->bytes;
        r = read_header(c, s, fd, block, &n, &header);
    }
    if (status_is_ok(&r)) {
        s->usable = true;
        s->generation = header.generation;
        s->made_bytes = header.bytes;
        s->after = header.after;
        s->reused = header.reused;
        for (int64_t i = header.after ? HEADER_REUSED_AT : HEADER_AFTER_AT; i < n; i++) {
            if (block[i] == 0 || (header.reused && i >= HEADER_REUSED_AT && i < HEADER_END))
                continue;
            check_damage(c, "%s/%s at offset %" PRId64 ": bytes behind the header that should be others",
                         c->path, name, i);
            break;
        }
    } else if (n < 0) {
        check_unreadable(c, "%s", r.text);
        c->refuses = true;
    } else if (r.code == STATUS_CORRUPT) {
        bad_header(c, s, fd, block);
    } else {
        check_unreadable(c, "%s", r.text);
        c->refuses = true;
    }
    free(block);
}

/* A data segment that no toc names is what a crash left of a move, or too new. */
static bool is_orphan(struct check *c, const struct check_segment *s)
{
    bool all_open = c->toc_count > 0, named = false;
    for (size_t i = 0; i < c->toc_count; i++) {
        const struct toc_info *info = c->tocs[i].toc ? toc_info(c->tocs[i].toc) : NULL;
        all_open &= info != NULL;
        for (uint32_t j = 0; info && j < info->segment_count && !named; j++)
            named = info->segments[j].kind == TOC_SEGMENT_DATA && info->segments[j].number == s->number;
    }
    return s->data && all_open && !named;
}

int check_segment_open(struct check *c, const struct check_segment *s)
{
    char name[SEGMENT_NAME_BYTES];
    segment_file_name(name, s->data, s->number);
    return s->fd >= 0 ? s->fd : c->disk->ops->open(c->disk, c->folder, name, false, true);
}

void check_segment_close(struct check *c, const struct check_segment *s, int fd)
{
    if (fd >= 0 && fd != s->fd)
        c->disk->ops->close(c->disk, fd);
}

static void open_one(struct check *c, struct check_segment *s)
{
    char name[SEGMENT_NAME_BYTES];
    segment_file_name(name, s->data, s->number);
    if (is_orphan(c, s)) {
        check_note(c, "%s/%s: no toc names it, so nobody needs it; not looked at", c->path, name);
        return;
    }
    if (!s->data && s->number == SEGMENT_NUMBER_MAX) {
        check_damage(c, "%s/%s has the highest number there is: the log cannot go on behind it", c->path,
                     name);
        c->refuses = true;
    }
    int fd = check_segment_open(c, s);
    int64_t size = fd < 0 ? fd : c->disk->ops->size(c->disk, fd);
    if (size < 0) {
        check_unreadable(c, "%s/%s cannot be opened: %s", c->path, name, strerror((int)-size));
        c->refuses = true;
    } else {
        s->bytes = (uint64_t)size;
        look_at_header(c, s, fd);
        /* A log segment may have been cut by recovery; only behind its batches can that be judged. */
        s->truncated = s->data && s->bytes < s->made_bytes;
        if (s->truncated)
            check_damage(c, "%s/%s at offset %" PRIu64 ": the file ends there; it had %" PRIu64 " bytes",
                         c->path, name, s->bytes, s->made_bytes);
        if (s->data && s->usable && s->bytes > s->made_bytes)
            s->bytes = s->made_bytes;
    }
    check_segment_close(c, s, fd);
}

void check_headers(struct check *c)
{
    for (size_t i = 0; i < c->segment_count; i++)
        open_one(c, &c->segments[i]);
}
