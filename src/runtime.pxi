"""Threads, ISA, workspace: what every driver stands on."""

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdlib.h>
    #include <time.h>
    #ifdef __linux__
    #include <sys/mman.h>
    #endif

    #ifdef _OPENMP
    #define FC_OPENMP 1
    #else
    #define FC_OPENMP 0
    #endif
    #if defined(__clang__)
    #define FC_COMPILER "clang " __clang_version__
    #else
    #define FC_COMPILER "gcc " __VERSION__
    #endif

    static int fc_threads = 1, fc_isa = 0, fc_forked = 0;
    static __thread int fc_local_threads = 0, fc_local_isa = -1;

    /* A child of fork() has none of its parent's threads, and an OpenMP runtime that had some waits for them. */
    static void fc_after_fork(void) { fc_forked = 1; }
    static int fc_watch_fork(void) { return pthread_atfork(NULL, NULL, fc_after_fork); }

    static int fc_get_threads(void) {
        return !FC_OPENMP || fc_forked ? 1 : fc_local_threads ? fc_local_threads : fc_threads;
    }
    static int fc_get_isa(void) { return fc_local_isa >= 0 ? fc_local_isa : fc_isa; }

    /* Huge pages: a first touch of 32 MiB costs 18 ms in pages of 4 KiB and 5 ms in pages of 2 MiB. */
    #define FC_PAGE ((size_t)2 << 20)
    static void *fc_map(size_t bytes) {
        void *p = NULL;
        if (posix_memalign(&p, bytes < FC_PAGE ? 64 : FC_PAGE, bytes)) return NULL;
    #ifdef MADV_HUGEPAGE
        if (bytes >= FC_PAGE) madvise(p, bytes, MADV_HUGEPAGE);
    #endif
        return p;
    }

    /* Denormals cost up to a hundred times normal numbers: convolutions flush them, and put the mode back. */
    #if defined(__x86_64__)
    #include <xmmintrin.h>
    typedef unsigned fc_mode;
    static fc_mode fc_flush(void) { fc_mode m = _mm_getcsr(); _mm_setcsr(m | 0x8040); return m; } /* FTZ, DAZ */
    static void fc_restore(fc_mode m) { _mm_setcsr(m); }
    #elif defined(__aarch64__)
    typedef unsigned long fc_mode;
    static fc_mode fc_flush(void) {
        fc_mode m;
        __asm__ volatile("mrs %0, fpcr" : "=r"(m));
        __asm__ volatile("msr fpcr, %0" : : "r"(m | 1ul << 24));
        return m;
    }
    static void fc_restore(fc_mode m) { __asm__ volatile("msr fpcr, %0" : : "r"(m)); }
    #else
    typedef int fc_mode;
    static fc_mode fc_flush(void) { return 0; }
    static void fc_restore(fc_mode m) { (void)m; }
    #endif

    static double fc_seconds(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    }
    """
    const int FC_OPENMP
    const char *FC_COMPILER
    const size_t FC_PAGE
    int fc_threads, fc_isa, fc_forked, fc_local_threads, fc_local_isa
    int fc_watch_fork() nogil
    int fc_get_threads() nogil
    int fc_get_isa() nogil
    void *fc_map(size_t) nogil
    ctypedef unsigned long fc_mode
    fc_mode fc_flush() nogil
    void fc_restore(fc_mode) nogil
    double fc_seconds() nogil

fc_watch_fork()

ISAS = ("generic", "avx2", "avx512")


def available_isas():
    """Names of the ISAs that this machine has, narrowest first."""
    return tuple([name for i, name in enumerate(ISAS) if fc_tables(i) != NULL])


def build_info():
    """Compiler and OpenMP of this build."""
    return {"compiler": FC_COMPILER.decode(), "openmp": bool(FC_OPENMP)}


def set_num_threads(int n):
    global fc_threads
    fc_threads = n


def get_num_threads():
    return fc_get_threads()


def swap_local_threads(int n):
    """Set the calling thread's own number of threads (0: the process's) and return the one before."""
    global fc_local_threads
    before = fc_local_threads
    fc_local_threads = n
    return before


def set_isa(int isa):
    global fc_isa
    fc_isa = isa


def get_isa():
    """Index into ISAS of what calls from this thread use."""
    return fc_get_isa()


def swap_local_isa(int isa):
    """Set the calling thread's own ISA (-1: the process's) and return the one before."""
    global fc_local_isa
    before = fc_local_isa
    fc_local_isa = isa
    return before


def register_tile(int isa, str type):
    """(mr, nr, lanes) of an ISA's micro-kernel for type 'f' or 'd'."""
    cdef kernels_t k = fc_tables(isa)[type == "d"]
    return k.mr, k.nr, k.lanes


