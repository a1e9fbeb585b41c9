use std::io::Write as _;
use std::sync::Arc;

use super::*;
use proptest::prelude::*;

/// Takes at most so many bytes, then blocks.
#[derive(Default)]
struct Trickle {
    room: usize,
    got: Vec<u8>,
    /// What was given to one write.
    writes: usize,
    /// Keeps what it was given, as TLS does, until it is told otherwise.
    keeps: bool,
    /// How much of that has gone out.
    moved: u64,
}

impl Write for Trickle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = bytes.len().min(self.room);
        self.room -= n;
        self.writes += 1;
        self.got.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write(&slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.keeps { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }
}

impl Sink for Trickle {
    fn send_file(&mut self, file: &File, offset: u64, len: usize) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; len.min(1000)];
        let n = file.read_at(&mut bytes, offset)?;
        if n == 0 { Ok(0) } else { self.write(&bytes[..n]) }
    }

    fn moved(&self) -> u64 {
        self.moved
    }
}

fn outbox(limit: usize) -> Outbox {
    Outbox::new(Bounds { limit, high: limit / 2, low: limit / 4 })
}

fn shared(bytes: &[u8]) -> Piece {
    Piece::shared(Arc::new(bytes.to_vec()))
}

/// A file with these bytes, which is gone when it is closed.
fn part_of(file: File, offset: u64, len: u64) -> FilePart {
    FilePart::new(file, offset, len, Arc::new(FileBudget::new(1)).permit(0).unwrap())
}

