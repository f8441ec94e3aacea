//! The calls into llama.cpp that can throw, through `shim.cpp`, which catches.
//!
//! A C++ exception must not reach Rust: nobody there could catch it, and the process would end. Here
//! it is an error like any other, with the exception's words and llama.cpp's last lines.
#![expect(
    unsafe_code,
    reason = "calls the C++ beside it; each block says why it is sound"
)]

use std::ffi::c_char;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;

use super::ffi::{LlamaError, take_errors};

/// Room for an exception's words; the rest is cut off.
const WORDS: usize = 512;

unsafe extern "C" {
    fn sluicegate_decode(
        context: *mut sys::llama_context,
        batch: *const sys::llama_batch,
        status: *mut i32,
        what: *mut c_char,
        room: usize,
    ) -> bool;

    fn sluicegate_tokenize(
        model: *const sys::llama_model,
        text: *const c_char,
        length: i32,
        tokens: *mut sys::llama_token,
        capacity: i32,
        parse_special: bool,
        count: *mut i32,
        what: *mut c_char,
        room: usize,
    ) -> bool;
}

/// `llama_decode`: its return value.
///
/// # Safety
/// `context` is live and not in use elsewhere; the arrays of `batch` have `n_tokens` entries, and its
/// ids and positions are ones that llama.cpp takes.
pub(super) unsafe fn decode(
    context: *mut sys::llama_context,
    batch: &sys::llama_batch,
) -> Result<i32, LlamaError> {
    let mut status = 0;
    caught(|what, room| {
        // SAFETY: as the caller says; the shim writes one number and at most `room` bytes.
        unsafe { sluicegate_decode(context, batch, &raw mut status, what, room) }
    })?;
    Ok(status)
}

/// The tokens of a text, without any that the model would put around it. `parse_special` lets the
/// texts of control tokens become those tokens.
pub(super) fn tokenize(
    model: &LlamaModel,
    text: &[u8],
    parse_special: bool,
) -> Result<Vec<u32>, LlamaError> {
    const TOO_LONG: LlamaError = LlamaError::Bounds("a text of 2 GiB and more has no tokens");
    let length = i32::try_from(text.len()).map_err(|_| TOO_LONG)?;
    // Most tokens are longer than two bytes. If these are not, llama.cpp says how many there are.
    let mut tokens: Vec<sys::llama_token> = vec![0; text.len() / 2 + 8];
    loop {
        let capacity = i32::try_from(tokens.len()).map_err(|_| TOO_LONG)?;
        let mut count = 0;
        caught(|what, room| {
            // SAFETY: `LlamaModel` is `repr(transparent)` over a pointer to a live model (`ffi.rs`
            // asserts its size); the text has `length` bytes and the tokens have room for `capacity`.
            // The shim writes the count and at most `room` bytes. Tokenizing reads the model only.
            unsafe {
                sluicegate_tokenize(
                    super::ffi::model_pointer(model),
                    text.as_ptr().cast(),
                    length,
                    tokens.as_mut_ptr(),
                    capacity,
                    parse_special,
                    &raw mut count,
                    what,
                    room,
                )
            }
        })?;
        if let Ok(count) = usize::try_from(count) {
            tokens.truncate(count);
            return Ok(tokens.into_iter().map(unsigned).collect());
        }
        let needed = count.checked_neg().ok_or(TOO_LONG)?;
        let needed = usize::try_from(needed).map_err(|_| TOO_LONG)?;
        if needed <= tokens.len() {
            return Err(LlamaError::Bounds("the tokens of a text cannot be counted"));
        }
        tokens.resize(needed, 0);
    }
}

/// Runs a call of the shim; its exception, if it threw one.
fn caught(call: impl FnOnce(*mut c_char, usize) -> bool) -> Result<(), LlamaError> {
    let mut what = [0_u8; WORDS];
    take_errors();
    if call(what.as_mut_ptr().cast(), WORDS) {
        return Ok(());
    }
    let end = what.iter().position(|&byte| byte == 0).unwrap_or(WORDS);
    Err(LlamaError::Exception {
        what: String::from_utf8_lossy(&what[..end]).into_owned(),
        log: take_errors(),
    })
}

fn unsigned(token: sys::llama_token) -> u32 {
    u32::try_from(token).unwrap_or(0)
}

#[cfg(test)]
mod tests;
