/* Which seeds a simulation runs: KVASIR_SEED=N only that one, KVASIR_SEEDS=N the first N, both: so many from
 * that one on, else the first so many. */
#ifndef KVASIR_TESTS_SIM_SEEDS_H
#define KVASIR_TESTS_SIM_SEEDS_H

#include <stdint.h>
#include <stdlib.h>

struct sim_seeds {
    uint64_t first, end;
};

static inline struct sim_seeds sim_seeds_get(uint64_t count_default)
{
    const char *one = getenv("KVASIR_SEED"), *many = getenv("KVASIR_SEEDS");
    uint64_t first = one ? strtoull(one, NULL, 10) : 1;
    uint64_t count = many ? strtoull(many, NULL, 10) : one ? 1 : count_default;
    return (struct sim_seeds){first, first + count};
}

#endif
