/* 512-bit vectors and masks: Skylake-X (2017), Zen 4 (2022) and later. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include "micro.h"

#pragma GCC diagnostic ignored "-Wpsabi"
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma,prefer-vector-width=512")
#endif

#define FC_ISA avx512
#define FC_VEC_BYTES 64
#define FC_MR 8
#define FC_NR_F32 48
#define FC_NR_F64 24
#define FC_OPAQUE(x) __asm__ volatile("" : "+v"(x))
#define FC_STREAM_FENCE() _mm_sfence()

#include "isa.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
typedef int fc_no_avx512;
#endif