# ---- arrays: NumPy's own macros, since a memoryview of a small array takes longer than the work on it ----

import_array()


def type_char(value):
    """'f' or 'd' where `value` is what kernels read, a native ndarray of that type; None where it is not."""
    if PyArray_CheckExact(value) and PyArray_ISCARRAY_RO(<ndarray>value):
        if PyArray_TYPE(<ndarray>value) == NPY_FLOAT:
            return "f"
        if PyArray_TYPE(<ndarray>value) == NPY_DOUBLE:
            return "d"
    return None


def are_ints(tuple options not None):
    """Whether options are integers and tuples of them: bool and NumPy's integers are other types."""
    for option in options:
        if type(option) is tuple:
            for item in <tuple>option:
                if type(item) is not int:
                    return False
        elif type(option) is not int:
            return False
    return True


def fits(out, tuple shape not None, str type not None):
    """Whether a destination is what kernels write: a native, writeable ndarray of that shape and type."""
    cdef int i, n = <int>len(shape)
    if not (PyArray_CheckExact(out) and PyArray_ISCARRAY(<ndarray>out) and (<ndarray>out).ndim == n
            and PyArray_TYPE(<ndarray>out) == <int>(NPY_DOUBLE if type == "d" else NPY_FLOAT)):
        return False
    for i in range(n):
        if (<ndarray>out).shape[i] != <npy_intp>shape[i]:
            return False
    return True


def all_apart(out, dict others not None):
    """Whether an array is `apart` from all others, of which some may be None."""
    for value in others.values():
        if value is not None and not apart(out, value):
            return False
    return True


cpdef bint apart(a, b):
    """Whether two arrays share no memory, as far as their ends tell: contiguous ones, one behind the other."""
    if not (PyArray_CheckExact(a) and PyArray_CheckExact(b) and PyArray_IS_C_CONTIGUOUS(<ndarray>a)
            and PyArray_IS_C_CONTIGUOUS(<ndarray>b)):
        return False
    cdef const char *p = <const char *>PyArray_DATA(<ndarray>a)
    cdef const char *q = <const char *>PyArray_DATA(<ndarray>b)
    return p + PyArray_NBYTES(<ndarray>a) <= q or q + PyArray_NBYTES(<ndarray>b) <= p


cdef inline bint is_real(ndarray a, size_t es, ptrdiff_t size) noexcept:
    return PyArray_TYPE(a) == <int>(NPY_DOUBLE if es == 8 else NPY_FLOAT) and PyArray_SIZE(a) == size


cdef inline const char *read(ndarray a, size_t es, ptrdiff_t size) except? NULL:
    """Memory of an array that kernels read: NULL for None.  What functional.py has made sure of is asserted."""
    if a is None:
        return NULL
    if not is_real(a, es, size) or not PyArray_ISCARRAY_RO(a):
        raise AssertionError("an array is not as the kernels read it")
    return <const char *>PyArray_DATA(a)


cdef inline char *written(ndarray a, size_t es, ptrdiff_t size) except? NULL:
    """Memory of an array that kernels write: NULL for None."""
    if a is None:
        return NULL
    if not is_real(a, es, size) or not PyArray_ISCARRAY(a):
        raise AssertionError("an array is not as the kernels write it")
    return <char *>PyArray_DATA(a)


cdef inline int64_t *indices(ndarray a, ptrdiff_t size) except? NULL:
    """Memory of an array of int64, which kernels read or write."""
    if not PyArray_ISSIGNED(a) or PyArray_ITEMSIZE(a) != 8 or PyArray_SIZE(a) != size or not PyArray_ISCARRAY_RO(a):
        raise AssertionError("indices are not as the kernels take them")
    return <int64_t *>PyArray_DATA(a)


