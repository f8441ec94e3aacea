//! Where each thread is whenever the process has used some more CPU time.
//!
//! The kernel's profiling timer (`ITIMER_PROF`) sends a signal to a thread that runs; its handler walks
//! that thread's stack and puts the addresses into a slot. An idle process gets no signal, and one that is
//! not profiled has no timer.
//!
//! What the handler may do is little: it allocates nothing, takes no lock and only writes to atomic words of
//! its own slot. Walking the stack is the C++ runtime's (`_Unwind_Backtrace`), which was made to read all it
//! needs before the first signal. It looks tables up without a lock on glibc 2.35 and later, and with the
//! loader's recursive lock before; a thread that is inside of the loader or of the unwinder itself is not
//! walked, so that what they were about to change is not read.

#![expect(unsafe_code, reason = "signals, and the unwinder")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Mutex, MutexGuard, OnceLock, TryLockError};

/// Return addresses of one sample; what is further out is left away.
const DEPTH: usize = 96;

/// Samples between two looks. A core gives at most one per tick of the kernel's clock (4 ms), so this is
/// a tenth of a second on forty cores, in less than a megabyte.
const SLOTS: usize = 1024;

/// Mapped ranges in which a stack is not walked.
const KEEP_OUT: usize = 16;

/// Files in which it is not: the loader, the unwinder, and the kernel's page, whose tables are often wrong.
const NOT_WALKED: [&str; 4] = ["/ld-linux", "/ld-musl", "/libgcc_s", "[vdso]"];

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const READY: u32 = 2;

struct Slot {
    state: AtomicU32,
    thread: AtomicI32,
    depth: AtomicUsize,
    /// From the innermost outwards.
    addresses: [AtomicUsize; DEPTH],
}

#[expect(
    clippy::declare_interior_mutable_const,
    reason = "the start of each slot"
)]
const EMPTY: Slot = Slot {
    state: AtomicU32::new(FREE),
    thread: AtomicI32::new(0),
    depth: AtomicUsize::new(0),
    addresses: [const { AtomicUsize::new(0) }; DEPTH],
};

static SAMPLES: [Slot; SLOTS] = [const { EMPTY }; SLOTS];
static NEXT: AtomicUsize = AtomicUsize::new(0);
static LOST: AtomicU64 = AtomicU64::new(0);
static IS_ON: AtomicBool = AtomicBool::new(false);
static KEPT_OUT: [[AtomicUsize; 2]; KEEP_OUT] =
    [const { [const { AtomicUsize::new(0) }; 2] }; KEEP_OUT];

/// One at a time: there is one timer in a process.
static TURN: Mutex<()> = Mutex::new(());

/// A thread's stack at one moment.
pub(super) struct Sample {
    pub(super) thread: i32,
    /// From the innermost outwards; the first is where it was, the others where it would have returned to.
    pub(super) addresses: Vec<usize>,
}

/// Samples are taken while this lives.
pub(super) struct Sampling {
    _turn: MutexGuard<'static, ()>,
}

impl Sampling {
    /// `frequency` samples for each second of CPU time. Nothing if somebody else has the timer.
    ///
    /// # Errors
    /// The system has no such timer.
    pub(super) fn start(frequency: u32) -> io::Result<Option<Self>> {
        let turn = match TURN.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(None),
        };
        install()?;
        keep_out();
        let sampling = Self { _turn: turn };
        sampling.drain(|_| ());
        LOST.store(0, Relaxed);
        IS_ON.store(true, Release);
        let micros = (1_000_000 / frequency.max(1)).max(1);
        set_timer(micros)?;
        Ok(Some(sampling))
    }

    /// Hands out what was sampled since the last time.
    #[expect(clippy::unused_self, reason = "only who samples may look")]
    pub(super) fn drain(&self, mut each: impl FnMut(Sample)) {
        for slot in &SAMPLES {
            if slot.state.load(Acquire) != READY {
                continue;
            }
            let depth = slot.depth.load(Relaxed).min(DEPTH);
            let addresses = slot.addresses.iter().take(depth);
            each(Sample {
                thread: slot.thread.load(Relaxed),
                addresses: addresses.map(|address| address.load(Relaxed)).collect(),
            });
            slot.state.store(FREE, Release);
        }
    }

    /// Samples for which there was no slot.
    #[expect(clippy::unused_self, reason = "only who samples may look")]
    pub(super) fn lost(&self) -> u64 {
        LOST.load(Relaxed)
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        // The handler stays: a signal may be on its way, and without it that would end the process.
        IS_ON.store(false, Release);
        if let Err(error) = set_timer(0) {
            tracing::warn!(%error, "the profiling timer cannot be stopped");
        }
    }
}

