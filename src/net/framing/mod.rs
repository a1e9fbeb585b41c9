//! Where one frame ends and the next begins.

mod decoder;
mod length_prefix;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use memchr::memmem;

pub use decoder::{Decoder, Frame, Malformed};
pub use length_prefix::{LengthPrefix, LengthType};

/// How the bytes of a connection are cut into the `data` of `on_receive`.
///
/// | framing | a frame is | `data` is |
/// | --- | --- | --- |
/// | [`raw`](Self::raw) | what one read gave | the same |
/// | [`delimiter`](Self::delimiter), [`lines`](Self::lines) | what comes before the next delimiter | without it |
/// | [`length_prefix`](Self::length_prefix) | a header that says how long the rest is, and the rest | without the header |
/// | [`fixed`](Self::fixed) | so many bytes | the same |
/// | [`decoder`](Self::decoder) | what a [`Decoder`] says | what it says |
///
/// A frame that is longer than [`max_frame`](crate::Limits::max_frame), and one that is not whole within
/// [`frame_timeout`](crate::Limits::frame_timeout), closes the connection. No memory is taken for what a header only
/// claims. What a client leaves unfinished when it closes is dropped, unless [`unfinished_too`](Self::unfinished_too) says
/// otherwise, and [counted](crate::ClosedStats::unfinished).
///
/// ```
/// use backroom::{Framing, LengthPrefix, LengthType, Limits, Server};
///
/// # fn main() -> Result<(), backroom::BindError> {
/// let server = Server::builder::<(), ()>()
///     .framing(Framing::length_prefix(LengthPrefix::new(LengthType::U32Be)))
///     .limits(Limits::new().max_frame(8 * 1024))
///     .on_receive(|conn, body| {
///         conn.send(u32::try_from(body.len())?.to_be_bytes())?;
///         Ok(conn.send(body)?)
///     })
///     .on_task(|_cx, ()| Ok(()))
///     .bind("127.0.0.1:0")?;
/// # drop(server);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Framing {
    kind: Kind,
    unfinished_too: bool,
}

/// A new framing is one more variant here, and one more arm in `Framer::cut`.
#[derive(Clone, Default)]
enum Kind {
    #[default]
    Raw,
    /// Shared by all connections, since it is large.
    Delimiter(Arc<memmem::Finder<'static>>),
    LengthPrefix(LengthPrefix),
    Fixed(usize),
    Decoder(MakeDecoder),
}

type MakeDecoder = Arc<dyn Fn() -> Box<dyn Decoder> + Send + Sync>;

/// How long a delimiter may be, as Swoole's `package_eof`.
const MAX_DELIMITER: usize = 8;

impl Framing {
    /// Chunks as they come from the socket, up to 64 KiB each: no boundary is kept. The default, as in Swoole.
    pub fn raw() -> Framing {
        Framing::of(Kind::Raw)
    }

    /// Frames ended by `delimiter`, 1 to 8 bytes, which `data` is without.
    ///
    /// Swoole's `open_eof_split` with `package_eof`; there, `data` keeps the delimiter.
    pub fn delimiter(delimiter: impl AsRef<[u8]>) -> Framing {
        Framing::of(Kind::Delimiter(Arc::new(memmem::Finder::new(delimiter.as_ref()).into_owned())))
    }

    /// Frames ended by `\n`. A `\r` before it stays in `data`.
    pub fn lines() -> Framing {
        Framing::delimiter(b"\n")
    }

    /// Frames that say themselves how long they are. Swoole's `open_length_check`.
    pub fn length_prefix(prefix: LengthPrefix) -> Framing {
        Framing::of(Kind::LengthPrefix(prefix))
    }

    /// Frames of so many bytes each; at least 1.
    pub fn fixed(bytes: usize) -> Framing {
        Framing::of(Kind::Fixed(bytes))
    }

