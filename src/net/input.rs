//! Bytes read from a client and not yet handed on.

use std::io::{self, Read};
use std::time::Duration;

use super::framing::{FrameError, Framer, Framing};

/// The first buffer of a connection that wakes up. Small, because thousands of connections may have one; a read that
/// fills it doubles the next.
const FIRST_READ: usize = 512;
/// No read is longer, and no buffer outgrows the maximum frame by more.
const MAX_READ: usize = 64 * 1024;

pub(crate) struct Input {
    framer: Framer,
    max_len: usize,
    /// Zeroed or read; `start..end` is what waits.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes wait that the framer has not said `None` to.
    uncut: bool,
    /// The last read filled the buffer: more was probably there.
    filled: bool,
    /// Nothing more comes, and what is left is a frame too.
    takes_rest: bool,
    /// How long the rest of the unfinished frame has been waited for.
    awaited: Duration,
}

impl Input {
    pub(crate) fn new(framing: &Framing, max_frame: usize) -> Input {
        Input {
            framer: Framer::new(framing, max_frame),
            max_len: max_frame.saturating_add(MAX_READ),
            buffer: Vec::new(),
            start: 0,
            end: 0,
            uncut: false,
            filled: false,
            takes_rest: false,
            awaited: Duration::ZERO,
        }
    }

    /// One read. `Ok(0)` is the end of the client's sending half.
    pub(crate) fn fill(&mut self, stream: &mut impl Read) -> io::Result<usize> {
        self.make_room();
        let room = &mut self.buffer[self.end..];
        let len = room.len().min(MAX_READ);
        let n = stream.read(&mut room[..len])?;
        self.filled = n == room.len();
        self.uncut |= n > 0;
        self.end += n;
        Ok(n)
    }

    /// One read of what nobody wants any more.
    pub(crate) fn discard(&mut self, stream: &mut impl Read) -> io::Result<usize> {
        (self.start, self.end, self.uncut) = (0, 0, false);
        self.make_room();
        stream.read(&mut self.buffer)
    }

    /// The next whole frame, if one is here.
    #[inline]
    pub(crate) fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let input = &self.buffer[self.start..self.end];
        let cut = match self.framer.cut(input)? {
            None if self.takes_rest => self.framer.cut_rest(input)?,
            cut => cut,
        };
        match cut {
            Some(cut) => {
                let from = self.start;
                self.start += cut.taken;
                self.uncut = self.start < self.end;
                self.awaited = Duration::ZERO;
                Ok(Some(&self.buffer[from + cut.data.start..from + cut.data.end]))
            }
            None => {
                self.uncut = false;
                Ok(None)
            }
        }
    }

    /// Nothing more comes; whether the client has ended in good order.
    pub(crate) fn end(&mut self, in_order: bool) {
        self.takes_rest = in_order && self.framer.takes_rest();
        self.uncut |= self.takes_rest && self.start < self.end;
    }

    /// How many bytes there are of a frame that is not whole.
    pub(crate) fn unfinished(&self) -> usize {
        if self.uncut { 0 } else { self.end - self.start }
    }

    /// A whole frame may be here without another read.
    pub(crate) fn may_have_frame(&self) -> bool {
        self.uncut
    }

    /// So long nothing was done but to wait for more.
    #[inline]
    pub(crate) fn wait(&mut self, time: Duration) {
        if self.start < self.end {
            self.awaited += time;
        }
    }

    /// How long the rest of the unfinished frame has been waited for, if there is one.
    #[inline]
    pub(crate) fn awaited(&self) -> Option<Duration> {
        (self.start < self.end && !self.uncut).then_some(self.awaited)
    }

    /// The memory it takes.
    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// The first frame, which is not whole, looks like TLS.
    pub(crate) fn may_be_tls(&self) -> bool {
        self.framer.may_be_tls(&self.buffer[self.start..self.end])
    }

    /// Gives the buffer back if nothing is in it.
    pub(crate) fn release(&mut self) {
        if self.start == self.end {
            self.buffer = Vec::new();
            (self.start, self.end) = (0, 0);
        }
    }

    /// How many bytes wait, and how many there is room for in all.
    #[cfg(feature = "internals")]
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.end - self.start, self.buffer.capacity())
    }

    /// Leaves at least one byte of room. Every frame has been cut by now, so what waits is one unfinished
    /// frame, which the framer keeps to its maximum: that bounds the buffer.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let full = self.end == self.buffer.len();
        let grow = full || self.filled && self.buffer.len() < MAX_READ;
        if grow {
            let len = (self.buffer.len() * 2).clamp(FIRST_READ, self.max_len).max(self.end + 1);
            // Exactly, since the room that `resize` adds by itself would count.
            self.buffer.reserve_exact(len - self.buffer.len());
            self.buffer.resize(len, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_never_outgrows_the_maximum_frame_plus_one_read() {
        let max_frame = 256 * 1024;
        let mut input = Input::new(&Framing::lines(), max_frame);
        let mut endless = io::repeat(b'x');
        let error = loop {
            input.fill(&mut endless).unwrap();
            if let Err(error) = input.next_frame() {
                break error;
            }
            assert!(input.buffer.len() <= max_frame + MAX_READ);
        };
        assert_eq!(error, FrameError::TooLong);
        assert!(input.buffer.capacity() <= max_frame + MAX_READ);
    }

    #[test]
    fn the_clock_of_a_frame_runs_from_its_own_first_byte_while_more_is_waited_for() {
        let second = Duration::from_secs(1);
        let mut input = Input::new(&Framing::lines(), 100);
        input.wait(second);
        input.fill(&mut &b"ab"[..]).unwrap();
        assert!(input.next_frame().unwrap().is_none());
        assert_eq!(input.awaited(), Some(Duration::ZERO));
        input.wait(second);
        input.wait(second);
        assert_eq!(input.awaited(), Some(2 * second));
        input.fill(&mut &b"c\nde"[..]).unwrap();
        assert_eq!(input.next_frame().unwrap(), Some(&b"abc"[..]));
        assert!(input.next_frame().unwrap().is_none());
        assert_eq!(input.awaited(), Some(Duration::ZERO));
        input.wait(second);
        input.fill(&mut &b"f\n"[..]).unwrap();
        assert_eq!(input.next_frame().unwrap(), Some(&b"def"[..]));
        assert_eq!(input.awaited(), None);
    }

    #[test]
    fn frames_come_out_whole_however_small_the_buffer_was() {
        let text: Vec<u8> = (0..5_000u32).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        let mut input = Input::new(&Framing::lines(), 100);
        let (mut client, mut lines) = (&text[..], 0u32);
        while input.fill(&mut client).unwrap() > 0 {
            while let Some(frame) = input.next_frame().unwrap() {
                assert_eq!(frame, format!("line {lines}").as_bytes());
                lines += 1;
            }
        }
        assert_eq!(lines, 5_000);
    }
}
