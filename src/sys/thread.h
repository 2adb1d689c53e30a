/* thread: how the kernel schedules the calling thread. Any thread, for itself. */
#ifndef KVASIR_SYS_THREAD_H
#define KVASIR_SYS_THREAD_H

#include <stdbool.h>
#include <stdint.h>

/* Asks for the core in slices of so many microseconds, 100 to 100,000: as much of it as before in all, but
 * soon after each wake-up, also from a thread that has long slices, and a sched_yield gives up no more than
 * a slice. Linux 6.12 and later (EEVDF's custom slices); false, and nothing changes, where that is not known,
 * or the thread has another policy than SCHED_OTHER. */
bool thread_slice_set(uint64_t us);

/* What is in force; 0: the kernel's default, or it does not tell. */
uint64_t thread_slice_us(void);

/* From now on the thread, and those that it makes, run when no other wants their core (SCHED_IDLE), and give
 * it up at once when one does. There is no way back without privileges. False: nothing has changed. */
bool thread_idle_set(void);

#endif
