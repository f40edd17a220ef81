/* The micro-kernel: C[rows][cols] (+)= sum_k A[k][i] * B[k][j], the tile in registers for all k.
 *
 * Each k loads nr / lanes vectors of B and broadcasts `rows` elements of A, for rows * nr / lanes multiply-adds.  One
 * body serves every size: it is inlined with constant `rows` and `vectors`, so a tail is the same code with fewer
 * accumulators. A is read through one pointer a row; that a panel is packed or that a row is contiguous is known to the
 * compiler.  With contiguous rows, what the next calls read is fetched meanwhile, line by line of A and one of B at
 * each k: rows that lie a power of two apart mislead the hardware's prefetchers, and a third-level cache may be far
 * away.
 *
 * Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008. */

#define FC_VECTORS (FC_NR / FC_LANES)

/* A panel of B that is a cache line wide stays in L1 while row panels stream past it: see gemm_blocking */
#define FC_B_STAYS (FC_VECTORS * FC_VEC_BYTES <= 64)

/* Steps of k at a time: what counts and fetches takes a fifth of one.  SSE2 has no registers for two. */
#define FC_STEPS (FC_VEC_BYTES > 16 ? 2 : 1)

#define GEMM_PACKED 0 /* A[k][mr] */
#define GEMM_LINES 1  /* A[i * step + k] */
#define GEMM_ROWS 2   /* A[row[i] + run[r] + k * step] */
#define GEMM_BLOCKS 3 /* A[row[i] + k * lanes] */

/* What is stored `at` elements behind the tile's first */
#define finished FC_LOCAL(finished)
FC_INLINE vec finished(vec x, fc_finish finish, ptrdiff_t at, uint32_t bits) {
    if (finish.residual) x += vec_load_bits((const REAL *)finish.residual + at, bits);
    if (finish.activation == FC_RELU) x = vec_at_least(0, x);
    if (finish.activation == FC_RELU6) x = vec_clamp(x, 0, 6);
    return x;
}

/* A copy of what no store can change */
#define finish_of FC_LOCAL(finish_of)
FC_INLINE fc_finish finish_of(const fc_finish *finish) { return finish ? *finish : (fc_finish){NULL, FC_NONE}; }

/* acc += A[.][k] * B[k][.]; pointers to A go on to the next k.  Of lines every third has a pointer: registers are few. */
#define gemm_step FC_LOCAL(gemm_step)
FC_INLINE void gemm_step(const int rows, const int vectors, const int kind, const REAL **ai, ptrdiff_t step,
                         const REAL *b, vec acc[FC_MR][FC_VECTORS]) {
    const ptrdiff_t next = kind == GEMM_PACKED ? FC_MR : kind == GEMM_LINES ? 1 : kind == GEMM_BLOCKS ? FC_LANES : step;
    vec bk[FC_VECTORS];
    FC_UNROLL
    for (int v = 0; v < vectors; v++) bk[v] = vec_load(b + v * FC_LANES);
    FC_UNROLL
    for (int i = 0; i < rows; i++) {
        const vec ak = vec_splat(kind == GEMM_LINES ? ai[i - i % 3][i % 3 * step] : *ai[i]);
        FC_UNROLL
        for (int v = 0; v < vectors; v++) acc[i][v] += ak * bk[v];
    }
    FC_UNROLL
    for (int i = 0; i < rows; i++)
        if (kind != GEMM_LINES || i % 3 == 0) ai[i] += next;
}

/* acc -> C; constant `last` leaves out what masks would ask of each vector, and so does one question at a time.  A
 * pointer walks down the rows, or the compiler keeps all of their distances, on the stack. */
#define FC_EACH_OF_TILE(pointer, ...) \
    FC_UNROLL \
    for (int i = 0; i < rows; i++, pointer += ldc) { \
        __asm__("" : "+r"(pointer)); \
        FC_UNROLL \
        for (int v = 0; v < vectors; v++) { \
            const uint32_t bits = v == vectors - 1 ? last : FC_ALL; \
            __VA_ARGS__; \
        } \
    }
