/* sim_disk: a disk in memory that can crash, fail and be full, reproducibly from a seed.
 *
 * What was written and not synced survives a crash sector by sector (512 bytes) or not, as the seed decides;
 * so do names and file sizes. Thread safety: none. */
#ifndef KVASIR_TESTS_SIM_DISK_H
#define KVASIR_TESTS_SIM_DISK_H

#include "base/prng.h"
#include "sys/disk.h"

enum { SIM_FILES_MAX = 512, SIM_FILE_BYTES_MAX = 16 << 20, SIM_SECTOR_BYTES = 512 };

struct sim_file {
    char name[32];            /* empty: a free slot */
    bool named, synced_named; /* in the folder now; after a crash */
    char old_name[32];        /* of a rename that no folder_sync has made stable yet; else empty */
    char *data, *stable;
    uint8_t *dirty; /* per sector */
    uint64_t size, stable_size, capacity;
    unsigned opens; /* descriptors of it */
};

enum sim_op {
    SIM_ANY,
    SIM_WRITE,
    SIM_SYNC,
    SIM_ALLOCATE,
    SIM_CREATE,
    SIM_REMOVE,
    SIM_TRUNCATE,
    SIM_READ,
    SIM_RENAME
};

struct sim_disk {
    struct disk disk; /* first */
    struct sim_file files[SIM_FILES_MAX];
    struct prng prng;
    uint64_t capacity; /* bytes; 0: unlimited */
    int direct_unit;   /* what it answers; 0: 512 */
    bool locked;
    bool dead; /* everything fails and changes nothing: the process is gone */
    /* The fail_after-th operation of this kind from now on answers fail_errno (with fail_dies: and the disk
     * is dead from then on). 0: none. */
    enum sim_op fail_op;
    uint64_t fail_after;
    int fail_errno;
    bool fail_dies;
};

struct sim_disk *sim_disk_create(uint64_t seed);
void sim_disk_destroy(struct sim_disk *sim);
/* Descriptors of files that are open. */
unsigned sim_disk_opens(const struct sim_disk *sim);
/* The machine stops and starts again; all descriptors are void. */
void sim_disk_crash(struct sim_disk *sim);
/* The process stops and starts again: nothing written is lost. */
void sim_disk_restart(struct sim_disk *sim);
/* A range of a file is on stable storage, as after a DSYNC write. */
void sim_disk_sync_range(struct sim_disk *sim, int fd, uint64_t offset, uint64_t len);
struct sim_file *sim_disk_file(struct sim_disk *sim, const char *name); /* NULL: none */
/* A deep copy of the files, for trying many damages on one log. */
void sim_disk_copy(struct sim_disk *to, const struct sim_disk *from);
void sim_disk_resize(struct sim_file *f, uint64_t size);

#endif
