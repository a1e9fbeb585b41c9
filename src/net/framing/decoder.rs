//! Protocols of one's own.

use std::error::Error;
use std::fmt;
use std::ops::Range;

use super::{Cut, FrameError};

/// Cuts the bytes of one connection into frames: a protocol of one's own, for
/// [`Framing::decoder`](crate::Framing::decoder). Lives on the connection's worker and is used by it alone.
///
/// A netstring, `5:hello,`, for example:
///
/// ```
/// use backroom::{Decoder, Frame, Framing, Malformed, Server};
///
/// #[derive(Default)]
/// struct Netstring;
///
/// impl Decoder for Netstring {
///     fn decode(&mut self, input: &[u8]) -> Result<Option<Frame>, Malformed> {
///         // A length has at most seven digits here, so it is refused before an eighth is waited for.
///         let Some(digits) = input.iter().take(8).position(|byte| *byte == b':') else {
///             return if input.len() < 8 { Ok(None) } else { Err(Malformed::new("a length without end")) };
///         };
///         let length: usize = std::str::from_utf8(&input[..digits])
///             .ok()
///             .and_then(|digits| digits.parse().ok())
///             .ok_or_else(|| Malformed::new("a length that is no number").reply("0:,"))?;
///         let data = digits + 1..digits + 1 + length;
///         match input.get(data.end) {
///             None => Ok(None),
///             Some(b',') => Ok(Some(Frame::new(data.clone(), data.end + 1))),
///             Some(_) => Err(Malformed::new("no comma where one belongs")),
///         }
///     }
/// }
///
/// # fn main() -> Result<(), backroom::BindError> {
/// let server = Server::builder::<(), ()>()
///     .framing(Framing::decoder(Netstring::default))
///     .on_receive(|conn, data| Ok(conn.send(format!("{}:{},", data.len(), data.escape_ascii()))?))
///     .on_task(|_cx, ()| Ok(()))
///     .bind("127.0.0.1:0")?;
/// # drop(server);
/// # Ok(())
/// # }
/// ```
pub trait Decoder {
    /// The first frame of `input`, if it is whole; `None` if more must come first. An error closes the connection, with
    /// [`CloseReason::Malformed`](crate::CloseReason::Malformed), and so does a panic.
    ///
    /// `input` is not empty and begins where the last frame ended. As long as `None` is returned it is given again with
    /// more bytes behind it; remember how far you have looked if looking is slow.
    /// [`max_frame`](crate::Limits::max_frame) bounds it: more than that without a frame closes the connection.
    fn decode(&mut self, input: &[u8]) -> Result<Option<Frame>, Malformed>;
}

/// A whole frame at the start of the input of a [`Decoder`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    data: Range<usize>,
    taken: usize,
}

impl Frame {
    /// `on_receive` is given the bytes of the input in `data`, and the next frame begins after `taken` bytes. `data`
    /// must be within these, and they at least one and within the input; else the connection closes.
    pub fn new(data: Range<usize>, taken: usize) -> Frame {
        Frame { data, taken }
    }
}

/// What a client has sent is not of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    reason: String,
    reply: Vec<u8>,
}

impl Malformed {
    /// With what is wrong, for `on_close` and the log.
    pub fn new(reason: impl fmt::Display) -> Malformed {
        Malformed { reason: reason.to_string(), reply: Vec::new() }
    }

    /// What the client is sent before the connection closes. Default: nothing.
    pub fn reply(mut self, bytes: impl Into<Vec<u8>>) -> Malformed {
        self.reply = bytes.into();
        self
    }

    pub(crate) fn take_reply(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.reply)
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Error for Malformed {}

/// Trusts the decoder with nothing.
pub(super) fn cut(decoder: &mut dyn Decoder, input: &[u8], max_frame: usize) -> Result<Option<Cut>, FrameError> {
    if input.is_empty() {
        return Ok(None);
    }
    match decoder.decode(input).map_err(FrameError::Malformed)? {
        None if input.len() > max_frame => Err(FrameError::TooLong),
        None => Ok(None),
        Some(Frame { data, taken }) => {
            if taken == 0 || taken > input.len() || data.start > data.end || data.end > taken {
                let reason = format!("the decoder has cut {data:?} and {taken} out of {} bytes", input.len());
                return Err(FrameError::Malformed(Malformed::new(reason)));
            }
            // All of it counts, as it does while it is unfinished.
            if taken > max_frame { Err(FrameError::TooLong) } else { Ok(Some(Cut { data, taken })) }
        }
    }
}