#define store_tile FC_LOCAL(store_tile)
FC_INLINE void store_tile(const int rows, const int vectors, vec acc[FC_MR][FC_VECTORS], REAL *c, ptrdiff_t ldc,
                          const uint32_t last, int accumulate, const fc_finish *finish) {
    if (accumulate) {
        const REAL *p = c;
        FC_EACH_OF_TILE(p, acc[i][v] += vec_load_bits(p + v * FC_LANES, bits))
    }
    if (finish) {
        const REAL *p = finish->residual;
        const int activation = finish->activation;
        if (p) FC_EACH_OF_TILE(p, acc[i][v] += vec_load_bits(p + v * FC_LANES, bits))
        if (activation != FC_NONE) {
            FC_UNROLL
            for (int i = 0; i < rows; i++) {
                FC_UNROLL
                for (int v = 0; v < vectors; v++) acc[i][v] = vec_at_least(0, acc[i][v]);
            }
        }
        if (activation == FC_RELU6) {
            FC_UNROLL
            for (int i = 0; i < rows; i++) {
                FC_UNROLL
                for (int v = 0; v < vectors; v++) acc[i][v] = vec_at_most(6, acc[i][v]);
            }
        }
    }
    FC_EACH_OF_TILE(c, vec_store_bits(c + v * FC_LANES, acc[i][v], bits))
}

#define gemm_tile FC_LOCAL(gemm_tile)
FC_INLINE void gemm_tile(const int rows, const int vectors, const int kind, ptrdiff_t runs, const ptrdiff_t *run,
                         ptrdiff_t len, const REAL *a, const ptrdiff_t *row, ptrdiff_t step, const REAL *b, REAL *c,
                         ptrdiff_t ldc, uint32_t last, int accumulate, const REAL *bias, const fc_finish *finish,
                         const REAL *next_a, const char *next_b, ptrdiff_t next_step) {
    vec acc[FC_MR][FC_VECTORS], start[FC_VECTORS];
    if (kind == GEMM_ROWS) __asm__("" : "+r"(bias)); /* or its vectors stay in registers from tile to tile */
    FC_UNROLL
    for (int v = 0; v < vectors; v++)
        start[v] =
            bias && kind == GEMM_ROWS ? vec_load_bits(bias + v * FC_LANES, v == vectors - 1 ? last : FC_ALL) : (vec){0};
    REAL *ahead = c;
    FC_UNROLL
    for (int i = 0; i < rows; i++, ahead += ldc) {
        FC_UNROLL
        for (int v = 0; v < vectors; v++) acc[i][v] = start[v];
        __asm__("" : "+r"(ahead));
        __builtin_prefetch(ahead, 1);
        __builtin_prefetch(ahead + (vectors - 1) * FC_LANES, 1);
    }
    if (bias && kind == GEMM_PACKED) {
        FC_UNROLL
        for (int i = 0; i < rows; i++) {
            FC_UNROLL
            for (int v = 0; v < vectors; v++) acc[i][v] = vec_splat(bias[i]);
        }
    }
    if (finish && finish->residual) {
        const REAL *residual = finish->residual;
        FC_UNROLL
        for (int i = 0; i < rows; i++, residual += ldc) {
            __asm__("" : "+r"(residual));
            __builtin_prefetch(residual);
            __builtin_prefetch(residual + (vectors - 1) * FC_LANES);
        }
    }
    ptrdiff_t unfetched = len; /* of a row of the next tile */
    for (ptrdiff_t r = 0; r < runs; r++) {
        const REAL *ai[FC_MR];
        FC_UNROLL
        for (int i = 0; i < rows; i++)
            ai[i] = kind == GEMM_PACKED   ? a + i
                    : kind == GEMM_LINES  ? a + i * step
                    : kind == GEMM_BLOCKS ? a + row[i]
                                          : a + row[i] + run[r];
        ptrdiff_t k = 0;
        for (; k + FC_STEPS <= len; k += FC_STEPS, b += FC_STEPS * FC_NR) {
            if (kind == GEMM_LINES && FC_MR < 8) { /* rows * len elements and a little more, row by row */
                FC_UNROLL
                for (int i = 0; i < 8 * FC_STEPS * FC_REAL_BYTES; i += 64)
                    __builtin_prefetch((const char *)next_a + i, 0, 3);
                next_a += 8 * FC_STEPS;
                if ((unfetched -= 8 * FC_STEPS) <= 0) next_a += step - len, unfetched = len;
            }
            FC_UNROLL
            for (int u = 0; u < FC_STEPS; u++) {
                if (kind == GEMM_LINES) {
                    if (FC_MR == 8)
                        __builtin_prefetch(next_a + 8 * (k + u), 0, 3); /* no register is left to count in */
                    __builtin_prefetch(next_b + u * next_step, 0, 2);
                } else if (kind != GEMM_PACKED || !FC_B_STAYS) {
                    FC_UNROLL
                    for (int v = 0; v < vectors * FC_VEC_BYTES; v += 64) /* B streams from the second-level cache */
                        __builtin_prefetch((const char *)(b + (8 + u) * FC_NR) + v, 0, 3);
                } else if (u == 0 || FC_REAL_BYTES == 8) /* a line at least */
                    __builtin_prefetch(next_a + (k + u) * FC_MR, 0, 3);
                gemm_step(rows, vectors, kind, ai, step, b + u * FC_NR, acc);
                if (kind == GEMM_ROWS) {
                    const char *line = (const char *)ai[0];
                    __asm__("" : "+r"(line)); /* or the compiler keeps step + 64 in a register of its own */
                    __builtin_prefetch(line + 64, 0, 2);
                }
            }
            if (kind == GEMM_LINES) next_b += FC_STEPS * next_step;
        }
        for (; FC_STEPS > 1 && k < len; k++, b += FC_NR) gemm_step(rows, vectors, kind, ai, step, b, acc);
    }
    if (FC_LIKELY(last == FC_ALL))
        store_tile(rows, vectors, acc, c, ldc, FC_ALL, accumulate, finish);
    else
        store_tile(rows, vectors, acc, c, ldc, last, accumulate, finish);
}

