/* 128-bit vectors that every machine of the family has: SSE2 on x86-64, NEON on AArch64. */
#include <math.h>

#include "micro.h"

#pragma GCC diagnostic ignored "-Wpsabi"

#define FC_ISA generic
#define FC_VEC_BYTES 16
#ifdef __aarch64__
#define FC_MR 8
#define FC_NR_F32 12
#define FC_NR_F64 6
#define FC_OPAQUE(x) __asm__ volatile("" : "+w"(x))
#else
#define FC_MR 4
#define FC_NR_F32 8
#define FC_NR_F64 4
#ifdef __x86_64__
#define FC_OPAQUE(x) __asm__ volatile("" : "+x"(x))
#else
#define FC_OPAQUE(x) __asm__ volatile("" : "+m"(x))
#endif
#endif
#define FC_STREAM_FENCE() (void)0

#include "isa.h"
