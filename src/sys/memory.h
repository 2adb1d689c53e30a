/* memory: what the process takes, as the kernel sees it. Any thread. */
#ifndef KVASIR_SYS_MEMORY_H
#define KVASIR_SYS_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

/* Resident bytes of this process; 0 when /proc does not tell. */
uint64_t memory_resident_bytes(void);

/* Is that what the program asked for? A sanitizer takes as much again for itself. */
bool memory_resident_is_ours(void);

/* From now on a thread of the allocator's gives freed memory back within half a second, also while the
 * process is idle; where others want its core, when they leave it some time. Once, after signals are blocked:
 * the thread takes over the mask. */
void memory_give_back_unasked(void);

/* Makes the allocator give memory that it keeps for later back to the kernel; ms if that is much. */
void memory_give_back(void);

#endif