/* gemm_tile with every (rows, vectors) this ISA can be asked for; a tail has fewer than mr rows */
#if FC_VECTORS == 3
#define FC_EACH_VECTORS(DO, r) DO(r, 1) DO(r, 2) DO(r, 3)
#else
#define FC_EACH_VECTORS(DO, r) DO(r, 1) DO(r, 2)
#endif
#define FC_EACH_ROWS3(DO) FC_EACH_VECTORS(DO, 1) FC_EACH_VECTORS(DO, 2) FC_EACH_VECTORS(DO, 3)
#if FC_MR == 8
#define FC_EACH_TAIL(DO) \
    FC_EACH_ROWS3(DO) \
    FC_EACH_VECTORS(DO, 4) FC_EACH_VECTORS(DO, 5) FC_EACH_VECTORS(DO, 6) FC_EACH_VECTORS(DO, 7)
#elif FC_MR == 6
#define FC_EACH_TAIL(DO) FC_EACH_ROWS3(DO) FC_EACH_VECTORS(DO, 4) FC_EACH_VECTORS(DO, 5)
#else
#define FC_EACH_TAIL(DO) FC_EACH_ROWS3(DO)
#endif
#define FC_EACH_TILE(DO) FC_EACH_TAIL(DO) FC_EACH_VECTORS(DO, FC_MR)

static void FC_KERNEL(gemm)(ptrdiff_t k, const void *a, const void *b, void *c, ptrdiff_t ldc, int rows, int cols,
                            int accumulate, const void *bias, const fc_finish *finish, const void *next) {
    const uint32_t last = bits_range(0, (cols - 1) % FC_LANES + 1);
    switch (rows * 4 + (cols + FC_LANES - 1) / FC_LANES) {
#define FC_CASE(r, v) \
    case r * 4 + v: \
        gemm_tile(r, v, GEMM_PACKED, 1, NULL, k, a, NULL, 0, b, c, ldc, last, accumulate, bias, finish, next, NULL, \
                  0); \
        break;
        FC_EACH_TILE(FC_CASE)
#undef FC_CASE
    }
}