/// Makes the signal call [`on_signal`], once.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        // The unwinder reads what it needs, and allocates, at its first use: now, not in the handler.
        // SAFETY: nobody resolves symbols or changes the list of libraries through this crate meanwhile.
        unsafe { backtrace::trace_unsynchronized(|_| true) };
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zeros is a valid `sigaction`: no flags, no mask, the default action.
        let action = unsafe { action.assume_init_mut() };
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        // SAFETY: the action is valid, and its handler is safe to be called at any time.
        let failed = unsafe { libc::sigaction(libc::SIGPROF, action, ptr::null_mut()) } != 0;
        if failed {
            return Err(io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or_default());
        }
        Ok(())
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// Where stacks are not walked, as the process is mapped now.
fn keep_out() {
    // Without the file, everything is walked: it is a precaution.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let ranges = maps.lines().filter_map(|line| {
        NOT_WALKED.iter().find(|name| line.contains(**name))?;
        let (range, rest) = line.split_once(' ')?;
        rest.get(2..3).filter(|executable| *executable == "x")?;
        let (start, end) = range.split_once('-')?;
        let parse = |text| usize::from_str_radix(text, 16).ok();
        Some([parse(start)?, parse(end)?])
    });
    for (kept, [start, end]) in KEPT_OUT.iter().zip(ranges) {
        kept[0].store(start, Relaxed);
        kept[1].store(end, Relaxed);
    }
}

/// A signal after each so many microseconds of CPU time; none with 0.
fn set_timer(micros: u32) -> io::Result<()> {
    let time = libc::timeval {
        tv_sec: (micros / 1_000_000).into(),
        tv_usec: (micros % 1_000_000).into(),
    };
    let timer = libc::itimerval {
        it_interval: time,
        it_value: time,
    };
    // SAFETY: the timer is valid; what it was before is not asked for.
    let failed = unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, ptr::null_mut()) };
    if failed == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if !IS_ON.load(Acquire) {
        return;
    }
    // SAFETY: it has no conditions.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the address of this thread's own `errno`, which is always there and nobody else's.
    let errno = unsafe { &mut *errno };
    let before = *errno;
    sample(context.cast());
    *errno = before;
}

/// Takes a slot and fills it.
fn sample(context: *const libc::ucontext_t) {
    let slot = &SAMPLES[NEXT.fetch_add(1, Relaxed) % SLOTS];
    if slot
        .state
        .compare_exchange(FREE, TAKEN, Acquire, Relaxed)
        .is_err()
    {
        LOST.fetch_add(1, Relaxed);
        return;
    }
    let here = interrupted(context);
    slot.addresses[0].store(here, Relaxed);
    let mut depth = 1;
    let is_walked = !KEPT_OUT.iter().any(|range| {
        let [start, end] = range.each_ref().map(|address| address.load(Relaxed));
        (start..end).contains(&here)
    });
    if is_walked {
        // The first frames are the handler's own; the interrupted one comes after the signal's.
        let mut is_ours = true;
        let mut walk = |frame: &backtrace::Frame| {
            let address = frame.ip().addr();
            if is_ours {
                is_ours = address != here;
                return true;
            }
            let Some(place) = slot.addresses.get(depth).filter(|_| address != 0) else {
                return false;
            };
            place.store(address, Relaxed);
            depth += 1;
            true
        };
        // SAFETY: it takes no lock, and what it reads was made ready before the first signal.
        unsafe { backtrace::trace_unsynchronized(&mut walk) };
    }
    // SAFETY: it has no conditions.
    let thread = unsafe { libc::gettid() };
    slot.thread.store(thread, Relaxed);
    slot.depth.store(depth, Relaxed);
    slot.state.store(READY, Release);
}

/// The instruction that the signal interrupted.
fn interrupted(context: *const libc::ucontext_t) -> usize {
    // SAFETY: the kernel hands the handler the context of the thread that it interrupted.
    let Some(context) = (unsafe { context.as_ref() }) else {
        return 0;
    };
    #[cfg(target_arch = "x86_64")]
    let address = {
        const RIP: usize = libc::REG_RIP as usize;
        context.uc_mcontext.gregs[RIP]
    };
    #[cfg(target_arch = "aarch64")]
    let address = context.uc_mcontext.pc;
    usize::try_from(address).unwrap_or_default()
}