# ---- workspace: a pool of arenas, leased for a call; the GIL is its lock ----

cdef struct Arena:
    void *memory
    size_t size

cdef enum:
    MAX_ARENAS = 16

cdef Arena[MAX_ARENAS] idle
cdef size_t IDLE_CAP = <size_t>256 << 20
cdef size_t mapped = 0, most_mapped = 0  # bytes of all arenas, leased and idle


cdef void unmap(Arena arena):
    global mapped
    mapped -= arena.size
    free(arena.memory)


cdef int smallest(const Arena *pool, int count, size_t least, size_t most) noexcept:
    """The smallest arena of a pool that has so many bytes, or -1."""
    cdef int i, best = -1
    for i in range(count):
        if (pool[i].memory != NULL and least <= pool[i].size <= most
                and (best < 0 or pool[i].size < pool[best].size)):
            best = i
    return best


cdef Arena lease(size_t size) except *:
    """An arena of at least `size` bytes: the smallest idle one that fits, or a new one in place of the largest."""
    global mapped, most_mapped
    cdef int i, best = smallest(idle, MAX_ARENAS, size, <size_t>-1), largest = -1
    cdef Arena arena
    if best >= 0:
        arena = idle[best]
        idle[best].memory = NULL
        return arena
    for i in range(MAX_ARENAS):
        if idle[i].memory != NULL and (largest < 0 or idle[i].size > idle[largest].size):
            largest = i
    if size > <size_t>1 << 62:
        raise MemoryError(f"fastconv: a workspace of {size} bytes cannot be had")
    if largest >= 0:
        unmap(idle[largest])
        idle[largest].memory = NULL
    arena.size = (size + FC_PAGE - 1) // FC_PAGE * FC_PAGE
    arena.memory = fc_map(arena.size)
    if arena.memory == NULL:
        raise MemoryError(f"fastconv: a workspace of {size} bytes cannot be had")
    mapped += arena.size
    most_mapped = max(mapped, most_mapped)
    return arena


cdef void release(Arena arena):
    """Keep an arena for later calls, while those kept stay below the cap."""
    cdef size_t kept = arena.size
    cdef int i, slot = -1
    for i in range(MAX_ARENAS):
        if idle[i].memory == NULL:
            slot = i
        else:
            kept += idle[i].size
    if slot < 0 or kept > IDLE_CAP:
        unmap(arena)
    else:
        idle[slot] = arena


# ---- results: the pages of a fresh array fault at their first touch (103 MB: 45 ms, where ReLU itself takes 4), so the
# ---- memory of large results that nobody holds any more serves the next of nearly their size ----

cdef enum:
    MAX_SPARE = 32
    LARGE = 1 << 20
    ROUND = 256 << 10  # bytes that sizes are multiples of, so that results of nearly one size take turns

cdef Arena[MAX_SPARE] spare
cdef int turn = 0  # who gives way next
cdef size_t SPARE_CAP = <size_t>256 << 20


cdef class Block:
    """The memory of one large array."""

    cdef Arena arena

    def __dealloc__(self):
        """Keep the memory; what has been kept longer gives way."""
        global turn
        cdef size_t kept = self.arena.size
        cdef int i, slot = -1
        if kept > SPARE_CAP:
            free(self.arena.memory)
            return
        for i in range(MAX_SPARE):
            if spare[i].memory == NULL:
                slot = i
            else:
                kept += spare[i].size
        while slot < 0 or kept > SPARE_CAP:
            slot, turn = turn, (turn + 1) % MAX_SPARE
            if spare[slot].memory != NULL:
                kept -= spare[slot].size
                free(spare[slot].memory)
                spare[slot].memory = NULL
        spare[slot] = self.arena


