/* 256-bit vectors with fused multiply-add: Haswell (2013), Zen (2017) and later. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include "micro.h"

#pragma GCC diagnostic ignored "-Wpsabi"
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define FC_ISA avx2
#define FC_VEC_BYTES 32
#define FC_MR 6
#define FC_NR_F32 16
#define FC_NR_F64 8
#define FC_OPAQUE(x) __asm__ volatile("" : "+x"(x))
#define FC_STREAM_FENCE() _mm_sfence()

#include "isa.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
typedef int fc_no_avx2; /* ISO C wants a declaration */
#endif