/* Panels of B, `b_panel` elements apart, one after another, each with all panels of A, `a_panel` apart */
static void FC_KERNEL(gemm_panels)(ptrdiff_t k, const void *a_, ptrdiff_t a_panel, ptrdiff_t rows, const void *b,
                                   ptrdiff_t b_panel, ptrdiff_t cols, void *c_, ptrdiff_t ldc, int accumulate,
                                   const void *bias, const fc_finish *finish) {
    REAL *c = c_;
    for (ptrdiff_t j = 0; j < cols; j += FC_NR, b = (const REAL *)b + b_panel) {
        const REAL *a = a_;
        const int some = cols - j < FC_NR ? (int)(cols - j) : FC_NR;
        for (ptrdiff_t i = 0; i < rows; i += FC_MR, a += a_panel) {
            const int last = i + FC_MR >= rows; /* panel of A, which meets the next of B first */
            const ptrdiff_t at = i * ldc + j;
            fc_finish how = finish_of(finish);
            if (how.residual) how.residual = (const REAL *)how.residual + at;
            FC_KERNEL(gemm)(k, a, b, c + at, ldc, last ? (int)(rows - i) : FC_MR, some, accumulate,
                            bias ? (const REAL *)bias + i : NULL, finish ? &how : NULL,
                            last && j + FC_NR < cols ? (const REAL *)a_ : a + a_panel);
        }
    }
}

/* Whole tiles of rows, one after another */
#define lines_tiles FC_LOCAL(lines_tiles)
FC_INLINE ptrdiff_t lines_tiles(const int vectors, ptrdiff_t k, const REAL *a, ptrdiff_t lda, ptrdiff_t rows,
                                const REAL *b, REAL *c, ptrdiff_t ldc, uint32_t last, int accumulate,
                                const fc_ahead *ahead) {
    ptrdiff_t i = 0;
    for (; i + FC_MR <= rows; i += FC_MR)
        gemm_tile(FC_MR, vectors, GEMM_LINES, 1, NULL, k, a + i * lda, NULL, lda, b, c + i * ldc, ldc, last, accumulate,
                  NULL, NULL, i + FC_MR < rows ? a + (i + FC_MR) * lda : ahead->a,
                  (const char *)ahead->b + i / FC_MR * k * ahead->b_step, ahead->b_step);
    return i;
}

static void FC_KERNEL(gemm_lines)(ptrdiff_t k, const void *a_, ptrdiff_t lda, ptrdiff_t rows, const void *b, void *c_,
                                  ptrdiff_t ldc, int cols, int accumulate, const fc_ahead *ahead) {
    const uint32_t last = bits_range(0, (cols - 1) % FC_LANES + 1);
    const REAL *a = a_;
    REAL *c = c_;
    ptrdiff_t i = 0;
    switch ((cols + FC_LANES - 1) / FC_LANES) {
    case 1: i = lines_tiles(1, k, a, lda, rows, b, c, ldc, last, accumulate, ahead); break;
    case 2: i = lines_tiles(2, k, a, lda, rows, b, c, ldc, last, accumulate, ahead); break;
#if FC_VECTORS == 3
    case 3: i = lines_tiles(3, k, a, lda, rows, b, c, ldc, last, accumulate, ahead); break;
#endif
    }
    const char *next_b = (const char *)ahead->b + i / FC_MR * k * ahead->b_step;
    switch ((rows - i) * 4 + (cols + FC_LANES - 1) / FC_LANES) {
#define FC_CASE(r, v) \
    case r * 4 + v: \
        gemm_tile(r, v, GEMM_LINES, 1, NULL, k, a + i * lda, NULL, lda, b, c + i * ldc, ldc, last, accumulate, NULL, \
                  NULL, ahead->a, next_b, ahead->b_step); \
        break;
        FC_EACH_TAIL(FC_CASE)
#undef FC_CASE
    }
}

/* Where rows i, i + 1 ... of A start in its blocks */
#define block_rows FC_LOCAL(block_rows)
FC_INLINE void block_rows(ptrdiff_t i, ptrdiff_t block, ptrdiff_t row[FC_MR]) {
    FC_UNROLL
    for (int r = 0; r < FC_MR; r++, i++) row[r] = (i / FC_LANES) * block + i % FC_LANES;
}

#define blocks_tiles FC_LOCAL(blocks_tiles)
FC_INLINE ptrdiff_t blocks_tiles(const int vectors, ptrdiff_t k, const REAL *a, ptrdiff_t block, ptrdiff_t rows,
                                 const REAL *b, REAL *c, ptrdiff_t ldc, uint32_t last, int accumulate) {
    ptrdiff_t i = 0, row[FC_MR];
    for (; i + FC_MR <= rows; i += FC_MR) {
        block_rows(i, block, row);
        gemm_tile(FC_MR, vectors, GEMM_BLOCKS, 1, NULL, k, a, row, 0, b, c + i * ldc, ldc, last, accumulate, NULL, NULL,
                  NULL, NULL, 0);
    }
    return i;
}