cdef Block large_block(size_t bytes):
    """The smallest memory kept that fits without much waste, or new one."""
    cdef Block block = Block()
    cdef size_t size = (bytes + ROUND - 1) // ROUND * ROUND
    cdef int best = smallest(spare, MAX_SPARE, size, size + size // 4)
    if best >= 0:
        block.arena = spare[best]
        spare[best].memory = NULL
        return block
    block.arena.memory = fc_map(size)
    if block.arena.memory == NULL:
        raise MemoryError(f"fastconv: a result of {bytes} bytes cannot be had")
    block.arena.size = size
    return block


def empty(tuple shape, str type):
    """A new array of type 'f' or 'd'; shapes come checked."""
    cdef npy_intp[64] size
    cdef int i, n = <int>len(shape), number = NPY_DOUBLE if type == "d" else NPY_FLOAT
    cdef double bytes = 8 if type == "d" else 4
    cdef Block block
    cdef ndarray array
    for i in range(n):
        size[i] = shape[i]
        bytes *= size[i]
    if bytes < LARGE or bytes > 1e18:
        return PyArray_EMPTY(n, size, number, 0)
    block = large_block(<size_t>bytes)
    array = PyArray_SimpleNewFromData(n, size, number, block.arena.memory)
    set_array_base(array, block)
    return array


def empty_cache():
    """Give the memory that idle workspaces and results hold back to the system."""
    for i in range(MAX_SPARE):
        free(spare[i].memory)
        spare[i].memory = NULL
    for i in range(MAX_ARENAS):
        if idle[i].memory != NULL:
            unmap(idle[i])
            idle[i].memory = NULL


def cached_bytes():
    """Bytes that idle workspaces and results hold."""
    return (sum([idle[i].size for i in range(MAX_ARENAS) if idle[i].memory != NULL])
            + sum([spare[i].size for i in range(MAX_SPARE) if spare[i].memory != NULL]))


def peak_bytes():
    """The most bytes that workspaces, leased and idle, have had at once since the last call of this function."""
    global most_mapped
    peak = most_mapped
    most_mapped = mapped
    return peak


cdef inline size_t aligned(size_t bytes) noexcept nogil:
    """Round up to whole pages of 4 KiB, so that neighbours share no line and no page."""
    return (bytes + 4095) // 4096 * 4096


cdef inline ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) noexcept nogil:
    return (a + b - 1) // b


# ---- the one parallel loop ----

ctypedef void (*task_t)(void *job, ptrdiff_t task, char *scratch) noexcept nogil


cdef extern from *:
    """
    /* A thread's share of the tasks, on a cache line of its own: next << 32 | end, both below 2^32.  The thread takes
     * them from the front; others help from the back, so that what follows shares with its last task what it may. */
    typedef struct { uint64_t left; char line[64 - sizeof(uint64_t)]; } fc_share;
    static void fc_fill(fc_share *share, ptrdiff_t next, ptrdiff_t end) {
        share->left = (uint64_t)next << 32 | (uint64_t)end;
    }
    static ptrdiff_t fc_take(fc_share *share, int back) { /* -1: none is left */
        uint64_t left = __atomic_load_n(&share->left, __ATOMIC_RELAXED), rest;
        do {
            if (left >> 32 >= (left & UINT32_MAX)) return -1;
            rest = back ? left - 1 : left + ((uint64_t)1 << 32);
        } while (!__atomic_compare_exchange_n(&share->left, &left, rest, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
        return (ptrdiff_t)(back ? rest & UINT32_MAX : left >> 32);
    }
    """
    ctypedef struct fc_share:
        pass
    void fc_fill(fc_share *share, ptrdiff_t next, ptrdiff_t end) noexcept nogil
    ptrdiff_t fc_take(fc_share *share, bint back) noexcept nogil


cdef enum:
    SHARES = 64  # at most; more threads begin where others did


cdef void run_shares(task_t task, void *job, fc_share *share, int shares, int thread, char *scratch) noexcept nogil:
    """A thread's own share of the tasks, then what is left of the others'."""
    cdef ptrdiff_t i
    cdef int s
    for s in range(thread, thread + shares):
        i = fc_take(&share[s % shares], s > thread)
        while i >= 0:
            task(job, i, scratch)
            i = fc_take(&share[s % shares], s > thread)


