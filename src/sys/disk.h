/* disk: the blocking file operations that the log and the tools need, behind a table of functions, so that
 * tests can put a simulated disk (crashes, torn writes, full, failing) underneath. Transfers on the hot path
 * do not go through here but through loop_file, with the descriptors that open/create return.
 *
 * Thread safety: the real disk is stateless and may be used from any thread. Paths are relative to the folder
 * descriptor that folder_open returned. All calls return >= 0 or -errno; none prints. */
#ifndef KVASIR_SYS_DISK_H
#define KVASIR_SYS_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct disk;

struct disk_ops {
    int (*folder_open)(struct disk *disk, const char *path, bool create);
    /* A new folder, made durable; fails if it exists. */
    int (*folder_create)(struct disk *disk, const char *path);
    /* Durable when it returns. The new name must not exist. */
    int (*folder_rename)(struct disk *disk, const char *from, const char *to);
    int (*folder_remove)(struct disk *disk, const char *path); /* an empty one */
    /* Does the path lead into the folder, or to it? Links are followed, and what of the path is not there yet
     * is where it would be made. > 0: yes. May be NULL: unknown. */
    int (*folder_holds)(struct disk *disk, int folder, const char *path);
    /* Takes an exclusive lock on the file, created if missing; held until close or the end of the process.
     * -EWOULDBLOCK when another process (or another open of this one) holds it. */
    int (*lock)(struct disk *disk, int folder, const char *name);
    int (*open)(struct disk *disk, int folder, const char *name, bool write, bool direct);
    int (*create)(struct disk *disk, int folder, const char *name, bool direct); /* fails if it exists */
    void (*close)(struct disk *disk, int fd);
    int64_t (*size)(struct disk *disk, int fd);
    int (*links)(struct disk *disk,
                 int fd); /* names that the file has in all folders. May be NULL: unknown */
    /* An advisory lock on an open file, shared, until close: it asks others to leave its bytes alone, also
     * when its name has gone. -EWOULDBLOCK: not now, ask again. May be NULL: there are no such locks. */
    int (*lock_shared)(struct disk *disk, int fd);
    /* > 0: another open of the file has such a lock. May be NULL. */
    int (*is_locked)(struct disk *disk, int fd);
    /* Transfers exactly len bytes unless end of file (reads: returns the shorter count) or an error. */
    int64_t (*read)(struct disk *disk, int fd, void *buffer, size_t len, uint64_t offset);
    int64_t (*write)(struct disk *disk, int fd, const void *buffer, size_t len, uint64_t offset);
    int (*allocate)(struct disk *disk, int fd,
                    uint64_t len); /* reserves space on the disk: -ENOSPC now, not later */
    int (*truncate)(struct disk *disk, int fd, uint64_t len);
    int (*sync)(struct disk *disk, int fd);            /* data and the metadata needed to read it */
    int (*folder_sync)(struct disk *disk, int folder); /* names */
    int (*rename)(struct disk *disk, int folder, const char *from, const char *to);
    /* The same file also in another folder: -EXDEV when that is on another file system. */
    int (*link)(struct disk *disk, int folder, const char *name, int to_folder);
    int (*remove)(struct disk *disk, int folder, const char *name);
    /* Calls each(context, name) for every entry but "." and "..", in no order; stops early when it returns
     * non-zero. */
    int (*list)(struct disk *disk, int folder, int (*each)(void *context, const char *name), void *context);
    int64_t (*free_bytes)(struct disk *disk, int folder);
    /* What offset and length of a transfer through this descriptor must be a multiple of. The buffer's
     * address: 4096 is always enough. */
    int (*direct_unit)(struct disk *disk, int fd);
};

struct disk {
    const struct disk_ops *ops;
};

/* May the file get other bytes, or lose some? Only if it has just these names of ours, and nobody holds a
 * lock on it. Whoever takes a lock by name looks at the name afterwards: so ask when it has gone. */
static inline bool disk_may_overwrite(struct disk *disk, int fd, int names)
{
    return disk->ops->links && disk->ops->links(disk, fd) == names &&
           (disk->ops->is_locked == NULL || disk->ops->is_locked(disk, fd) == 0);
}

/* The operating system's files. O_DIRECT falls back to buffered I/O where the file system refuses it. */
struct disk *disk_real(void);

#endif
