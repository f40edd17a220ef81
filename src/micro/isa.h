/* Compiles every kernel for float and for double.  Included by isa_*.c, which says what the ISA is:
 *   FC_ISA, FC_VEC_BYTES, FC_MR, FC_NR_F32, FC_NR_F64, FC_OPAQUE (a register constraint), FC_STREAM_FENCE. */

#define FC_STRING_(x) #x
#define FC_STRING(x) FC_STRING_(x)

#define FC_TYPE f32
#define REAL float
#define INTEGER int32_t
#define FC_REAL_BYTES 4
#define FC_NR FC_NR_F32
#define FC_INFINITY __builtin_inff()
#include "kernels.h"

#undef FC_TYPE
#undef REAL
#undef INTEGER
#undef FC_REAL_BYTES
#undef FC_NR
#undef FC_INFINITY
#undef FC_EVEN
#undef FC_ODD
#undef FC_ZIP_LO
#undef FC_ZIP_HI

#define FC_TYPE f64
#define REAL double
#define INTEGER int64_t
#define FC_REAL_BYTES 8
#define FC_NR FC_NR_F64
#define FC_INFINITY __builtin_inf()
#include "kernels.h"

#define FC_TABLES_(isa) fc_tables_##isa
#define FC_TABLES(isa) FC_TABLES_(isa)
#define FC_TABLE_(type, isa) table_##type##_##isa
#define FC_TABLE(type, isa) FC_TABLE_(type, isa)

const fc_kernels *const FC_TABLES(FC_ISA)[2] = {&FC_TABLE(f32, FC_ISA), &FC_TABLE(f64, FC_ISA)};