cdef void run_tasks(task_t task, void *job, ptrdiff_t tasks, int threads, char *scratch,
                    size_t scratch_size) noexcept nogil:
    """Run tasks 0 .. tasks - 1; each thread has a scratch of its own.

    A thread starts with a stretch of the tasks, the same in every call, so that what it wrote in one layer is in its
    caches in the next; then it helps others with theirs.
    """
    cdef ptrdiff_t i
    cdef int n = <int>min(<ptrdiff_t>threads, tasks), shares = min(n, <int>SHARES), s
    cdef fc_share[SHARES] share
    if n <= 1:
        for i in range(tasks):
            task(job, i, scratch)
        return
    for s in range(shares):
        fc_fill(&share[s], tasks * s // shares, tasks * (s + 1) // shares)
    with parallel(num_threads=n):
        run_shares(task, job, share, shares, threadid(), scratch + <size_t>threadid() * scratch_size)


cdef void run_flushed(task_t task, void *job, ptrdiff_t tasks, int threads, char *scratch,
                      size_t scratch_size) noexcept nogil:
    """`run_tasks` with denormals flushed to zero: for multiply-adds, not for pools, ReLU or copies."""
    cdef FlushedJob flushed
    flushed.task, flushed.job = task, job
    run_tasks(flushed_task, &flushed, tasks, threads, scratch, scratch_size)


cdef struct FlushedJob:
    task_t task
    void *job


cdef void flushed_task(void *job_, ptrdiff_t i, char *scratch) noexcept nogil:
    cdef FlushedJob *job = <FlushedJob *>job_
    cdef fc_mode mode = fc_flush()
    job.task(job.job, i, scratch)
    fc_restore(mode)


cdef int threads_for(double work) noexcept nogil:
    """One thread below about 50 us of work (flops or bytes at some tens of 10^9 a second)."""
    return 1 if work < 2.0e6 else fc_get_threads()


# ---- what the machine can do ----

cdef struct PeakJob:
    kernels_t k
    ptrdiff_t repeats
    double flops

cdef void peak_task(void *job_, ptrdiff_t task, char *scratch) noexcept nogil:
    cdef PeakJob *job = <PeakJob *>job_
    cdef double flops = job.k.fma_peak(job.repeats, scratch)
    if task == 0:
        job.flops = flops


def fma_peak(str type="f", double seconds=0.02, int threads=1):
    """Fused multiply-adds with nothing to load, 10^9 floating-point operations a second over all threads."""
    cdef PeakJob job
    cdef double start, elapsed, best = 0, total = 0
    cdef int timed = 0
    job.k = fc_tables(fc_get_isa())[type == "d"]
    job.repeats, job.flops = 2000, 0
    threads = min(threads, fc_get_threads()) if fc_forked else threads
    cdef Arena arena = lease(4096 * threads)
    memset(arena.memory, 0, 4096 * threads)
    with nogil:
        while total < seconds or timed < 5:  # the best of several: a thread may lose its core for a while
            start = fc_seconds()
            run_tasks(peak_task, &job, threads, threads, <char *>arena.memory, 4096)
            elapsed = fc_seconds() - start
            total += elapsed
            if elapsed < 1e-3:
                job.repeats *= 2
            else:
                best = max(best, threads * job.flops / elapsed)
                timed += 1
    release(arena)
    return best / 1e9


def micro_kernel_rate(str type="f", double seconds=0.02, ptrdiff_t k=256):
    """The micro-kernel on panels that stay in cache, 10^9 floating-point operations a second on one thread."""
    cdef kernels_t kernels = fc_tables(fc_get_isa())[type == "d"]
    cdef size_t es = 8 if type == "d" else 4
    cdef size_t a = aligned(k * kernels.mr * es), b = aligned(k * kernels.nr * es)
    cdef Arena arena = lease(a + b + 65536)
    cdef char *p = <char *>arena.memory
    cdef double start, elapsed, best = 0, total = 0
    cdef int i
    memset(p, 0, a + b + 65536)
    with nogil:
        while total < seconds:
            start = fc_seconds()
            for i in range(100):
                kernels.gemm(k, p, p + a, p + a + b, kernels.nr, kernels.mr, kernels.nr, 1, NULL, NULL, p)
            elapsed = fc_seconds() - start
            total += elapsed
            if 200.0 * k * kernels.mr * kernels.nr / elapsed > best:
                best = 200.0 * k * kernels.mr * kernels.nr / elapsed
    release(arena)
    return best / 1e9