static void FC_KERNEL(gemm_blocks)(ptrdiff_t k, const void *a_, ptrdiff_t block, ptrdiff_t rows, const void *b,
                                   void *c_, ptrdiff_t ldc, int cols, int accumulate) {
    const uint32_t last = bits_range(0, (cols - 1) % FC_LANES + 1);
    const REAL *a = a_;
    REAL *c = c_;
    ptrdiff_t i = 0, row[FC_MR];
    switch ((cols + FC_LANES - 1) / FC_LANES) {
    case 1: i = blocks_tiles(1, k, a, block, rows, b, c, ldc, last, accumulate); break;
    case 2: i = blocks_tiles(2, k, a, block, rows, b, c, ldc, last, accumulate); break;
#if FC_VECTORS == 3
    case 3: i = blocks_tiles(3, k, a, block, rows, b, c, ldc, last, accumulate); break;
#endif
    }
    block_rows(i, block, row);
    switch ((rows - i) * 4 + (cols + FC_LANES - 1) / FC_LANES) {
#define FC_CASE(r, v) \
    case r * 4 + v: \
        gemm_tile(r, v, GEMM_BLOCKS, 1, NULL, k, a, row, 0, b, c + i * ldc, ldc, last, accumulate, NULL, NULL, NULL, \
                  NULL, 0); \
        break;
        FC_EACH_TAIL(FC_CASE)
#undef FC_CASE
    }
}

/* Whole tiles of rows, one after another */
#define rows_tiles FC_LOCAL(rows_tiles)
FC_INLINE ptrdiff_t rows_tiles(const int vectors, ptrdiff_t runs, const ptrdiff_t *run, ptrdiff_t len, const REAL *a,
                               const ptrdiff_t *row, ptrdiff_t step, ptrdiff_t rows, const REAL *b, REAL *c,
                               ptrdiff_t ldc, uint32_t last, int accumulate, const REAL *bias,
                               const fc_finish *finish) {
    fc_finish how = finish_of(finish);
    ptrdiff_t i = 0;
    for (; i + FC_MR <= rows; i += FC_MR) {
        gemm_tile(FC_MR, vectors, GEMM_ROWS, runs, run, len, a, row + i, step, b, c + i * ldc, ldc, last, accumulate,
                  bias, finish ? &how : NULL, NULL, NULL, 0);
        if (how.residual) how.residual = (const REAL *)how.residual + FC_MR * ldc;
    }
    return i;
}

static void FC_KERNEL(gemm_rows)(ptrdiff_t runs, const ptrdiff_t *run, ptrdiff_t len, const void *a_,
                                 const ptrdiff_t *row, ptrdiff_t step, const void *b, void *c_, ptrdiff_t ldc,
                                 ptrdiff_t rows, int cols, int accumulate, const void *bias, const fc_finish *finish) {
    const uint32_t last = bits_range(0, (cols - 1) % FC_LANES + 1);
    const REAL *a = a_;
    REAL *c = c_;
    ptrdiff_t i = 0;
    switch ((cols + FC_LANES - 1) / FC_LANES) {
#define FC_CASE(v) \
    case v: i = rows_tiles(v, runs, run, len, a, row, step, rows, b, c, ldc, last, accumulate, bias, finish); break;
        FC_CASE(1)
        FC_CASE(2)
#if FC_VECTORS == 3
        FC_CASE(3)
#endif
#undef FC_CASE
    }
    fc_finish how = finish_of(finish);
    if (how.residual) how.residual = (const REAL *)how.residual + i * ldc;
    switch ((rows - i) * 4 + (cols + FC_LANES - 1) / FC_LANES) {
#define FC_CASE(r, v) \
    case r * 4 + v: \
        gemm_tile(r, v, GEMM_ROWS, runs, run, len, a, row + i, step, b, c + i * ldc, ldc, last, accumulate, bias, \
                  finish ? &how : NULL, NULL, NULL, 0); \
        break;
        FC_EACH_TAIL(FC_CASE)
#undef FC_CASE
    }
}

