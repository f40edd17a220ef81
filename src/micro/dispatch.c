/* Which ISA this machine has: the processor's word (CPUID) and the operating system's (XGETBV: are the wide registers
 * saved at a task switch?), which __builtin_cpu_supports asks both. */
#include "micro.h"

extern const fc_kernels *const fc_tables_generic[2];
#if defined(__x86_64__)
extern const fc_kernels *const fc_tables_avx2[2], *const fc_tables_avx512[2];

static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}
#endif

const fc_kernels *const *fc_tables(int isa) {
#if defined(__x86_64__)
    if (isa == FC_AVX2 && has_avx2()) return fc_tables_avx2;
    if (isa == FC_AVX512 && has_avx512()) return fc_tables_avx512;
#endif
    return isa == FC_GENERIC ? fc_tables_generic : NULL;
}