    /// Frames as a [`Decoder`] of your own cuts them; `make` is called for each connection, on its worker, so what it
    /// makes need not be `Send`. If `make` panics, that connection is closed, without `on_close`. Swoole's
    /// `package_length_func`.
    pub fn decoder<D: Decoder + 'static>(make: impl Fn() -> D + Send + Sync + 'static) -> Framing {
        Framing::of(Kind::Decoder(Arc::new(move || Box::new(make()))))
    }

    /// What a client has sent after its last delimiter is a frame too when it closes in good order, as the last line of a
    /// file may have no end: `printf ping | nc -N`. With TLS that is where the client itself says so (`close_notify`), since
    /// otherwise somebody else may have cut it off. For delimiters and lines only; with another framing it is an error of
    /// `bind`, since there is no telling what such a rest would mean. Default: it is dropped.
    ///
    /// ```
    /// use backroom::Framing;
    ///
    /// let framing = Framing::lines().unfinished_too();
    /// # let _ = framing;
    /// ```
    pub fn unfinished_too(mut self) -> Framing {
        self.unfinished_too = true;
        self
    }

    fn of(kind: Kind) -> Framing {
        Framing { kind, unfinished_too: false }
    }

    /// Why this framing cannot work with frames of at most so many bytes, if it cannot.
    pub(crate) fn problem(&self, max_frame: usize) -> Option<&'static str> {
        match &self.kind {
            Kind::Delimiter(finder) if !(1..=MAX_DELIMITER).contains(&finder.needle().len()) => {
                Some("a delimiter must have 1 to 8 bytes")
            }
            Kind::Fixed(0) => Some("a fixed size of 0"),
            Kind::Fixed(size) if *size > max_frame => Some("the fixed size is larger than max_frame"),
            Kind::LengthPrefix(prefix) if prefix.problem(max_frame).is_some() => prefix.problem(max_frame),
            Kind::Delimiter(_) => None,
            _ if self.unfinished_too => Some("only what ends with a delimiter can do without it"),
            _ => None,
        }
    }
}

impl fmt::Debug for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Raw => f.write_str("Raw"),
            Kind::Delimiter(finder) => write!(f, "Delimiter({})", finder.needle().escape_ascii()),
            Kind::LengthPrefix(prefix) => prefix.fmt(f),
            Kind::Fixed(size) => write!(f, "Fixed({size})"),
            Kind::Decoder(_) => f.write_str("Decoder"),
        }
    }
}

/// The state of one connection's framing.
pub(crate) struct Framer {
    cutter: Cutter,
    max_frame: usize,
    /// Nothing has been cut yet, so what comes may not be of this protocol at all.
    fresh: bool,
    unfinished_too: bool,
}

enum Cutter {
    Raw,
    Delimiter {
        finder: Arc<memmem::Finder<'static>>,
        /// So many bytes of the unfinished frame hold no delimiter, and are not searched again.
        searched: usize,
    },
    LengthPrefix(LengthPrefix),
    Fixed(usize),
    Decoder(Box<dyn Decoder>),
}

/// One whole frame at the start of the input: where its data is, and how many bytes it takes in all.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) data: Range<usize>,
    pub(crate) taken: usize,
}

/// Why there will be no further frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// It is longer than it may be.
    TooLong,
    Malformed(Malformed),
    /// The client speaks TLS, and this listener does not.
    Tls,
}

impl Framer {
    pub(crate) fn new(framing: &Framing, max_frame: usize) -> Framer {
        let cutter = match &framing.kind {
            Kind::Raw => Cutter::Raw,
            Kind::Delimiter(finder) => Cutter::Delimiter { finder: Arc::clone(finder), searched: 0 },
            Kind::LengthPrefix(prefix) => Cutter::LengthPrefix(*prefix),
            Kind::Fixed(size) => Cutter::Fixed(*size),
            Kind::Decoder(make) => Cutter::Decoder(make()),
        };
        Framer { cutter, max_frame, fresh: true, unfinished_too: framing.unfinished_too }
    }