/* c[cols] += sum_k a[k * step] * b[k][cols], `count` lines of B at a time */
#define add_lines FC_LOCAL(add_lines)
FC_INLINE void add_lines(const int count, const REAL *a, ptrdiff_t step, const REAL *b, ptrdiff_t ldb, ptrdiff_t cols,
                         REAL *c) {
    vec ak[8];
    const REAL *line[8];
    FC_UNROLL
    for (int k = 0; k < count; k++) ak[k] = vec_splat(a[k * step]), line[k] = b + k * ldb;
    ptrdiff_t j = 0;
    for (; j + FC_LANES <= cols; j += FC_LANES) {
        vec sum = vec_load(c + j);
        FC_UNROLL
        for (int k = 0; k < count; k++) sum += ak[k] * vec_load(line[k] + j);
        vec_store(c + j, sum);
    }
    if (j < cols) {
        const uint32_t tail = bits_range(0, cols - j);
        vec sum = vec_load_bits(c + j, tail);
        FC_UNROLL
        for (int k = 0; k < count; k++) sum += ak[k] * vec_load_bits(line[k] + j, tail);
        vec_store_bits(c + j, sum, tail);
    }
}

/* c[rows][cols] += sum_k a[rows][k] * b[k][cols], `count` lines of B at a time, in pieces */
#define add_pieces FC_LOCAL(add_pieces)
FC_INLINE ptrdiff_t add_pieces(const int count, ptrdiff_t piece, ptrdiff_t k, const REAL *a, ptrdiff_t lda,
                               ptrdiff_t step, ptrdiff_t rows, const REAL *b, ptrdiff_t ldb, ptrdiff_t cols, REAL *c,
                               ptrdiff_t ldc) {
    ptrdiff_t done = 0;
    for (; done + count <= k; done += count)
        for (ptrdiff_t j = 0; j < cols; j += piece)
            for (ptrdiff_t i = 0; i < rows; i++)
                add_lines(count, a + i * lda + done * step, step, b + done * ldb + j, ldb, smaller(piece, cols - j),
                          c + i * ldc + j);
    return done;
}

/* For a few rows of A: B is read once, as it lies.  Where some rows meet it, pieces of its lines stay in L1: of few lines,
 * which may be a multiple of pages apart and fall into the same sets. */
static void FC_KERNEL(gemm_few)(ptrdiff_t k, const void *a_, ptrdiff_t lda, ptrdiff_t step, ptrdiff_t rows,
                                const void *b_, ptrdiff_t ldb, ptrdiff_t cols, void *c, ptrdiff_t ldc) {
    enum { PIECE = 2048 / FC_REAL_BYTES };
    const REAL *a = a_, *b = b_;
    const ptrdiff_t done = rows > 4 ? add_pieces(4, PIECE, k, a, lda, step, rows, b, ldb, cols, c, ldc)
                                    : add_pieces(8, cols, k, a, lda, step, rows, b, ldb, cols, c, ldc);
    add_pieces(1, cols, k - done, a + done * step, lda, step, rows, b + done * ldb, ldb, cols, c, ldc);
}

#undef FC_EACH_VECTORS
#undef FC_EACH_ROWS3
#undef FC_EACH_TAIL
#undef FC_EACH_TILE

/* mr * nr / lanes independent chains of multiply-adds: what the execution units can do when nothing is loaded */
static double FC_KERNEL(fma_peak)(ptrdiff_t repeats, void *sink) {
    vec acc[FC_MR][FC_VECTORS];
    vec x = vec_load(sink), y = x * x; /* zeros, as far as the compiler cannot tell */
    FC_UNROLL
    for (int i = 0; i < FC_MR; i++) {
        FC_UNROLL
        for (int v = 0; v < FC_VECTORS; v++) {
            acc[i][v] = x;
            FC_OPAQUE(acc[i][v]); /* or the compiler sees that all chains are one */
        }
    }
    for (ptrdiff_t r = 0; r < repeats; r++) {
        FC_UNROLL
        for (int i = 0; i < FC_MR; i++) {
            FC_UNROLL
            for (int v = 0; v < FC_VECTORS; v++) acc[i][v] += x * y;
        }
        FC_OPAQUE(x); /* or the product leaves the loop */
    }
    FC_UNROLL
    for (int i = 0; i < FC_MR; i++) {
        FC_UNROLL
        for (int v = 0; v < FC_VECTORS; v++) x += acc[i][v];
    }
    vec_store(sink, x);
    return 2.0 * (double)repeats * FC_MR * FC_NR;
}
