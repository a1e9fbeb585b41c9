//! The fence around user code: a panic inside becomes a message, and goes no further.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `code`; if it panics, returns the panic's message.
///
/// Whatever `code` borrowed may be left half changed: the caller must replace it or close it.
pub(crate) fn catch<R>(code: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|payload| {
        let message = message(&*payload);
        discard(payload);
        message
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a message".to_owned()
    }
}

/// Drops what may panic when dropped: a panic's payload can, and then so can the payload of that. One that goes on so is
/// leaked, which takes some bytes.
fn discard(mut payload: Box<dyn Any + Send>) {
    for _ in 0..4 {
        match catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            Ok(()) => return,
            Err(next) => payload = next,
        }
    }
    std::mem::forget(payload);
}

/// Drops what is users', and may panic.
pub(crate) fn drop_fenced<X>(x: X) {
    let _ = catch(|| drop(x));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(catch(|| 1), Ok(1));
        assert_eq!(catch(|| panic!("plain")), Err::<(), _>("plain".into()));
        assert_eq!(catch(|| panic!("with {}", 1)), Err::<(), _>("with 1".into()));
    }

    #[test]
    fn a_payload_that_panics_when_dropped_does_not_get_past_the_fence() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                std::panic::panic_any(Bomb);
            }
        }
        assert!(catch(|| std::panic::panic_any(Bomb)).is_err());
    }
}