    /// The first frame of `input`, or `None` while it is unfinished. `input` must begin where the last cut
    /// ended, and only grow until the next one.
    #[inline]
    pub(crate) fn cut(&mut self, input: &[u8]) -> Result<Option<Cut>, FrameError> {
        let cut = self.cut_any(input);
        if self.fresh && !input.is_empty() {
            self.fresh = matches!(cut, Ok(None));
            if self.is_tls_instead(&cut, input) {
                return Err(FrameError::Tls);
            }
        }
        cut
    }

    /// Whether what is left at the end is a frame too.
    pub(crate) fn takes_rest(&self) -> bool {
        self.unfinished_too
    }

    /// All of `input`, which is left at the end.
    pub(crate) fn cut_rest(&self, input: &[u8]) -> Result<Option<Cut>, FrameError> {
        match input.len() {
            0 => Ok(None),
            len if len > self.max_frame => Err(FrameError::TooLong),
            len => Ok(Some(Cut { data: 0..len, taken: len })),
        }
    }

    #[inline]
    fn cut_any(&mut self, input: &[u8]) -> Result<Option<Cut>, FrameError> {
        let max_frame = self.max_frame;
        match &mut self.cutter {
            Cutter::Raw => {
                let len = input.len().min(max_frame);
                Ok((len > 0).then_some(Cut { data: 0..len, taken: len }))
            }
            Cutter::Delimiter { finder, searched } => delimited(finder, searched, input, max_frame),
            Cutter::LengthPrefix(prefix) => prefix.cut(input, max_frame),
            Cutter::Fixed(size) => Ok((input.len() >= *size).then_some(Cut { data: 0..*size, taken: *size })),
            Cutter::Decoder(decoder) => decoder::cut(&mut **decoder, input, max_frame),
        }
    }

    /// A length, or a frame of fixed size, may by chance look like TLS; so there it is only the better reason for an
    /// error. With raw bytes, and with a protocol of one's own, it may be just what is to come.
    fn is_tls_instead(&self, cut: &Result<Option<Cut>, FrameError>, input: &[u8]) -> bool {
        match self.cutter {
            Cutter::Raw | Cutter::Decoder(_) => false,
            Cutter::LengthPrefix(_) | Cutter::Fixed(_) if cut.is_ok() => false,
            _ => begins_tls(input),
        }
    }

    /// What has come of the first frame looks like TLS.
    pub(crate) fn may_be_tls(&self, input: &[u8]) -> bool {
        self.fresh && !matches!(self.cutter, Cutter::Raw | Cutter::Decoder(_)) && begins_tls(input)
    }
}

fn delimited(
    finder: &memmem::Finder<'_>,
    searched: &mut usize,
    input: &[u8],
    max_frame: usize,
) -> Result<Option<Cut>, FrameError> {
    let delimiter = finder.needle().len();
    match finder.find(&input[*searched..]) {
        Some(at) => {
            let end = std::mem::take(searched) + at;
            match end <= max_frame {
                true => Ok(Some(Cut { data: 0..end, taken: end + delimiter })),
                false => Err(FrameError::TooLong),
            }
        }
        None => {
            // The last bytes may be the beginning of a delimiter.
            *searched = input.len().saturating_sub(delimiter - 1);
            if *searched > max_frame { Err(FrameError::TooLong) } else { Ok(None) }
        }
    }
}

/// Whether these can only be the first bytes of a TLS client: a handshake record that holds a ClientHello.
fn begins_tls(input: &[u8]) -> bool {
    const HANDSHAKE: u8 = 0x16;
    const CLIENT_HELLO: u8 = 1;
    matches!(input, [HANDSHAKE, 3, 0..=4, high, _, CLIENT_HELLO, 0, ..] if *high <= 0x40)
}

#[cfg(test)]
mod tests;