fn file_of(bytes: &[u8]) -> File {
    let name = format!("backroom-outbox-{}-{:?}", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, bytes).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

#[test]
fn what_is_written_to_the_end_is_so_however_much_it_was() {
    let mut outbox = outbox(MAX_FLUSH);
    outbox.push(&vec![b'x'; MAX_FLUSH]).unwrap();
    assert!(outbox.is_congested());
    let mut sink = Trickle { room: usize::MAX, keeps: true, ..Trickle::default() };
    assert_eq!(outbox.flush(&mut sink).unwrap(), MAX_FLUSH);
    assert!(!outbox.is_congested());
    assert!(!outbox.is_empty(), "the sink was not asked for what it keeps");
}

#[test]
fn a_message_over_the_limit_is_refused_whole() {
    let mut outbox = outbox(4);
    outbox.push(b"abc").unwrap();
    assert!(outbox.push(b"de").is_err());
    assert!(outbox.push_piece(shared(b"de")).is_err());
    outbox.push(b"d").unwrap();
    let mut client = Trickle { room: 10, ..Trickle::default() };
    assert_eq!(outbox.flush(&mut client).unwrap(), 4);
    assert_eq!(client.got, b"abcd");
}

#[test]
fn what_a_slow_client_takes_makes_room_and_keeps_the_order() {
    let mut outbox = outbox(8);
    let mut client = Trickle::default();
    let mut sent = Vec::new();
    for round in 0u8..100 {
        let message = [round; 3];
        let taken = if round % 3 == 0 { outbox.push_piece(shared(&message)) } else { outbox.push(&message) };
        if taken.is_ok() {
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
    let mut outbox = outbox(8);
    outbox.push(b"abcd").unwrap();
    let mut client = Trickle::default();
    outbox.flush(&mut client).unwrap();
    let since = outbox.blocked_since().unwrap();
    outbox.flush(&mut client).unwrap();
    assert_eq!(outbox.blocked_since(), Some(since));
    client.room = 4;
    outbox.flush(&mut client).unwrap();
    assert_eq!(outbox.blocked_since(), None);
}

#[test]
fn what_the_sink_keeps_is_waited_for_too() {
    let mut outbox = outbox(8);
    outbox.push(b"abcd").unwrap();
    let mut client = Trickle { room: 10, keeps: true, ..Trickle::default() };
    outbox.flush(&mut client).unwrap();
    let since = outbox.blocked_since();
    assert!(!outbox.is_empty() && since.is_some());
    outbox.flush(&mut client).unwrap();
    assert_eq!(outbox.blocked_since(), since);
    // The client takes some of it, so it does not take nothing.
    client.moved += 1;
    outbox.flush(&mut client).unwrap();
    assert!(outbox.blocked_since() > since);
    client.keeps = false;
    outbox.flush(&mut client).unwrap();
    assert!(outbox.is_empty() && outbox.blocked_since().is_none());
}

#[test]
fn it_is_congested_from_the_high_watermark_down_to_the_low_one() {
    let mut outbox = outbox(8);
    outbox.push(b"abcd").unwrap();
    assert!(!outbox.is_congested());
    outbox.push(b"e").unwrap();
    assert!(outbox.is_congested());
    let mut client = Trickle { room: 2, ..Trickle::default() };
    outbox.flush(&mut client).unwrap();
    assert!(outbox.is_congested(), "3 bytes wait, and the low watermark is 2");
    client.room = 1;
    outbox.flush(&mut client).unwrap();
    assert!(!outbox.is_congested());
}

#[test]
fn many_pieces_go_out_in_one_write() {
    let mut outbox = outbox(1000);
    for _ in 0..5 {
        outbox.push(b"own ").unwrap();
        outbox.push_piece(shared(b"shared ")).unwrap();
    }
    outbox.push(b"end").unwrap();
    let mut client = Trickle { room: 1000, ..Trickle::default() };
    outbox.flush(&mut client).unwrap();
    assert_eq!((client.writes, client.got), (1, [b"own shared ".repeat(5), b"end".to_vec()].concat()));
}

#[test]
fn a_file_takes_its_turn_no_memory_and_not_more_than_it_was_given() {
    let text: Vec<u8> = (0..10_000u32).flat_map(u32::to_be_bytes).collect();
    let mut outbox = outbox(100);
    outbox.push(b"before").unwrap();
    outbox.push_piece(Piece::File(part_of(file_of(&text), 100, 30_000))).unwrap();
    outbox.push(b"after").unwrap();
    assert_eq!(outbox.len(), 11);
    let mut client = Trickle::default();
    while !outbox.is_empty() {
        client.room = 777;
        outbox.flush(&mut client).unwrap();
    }
    assert_eq!(client.got, [b"before", &text[100..30_100], b"after"].concat());
}

#[test]
fn a_file_that_has_become_shorter_is_an_error() {
    let mut outbox = outbox(100);
    outbox.push_piece(Piece::File(part_of(file_of(b"short"), 0, 100))).unwrap();
    let mut client = Trickle { room: 1000, ..Trickle::default() };
    assert_eq!(outbox.flush(&mut client).unwrap(), 5, "what was there is known to have gone out");
    assert_eq!(outbox.flush(&mut client).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn only_so_many_files_may_wait() {
    let mut outbox = outbox(100);
    let file = file_of(b"x");
    let part = || Piece::File(part_of(file.try_clone().unwrap(), 0, 1));
    for _ in 0..MAX_FILES {
        outbox.push_piece(part()).unwrap();
    }
    assert!(outbox.push_piece(part()).is_err());
}

proptest! {
    #[test]
    fn whatever_is_sent_however_it_is_taken_arrives_in_order(
        messages in proptest::collection::vec((any::<u8>(), 0usize..40, 0usize..3), 0..60),
        room in 1usize..30,
    ) {
        let mut outbox = outbox(200);
        let (mut client, mut sent) = (Trickle::default(), Vec::new());
        for (byte, len, kind) in messages {
            let message = vec![byte; len];
            let taken = match kind {
                0 => outbox.push(&message),
                1 => outbox.push_piece(shared(&message)),
                _ => outbox.push_piece(Piece::Own(message.clone(), 0..len)),
            };
            if taken.is_ok() {
                sent.extend_from_slice(&message);
            }
            client.room = room;
            outbox.flush(&mut client).unwrap();
            prop_assert_eq!(client.got.len() + outbox.len(), sent.len());
        }
        client.room = usize::MAX;
        outbox.flush(&mut client).unwrap();
        prop_assert_eq!(client.got, sent);
        prop_assert!(outbox.is_empty() && !outbox.is_congested());
    }
}
