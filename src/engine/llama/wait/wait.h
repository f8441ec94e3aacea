// How a ggml thread waits for its team: it spins a little, then naps.
//
// Between two operations of a graph the threads meet at a barrier, and ggml's own barrier spins
// until all are there (`_mm_pause` in a loop). On a busy machine that is a catastrophe: the spinner uses
// up its share of the core, so that the scheduler lets others run when at last there is work for
// it, and everybody waits for whole time slices, a hundred times a step. A thread that naps while it
// waits keeps its share, and leaves the core to those who can use it.
//
// This header is put in front of ggml's C files (wait.cmake) and gives them a `_mm_pause` that naps
// once a wait has lasted longer than any that is not in trouble. Linux on x86-64; elsewhere ggml
// waits as it always did, and the governor (threads.rs) alone stands against the catastrophe.
#ifndef SLUICEGATE_WAIT_H
#define SLUICEGATE_WAIT_H

#include <immintrin.h>
#include <sys/prctl.h>
#include <time.h>
#include <x86intrin.h>

// In ticks of the time-stamp counter, 2 to 4 of which are a nanosecond. Spinning for longer than
// this (25 to 50 us) means that somebody is not running; the barriers of a sound team take 1 to 20.
#define SLUICEGATE_SPIN_TICKS 100000ull
// Pauses further apart than this do not belong to one wait.
#define SLUICEGATE_GAP_TICKS 5000ull
// Long enough for the scheduler to hand over the core, short enough to be lost in one time slice.
#define SLUICEGATE_NAP_NS 20000

static __thread unsigned long long sluicegate_wait_since;
static __thread unsigned long long sluicegate_wait_last;
static __thread int sluicegate_wait_naps;

static inline void sluicegate_pause(void) {
    __builtin_ia32_pause();
    unsigned long long now = __rdtsc();
    if (now - sluicegate_wait_last > SLUICEGATE_GAP_TICKS) {
        sluicegate_wait_since = now;
    }
    sluicegate_wait_last = now;
    if (now - sluicegate_wait_since > SLUICEGATE_SPIN_TICKS) {
        if (!sluicegate_wait_naps) {
            // The kernel rounds a thread's naps up by 50 us unless told otherwise.
            sluicegate_wait_naps = 1;
            prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
        }
        const struct timespec nap = {0, SLUICEGATE_NAP_NS};
        nanosleep(&nap, 0);
        // The nap is part of the wait: it does not begin a new one.
        sluicegate_wait_last = __rdtsc();
    }
}

#define _mm_pause sluicegate_pause

#endif
