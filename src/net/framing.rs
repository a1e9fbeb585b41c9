//! Where one frame ends and the next begins.

use std::fmt;
use std::sync::Arc;

use memchr::memmem;

/// How the bytes of a connection are cut into the `data` of `on_receive`.
///
/// ```
/// use backroom::{Framing, Server};
///
/// # fn main() -> Result<(), backroom::BindError> {
/// let server = Server::builder::<(), ()>()
///     .framing(Framing::delimiter("\r\n\r\n"))
///     .max_frame(8 * 1024)
///     .on_receive(|conn, head| Ok(conn.send(format!("{} bytes\r\n", head.len()))?))
///     .on_task(|_cx, ()| Ok(()))
///     .bind("127.0.0.1:0")?;
/// # drop(server);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Framing(Kind);

/// A new framing is one more variant here, and one more arm in `Framer::cut`.
#[derive(Clone, Default)]
enum Kind {
    #[default]
    Raw,
    /// Shared by all connections, since it is large.
    Delimiter(Arc<memmem::Finder<'static>>),
}

/// How long a delimiter may be, as Swoole's `package_eof`.
const MAX_DELIMITER: usize = 8;

impl Framing {
    /// Chunks as they come from the socket, up to 64 KiB each: no boundary is kept. The default, as in Swoole.
    pub fn raw() -> Framing {
        Framing(Kind::Raw)
    }

    /// Frames ended by `delimiter`, 1 to 8 bytes, which `data` is without. What a client leaves unended when
    /// it closes is dropped.
    ///
    /// Swoole's `open_eof_split` with `package_eof`; there, `data` keeps the delimiter.
    pub fn delimiter(delimiter: impl AsRef<[u8]>) -> Framing {
        Framing(Kind::Delimiter(Arc::new(memmem::Finder::new(delimiter.as_ref()).into_owned())))
    }

    /// Frames ended by `\n`. A `\r` before it stays in `data`.
    pub fn lines() -> Framing {
        Framing::delimiter(b"\n")
    }

    /// Why this framing cannot work, if it cannot.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        match &self.0 {
            Kind::Delimiter(finder) if !(1..=MAX_DELIMITER).contains(&finder.needle().len()) => {
                Some("a delimiter must have 1 to 8 bytes")
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Raw => f.write_str("Raw"),
            Kind::Delimiter(finder) => write!(f, "Delimiter({})", finder.needle().escape_ascii()),
        }
    }
}

/// The state of one connection's framing.
pub(crate) struct Framer {
    framing: Framing,
    max_frame: usize,
    /// So many bytes of the unfinished frame hold no delimiter, and are not searched again.
    searched: usize,
}

/// One whole frame at the start of the input: its bytes, and those it takes with its delimiter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) frame: usize,
    pub(crate) taken: usize,
}

/// A frame is longer than it may be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FrameTooLong;

impl Framer {
    pub(crate) fn new(framing: Framing, max_frame: usize) -> Framer {
        Framer { framing, max_frame, searched: 0 }
    }

    /// The first frame of `input`, or `None` while it is unfinished. `input` must begin where the last cut
    /// ended, and only grow until the next one.
    pub(crate) fn cut(&mut self, input: &[u8]) -> Result<Option<Cut>, FrameTooLong> {
        match &self.framing.0 {
            Kind::Raw => {
                let len = input.len().min(self.max_frame);
                Ok((len > 0).then_some(Cut { frame: len, taken: len }))
            }
            Kind::Delimiter(finder) => {
                let delimiter = finder.needle().len();
                match finder.find(&input[self.searched..]) {
                    Some(at) => {
                        let frame = self.searched + at;
                        self.searched = 0;
                        if frame > self.max_frame {
                            return Err(FrameTooLong);
                        }
                        Ok(Some(Cut { frame, taken: frame + delimiter }))
                    }
                    None => {
                        // The last bytes may be the beginning of a delimiter.
                        self.searched = input.len().saturating_sub(delimiter - 1);
                        if self.searched > self.max_frame { Err(FrameTooLong) } else { Ok(None) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(framing: &Framing, max_frame: usize, chunks: &[&[u8]]) -> Result<Vec<Vec<u8>>, FrameTooLong> {
        let mut framer = Framer::new(framing.clone(), max_frame);
        let (mut pending, mut frames) = (Vec::new(), Vec::new());
        for chunk in chunks {
            pending.extend_from_slice(chunk);
            while let Some(cut) = framer.cut(&pending)? {
                frames.push(pending[..cut.frame].to_vec());
                pending.drain(..cut.taken);
            }
        }
        Ok(frames)
    }

    #[test]
    fn a_frame_of_exactly_the_maximum_passes_and_one_byte_more_does_not() {
        let framing = Framing::delimiter("\r\n");
        assert_eq!(frames(&framing, 3, &[b"abc\r", b"\n"]).unwrap(), [b"abc"]);
        assert_eq!(frames(&framing, 3, &[b"abcd\r\n"]), Err(FrameTooLong));
        assert_eq!(frames(&framing, 3, &[b"abcd", b"\r\n"]), Err(FrameTooLong));
    }

    #[test]
    fn an_unended_frame_over_the_maximum_is_an_error_before_its_end_comes() {
        assert_eq!(frames(&Framing::lines(), 10, &[&[b'x'; 11]]), Err(FrameTooLong));
    }

    #[test]
    fn a_delimiter_has_one_to_eight_bytes() {
        assert!(Framing::delimiter("").problem().is_some());
        assert!(Framing::delimiter("123456789").problem().is_some());
        assert!(Framing::delimiter("12345678").problem().is_none());
        assert!(Framing::raw().problem().is_none());
    }

    proptest! {
        #[test]
        fn any_split_of_the_input_gives_the_same_frames(
            input in proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'\r'), Just(b'\n')], 0..200),
            splits in proptest::collection::vec(0usize..200, 0..10),
            delimiter in prop_oneof![Just("\n"), Just("\r\n"), Just("\r\r\n"), Just("aaaaaaaa")],
            max_frame in 1usize..40,
        ) {
            let mut splits: Vec<usize> = splits.into_iter().map(|at| at.min(input.len())).collect();
            splits.extend([0, input.len()]);
            splits.sort_unstable();
            let chunks: Vec<&[u8]> = splits.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
            let framing = Framing::delimiter(delimiter);
            prop_assert_eq!(frames(&framing, max_frame, &chunks), frames(&framing, max_frame, &[&input]));
        }
    }
}
