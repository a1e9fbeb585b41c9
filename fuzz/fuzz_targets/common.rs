//! What the targets share.

#![allow(dead_code)]

use backroom::Framing;
use backroom::internals::{End, Frames, frames};

/// What a reference makes of the start of an input: data and bytes taken.
pub type Cut<'a> = Option<(&'a [u8], usize)>;

/// The library finds the same frames and the same end as a reference, that sees all of the input at once, however the
/// input is split.
pub fn check(
    framing: &Framing,
    max_frame: usize,
    input: &[u8],
    splits: &[u16],
    cut: impl Fn(&[u8]) -> Result<Cut<'_>, End>,
) {
    check_ends(framing, max_frame, input, splits, |end| end, cut);
}

/// The same, where the end is compared by `known`, what is known of it.
pub fn check_ends(
    framing: &Framing,
    max_frame: usize,
    input: &[u8],
    splits: &[u16],
    known: impl Fn(End) -> End,
    cut: impl Fn(&[u8]) -> Result<Cut<'_>, End>,
) {
    // Where frames are awaited, what begins like TLS is taken for it if all of its first bytes are there at once.
    if input.starts_with(&[0x16, 3]) {
        return;
    }
    let expected = reference(input, cut);
    for pieces in [vec![input], split(input, splits), input.chunks(1).collect()] {
        let Some(found) = frames(framing, max_frame, &pieces) else { return };
        assert!(found.frames.iter().all(|frame| frame.len() <= max_frame));
        let found = Frames { end: known(found.end), ..found };
        assert_eq!(found, expected, "with at most {max_frame} bytes each");
    }
}

fn reference(input: &[u8], cut: impl Fn(&[u8]) -> Result<Cut<'_>, End>) -> Frames {
    let (mut rest, mut frames) = (input, Vec::new());
    let end = loop {
        match cut(rest) {
            Ok(Some((data, taken))) => {
                frames.push(data.to_vec());
                rest = &rest[taken..];
            }
            Ok(None) => break End::Waits(rest.len()),
            Err(end) => break end,
        }
    };
    Frames { frames, end }
}

pub fn split<'a>(input: &'a [u8], splits: &[u16]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> = splits.iter().take(16).map(|at| usize::from(*at) % (input.len() + 1)).collect();
    ends.extend([0, input.len()]);
    ends.sort_unstable();
    ends.dedup();
    ends.windows(2).map(|ends| &input[ends[0]..ends[1]]).collect()
}
