//! Bytes on their way to a client: gathered during a batch, written in one go, bounded.

use std::io::{self, Write};
use std::time::Instant;

/// A buffer this large or larger is given back once it is empty.
const KEEP: usize = 64 * 1024;

pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// How many of `bytes` are written already.
    written: usize,
    limit: usize,
    blocked_since: Option<Instant>,
}

/// The bytes do not fit; none of them was taken.
#[derive(Debug)]
pub(crate) struct OutboxFull;

impl Outbox {
    pub(crate) fn new(limit: usize) -> Outbox {
        Outbox { bytes: Vec::new(), written: 0, limit, blocked_since: None }
    }

    /// Takes all of `bytes`, or none.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), OutboxFull> {
        if bytes.len() > self.room() {
            return Err(OutboxFull);
        }
        if self.written > 0 && self.bytes.len() + bytes.len() > self.bytes.capacity() {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what the client takes without blocking. What it does not take stays.
    pub(crate) fn flush(&mut self, stream: &mut impl Write) -> io::Result<()> {
        while self.written < self.bytes.len() {
            match stream.write(&self.bytes[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.written += n;
                    self.blocked_since = None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked_since.get_or_insert_with(Instant::now);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.written = 0;
        self.bytes.clear();
        if self.bytes.capacity() >= KEEP {
            self.release();
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// How many bytes still fit.
    pub(crate) fn room(&self) -> usize {
        self.limit.saturating_sub(self.len())
    }

    /// More than half full.
    pub(crate) fn is_half_full(&self) -> bool {
        self.len() > self.limit / 2
    }

    /// Since when the client has taken nothing of what waits for it.
    pub(crate) fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since
    }

    /// Gives the memory of an empty outbox back.
    pub(crate) fn release(&mut self) {
        if self.is_empty() {
            self.bytes = Vec::new();
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes at most so many bytes, then blocks.
    struct Trickle {
        room: usize,
        got: Vec<u8>,
    }

    impl Write for Trickle {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let n = bytes.len().min(self.room);
            self.room -= n;
            self.got.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused_whole() {
        let mut outbox = Outbox::new(4);
        outbox.push(b"abc").unwrap();
        assert!(outbox.push(b"de").is_err());
        outbox.push(b"d").unwrap();
        let mut client = Trickle { room: 10, got: Vec::new() };
        outbox.flush(&mut client).unwrap();
        assert_eq!(client.got, b"abcd");
    }

    #[test]
    fn what_a_slow_client_takes_makes_room_and_keeps_the_order() {
        let mut outbox = Outbox::new(8);
        let mut client = Trickle { room: 0, got: Vec::new() };
        let mut sent = Vec::new();
        for round in 0u8..100 {
            let message = [round; 3];
            if outbox.push(&message).is_ok() {
                sent.extend_from_slice(&message);
            }
            client.room = 2;
            outbox.flush(&mut client).unwrap();
            assert!(outbox.len() <= 8);
        }
        client.room = 100;
        outbox.flush(&mut client).unwrap();
        assert_eq!(client.got, sent);
    }

    #[test]
    fn it_knows_since_when_the_client_takes_nothing() {
        let mut outbox = Outbox::new(8);
        outbox.push(b"abcd").unwrap();
        let mut client = Trickle { room: 0, got: Vec::new() };
        outbox.flush(&mut client).unwrap();
        let since = outbox.blocked_since().unwrap();
        outbox.flush(&mut client).unwrap();
        assert_eq!(outbox.blocked_since(), Some(since));
        client.room = 4;
        outbox.flush(&mut client).unwrap();
        assert_eq!(outbox.blocked_since(), None);
    }
}
