//! What keeps the log readable under attack: at most one line a second of a kind, and no raw text of others.

use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

const EVERY: Duration = Duration::from_secs(1);
/// As much of a foreign text as a log line or an error carries.
const MAX_TEXT: usize = 200;

/// Lets one event a second through, and says how many it held back before.
#[derive(Default)]
pub(crate) struct LogLimit(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    logged_at: Option<Instant>,
    held_back: u64,
}

impl LogLimit {
    /// `Some(held back since the last one)` if this event may be logged.
    pub(crate) fn permit(&self) -> Option<u64> {
        let mut seen = self.0.lock();
        if seen.logged_at.is_some_and(|at| at.elapsed() < EVERY) {
            seen.held_back += 1;
            return None;
        }
        seen.logged_at = Some(Instant::now());
        Some(std::mem::take(&mut seen.held_back))
    }
}

/// Text that a client may have had a hand in, escaped and cut, for a log line.
pub(crate) fn foreign(text: impl fmt::Display) -> String {
    let text = text.to_string();
    let mut shown: String = text.chars().take(MAX_TEXT).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_escaped_and_cut() {
        assert_eq!(foreign("a\x1b[31m\r\nb"), "a\\u{1b}[31m\\r\\nb");
        assert_eq!(foreign("x".repeat(10_000)).chars().count(), MAX_TEXT + 1);
    }

    #[test]
    fn a_burst_is_logged_once() {
        let limit = LogLimit::default();
        assert_eq!(limit.permit(), Some(0));
        assert_eq!(limit.permit(), None);
    }
}
