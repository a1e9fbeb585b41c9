//! Framings over real sockets: the same frames however they come, and an end for those who break the protocol.

mod common;

use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use backroom::{ConnectionId, Decoder, Frame, Framing, LengthPrefix, LengthType, Limits, Listener, Malformed, Server};
use common::{Client, Events, Gate, PATIENCE, Running, events, eventually, programs, resident_bytes, run, succeeds};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// `5:hello,`, as in the documentation of [`Decoder`].
struct Netstring;

impl Decoder for Netstring {
    fn decode(&mut self, input: &[u8]) -> Result<Option<Frame>, Malformed> {
        let Some(digits) = input.iter().take(8).position(|byte| *byte == b':') else {
            return if input.len() < 8 { Ok(None) } else { Err(Malformed::new("a length without end")) };
        };
        let length: usize = std::str::from_utf8(&input[..digits])
            .ok()
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| Malformed::new("a length that is no number").reply("0:,"))?;
        let data = digits + 1..digits + 1 + length;
        match input.get(data.end) {
            None => Ok(None),
            Some(b',') => Ok(Some(Frame::new(data.clone(), data.end + 1))),
            Some(_) => Err(Malformed::new("no comma where one belongs")),
        }
    }
}

/// Lines, with how many bytes it has looked at already: a state that belongs to one connection.
#[derive(Default)]
struct Lines {
    searched: usize,
}

impl Decoder for Lines {
    fn decode(&mut self, input: &[u8]) -> Result<Option<Frame>, Malformed> {
        let end = input[self.searched..].iter().position(|byte| *byte == b'\n').map(|at| self.searched + at);
        self.searched = if end.is_some() { 0 } else { input.len() };
        match end {
            Some(end) if input[..end] == *b"panic" => panic!("at a line"),
            end => Ok(end.map(|end| Frame::new(0..end, end + 1))),
        }
    }
}

/// A server that sends each frame back, its length in four bytes before it; a listener for each framing.
struct Echo {
    running: Running,
    opened: Events<ConnectionId>,
    /// The reasons, as text for the debugger and as text for people.
    closed: Events<(String, String)>,
}

fn echo(framings: impl IntoIterator<Item = Framing>, limits: Limits) -> Echo {
    let ((tell_opened, opened), (tell_closed, closed)) = (events(), events());
    let mut builder = Server::builder::<(), ()>().limits(limits);
    for framing in framings {
        builder = builder.listen(Listener::tcp("127.0.0.1:0").framing(framing));
    }
    let server = builder
        .on_connect(move |conn| Ok(tell_opened.send(conn.id())?))
        .on_receive(|conn, frame| {
            conn.send(u32::try_from(frame.len())?.to_be_bytes())?;
            Ok(conn.send(frame)?)
        })
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, reason| Ok(tell_closed.send((format!("{reason:?}"), reason.to_string()))?))
        .build()
        .unwrap();
    Echo { running: run(server), opened, closed }
}

impl Echo {
    fn addr(&self, listener: usize) -> SocketAddr {
        self.running.handle.local_addrs()[listener].inet().unwrap()
    }

    fn client(&self, listener: usize) -> (Client, ConnectionId) {
        let client = Client::connect(self.addr(listener));
        client.socket.get_ref().set_nodelay(true).unwrap();
        (client, self.opened.next())
    }

    /// Sends these pieces, each once the one before was read, and returns the frames that come back.
    fn frames_of(&self, listener: usize, pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut client, id) = self.client(listener);
        let mut sent = 0;
        for piece in pieces {
            client.send(piece);
            sent += piece.len() as u64;
            eventually("the piece is read", || {
                self.running.handle.connection(id).is_some_and(|info| info.bytes_received == sent)
            });
        }
        client.end_sending();
        let frames = rest(&mut client);
        assert_eq!(self.closed.next().0, "Client");
        frames
    }
}

fn frame(client: &mut Client) -> Vec<u8> {
    let mut length = [0; 4];
    client.socket.read_exact(&mut length).expect("a frame");
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    client.socket.read_exact(&mut frame).expect("a whole frame");
    frame
}

/// All frames until the server closes.
fn rest(client: &mut Client) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while !client.socket.fill_buf().unwrap().is_empty() {
        frames.push(frame(client));
    }
    frames
}

/// A framing, and what becomes of what a client has to say: on the wire, and in `on_receive`.
struct Protocol {
    framing: Framing,
    wire: Form,
    data: Form,
}

type Form = Box<dyn Fn(&[u8]) -> Vec<u8>>;

impl Protocol {
    fn new(
        framing: Framing,
        wire: impl Fn(&[u8]) -> Vec<u8> + 'static,
        data: impl Fn(&[u8]) -> Vec<u8> + 'static,
    ) -> Protocol {
        Protocol { framing, wire: Box::new(wire), data: Box::new(data) }
    }

    /// Of which `on_receive` is given only what the client had to say.
    fn bare(framing: Framing, wire: impl Fn(&[u8]) -> Vec<u8> + 'static) -> Protocol {
        Protocol::new(framing, wire, <[u8]>::to_vec)
    }

    /// Of which it is given all.
    fn whole(framing: Framing, wire: impl Fn(&[u8]) -> Vec<u8> + Clone + 'static) -> Protocol {
        Protocol::new(framing, wire.clone(), wire)
    }

    fn ended(end: &'static str, framing: Framing) -> Protocol {
        Protocol::bare(framing, move |said| [said, end.as_bytes()].concat())
    }
}

const TYPES: [LengthType; 10] = [
    LengthType::I8,
    LengthType::U8,
    LengthType::I16,
    LengthType::U16,
    LengthType::U16Be,
    LengthType::U16Le,
    LengthType::I32,
    LengthType::U32,
    LengthType::U32Be,
    LengthType::U32Le,
];

fn length(kind: LengthType, length: usize) -> Vec<u8> {
    let length = length as u32;
    match kind {
        LengthType::I8 | LengthType::U8 => vec![length as u8],
        LengthType::I16 | LengthType::U16 => (length as u16).to_ne_bytes().into(),
        LengthType::U16Be => (length as u16).to_be_bytes().into(),
        LengthType::U16Le => (length as u16).to_le_bytes().into(),
        LengthType::I32 | LengthType::U32 => length.to_ne_bytes().into(),
        LengthType::U32Be => length.to_be_bytes().into(),
        LengthType::U32Le => length.to_le_bytes().into(),
    }
}

fn prefixed(prefix: LengthPrefix) -> Framing {
    Framing::length_prefix(prefix)
}

fn protocols() -> Vec<Protocol> {
    let padded = |said: &[u8]| said.iter().copied().chain([b'.'; 5]).take(5).collect();
    let mut protocols = vec![
        Protocol::ended("\n", Framing::lines()),
        Protocol::ended("\r\n", Framing::delimiter("\r\n")),
        Protocol::ended("\0aaaaaab", Framing::delimiter(b"\0aaaaaab")),
        Protocol::ended("\n", Framing::decoder(Lines::default)),
        Protocol::whole(Framing::fixed(5), padded),
        Protocol::whole(Framing::fixed(1), |said| said.first().into_iter().copied().collect()),
        Protocol::bare(Framing::decoder(|| Netstring), |said| {
            [format!("{}:", said.len()).as_bytes(), said, b","].concat()
        }),
    ];
    for kind in TYPES {
        let prefix = LengthPrefix::new(kind);
        let wire = move |said: &[u8]| [&length(kind, said.len()), said].concat();
        // Two bytes before the length and three behind it, none of them counted.
        let inside = move |said: &[u8]| [b"TT", &length(kind, said.len())[..], b"FFF", said].concat();
        let body_offset = 2 + length(kind, 0).len() + 3;
        let counts_itself = move |said: &[u8]| {
            let header = length(kind, 0).len();
            [&length(kind, header + said.len()), said].concat()
        };
        protocols.extend([
            Protocol::bare(prefixed(prefix), wire),
            Protocol::whole(prefixed(prefix.keep_header()), wire),
            Protocol::bare(prefixed(prefix.offset(2).body_offset(body_offset)), inside),
            Protocol::whole(prefixed(prefix.offset(2).body_offset(body_offset).keep_header()), inside),
            // From the first byte on, so that the body is all there is.
            Protocol::whole(prefixed(prefix.body_offset(0)), counts_itself),
        ]);
    }
    protocols
}

#[test]
fn every_framing_gives_the_same_frames_however_they_are_split() {
    let protocols = protocols();
    let echo = echo(protocols.iter().map(|protocol| protocol.framing.clone()), Limits::new().max_frame(1024));
    // Neither an end of any kind nor the beginning of a TLS client.
    let said = proptest::collection::vec(proptest::collection::vec(b' '..=b'z', 0..100), 0..10);
    let case = (0..protocols.len(), said, proptest::collection::vec(any::<prop::sample::Index>(), 0..8));
    let check = |(listener, said, splits): (usize, Vec<Vec<u8>>, Vec<prop::sample::Index>)| {
        let Protocol { framing, wire, data } = &protocols[listener];
        let bytes: Vec<u8> = said.iter().flat_map(|said| wire(said)).collect();
        let mut splits: Vec<usize> = splits.iter().map(|split| split.index(bytes.len() + 1)).collect();
        splits.extend([0, bytes.len()]);
        splits.sort_unstable();
        splits.dedup();
        let pieces: Vec<&[u8]> = splits.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
        // Of a framing whose frames have at least one byte, nothing said is no frame.
        let frames: Vec<Vec<u8>> = said.iter().filter(|said| !wire(said).is_empty()).map(|said| data(said)).collect();
        prop_assert_eq!(echo.frames_of(listener, &pieces), frames, "{:?}", framing);
        Ok(())
    };
    let config = Config { cases: 400, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&case, check).unwrap();
    echo.running.stop();
}

#[test]
fn every_framing_gives_the_same_frames_byte_by_byte() {
    let protocols = protocols();
    let echo = echo(protocols.iter().map(|protocol| protocol.framing.clone()), Limits::new());
    for (listener, Protocol { framing, wire, data }) in protocols.iter().enumerate() {
        let said = [&b"hello"[..], b"a", b"worlds"];
        let bytes: Vec<u8> = said.iter().flat_map(|said| wire(said)).collect();
        let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(echo.frames_of(listener, &pieces), said.map(data), "{framing:?}");
    }
    echo.running.stop();
}

#[test]
fn raw_bytes_come_as_they_are_read_and_in_pieces_no_longer_than_a_frame_may_be() {
    let echo = echo([Framing::raw()], Limits::new().max_frame(10));
    let pieces: [&[u8]; 4] = [b"a", b"\n\0\xff", b"0123456789", b"0123456789abc"];
    let frames: [&[u8]; 5] = [b"a", b"\n\0\xff", b"0123456789", b"0123456789", b"abc"];
    assert_eq!(echo.frames_of(0, &pieces), frames);
    echo.running.stop();
}

#[test]
fn a_frame_may_be_as_long_as_the_maximum_and_no_longer() {
    const MAX: usize = 100_000;
    let framings = [
        Framing::lines(),
        prefixed(LengthPrefix::new(LengthType::U32Be)),
        prefixed(LengthPrefix::new(LengthType::U32Be).keep_header()),
        Framing::decoder(Lines::default),
    ];
    let echo = echo(framings, Limits::new().max_frame(MAX));
    let line = |len: usize| [vec![b'x'; len], vec![b'\n']].concat();
    let prefixed = |len: usize| [&length(LengthType::U32Be, len)[..], &vec![b'x'; len]].concat();
    // The header counts, and all that a decoder takes.
    for (listener, longest, longer, len) in [
        (0, line(MAX), line(MAX + 1), MAX),
        (1, prefixed(MAX - 4), prefixed(MAX - 3), MAX - 4),
        (2, prefixed(MAX - 4), prefixed(MAX - 3), MAX),
        (3, line(MAX - 1), line(MAX), MAX - 1),
    ] {
        let (mut client, _) = echo.client(listener);
        client.send(longest);
        assert_eq!(frame(&mut client).len(), len);
        client.send(longer);
        assert!(rest(&mut client).is_empty());
        assert_eq!(echo.closed.next().0, format!("FrameTooLong({MAX})"));
    }
    echo.running.stop();
}

#[test]
fn each_connection_has_a_decoder_of_its_own() {
    let echo = echo([Framing::decoder(Lines::default)], Limits::new());
    let [(mut one, first), (mut other, second)] = [echo.client(0), echo.client(0)];
    let received = |id| echo.running.handle.connection(id).unwrap().bytes_received;
    one.send("unfinish");
    eventually("it is read", || received(first) == 8);
    other.send("hel");
    eventually("it is read", || received(second) == 3);
    one.send("ed\n");
    other.send("lo\n");
    assert_eq!(frame(&mut one), b"unfinished");
    assert_eq!(frame(&mut other), b"hello");
    drop((one, other));
    echo.running.stop();
}

#[test]
fn what_is_malformed_is_replied_to_behind_all_answers_before_the_connection_closes() {
    let echo = echo([Framing::decoder(|| Netstring)], Limits::new());
    // What comes behind it, and however much, does not cost the client the reply.
    for behind in ["", "5:hello,", &"x".repeat(300_000)] {
        let (mut client, _) = echo.client(0);
        client.send(format!("5:hello,6:worlds,x:{behind}"));
        assert_eq!([frame(&mut client), frame(&mut client)], [&b"hello"[..], b"worlds"]);
        assert_eq!(client.rest(), "0:,");
        let (reason, text) = echo.closed.next();
        assert!(reason.starts_with("Malformed("), "{reason}");
        assert_eq!(text, "the client broke the protocol: a length that is no number");
    }
    let (mut client, _) = echo.client(0);
    client.send("5:hello!");
    assert_eq!(client.rest(), "");
    assert_eq!(echo.closed.next().1, "the client broke the protocol: no comma where one belongs");
    assert_eq!(echo.running.handle.stats().closed.malformed, 4);
    echo.running.stop();
}

#[test]
fn a_decoder_that_panics_closes_its_own_connection_and_no_other() {
    let made = AtomicUsize::new(0);
    let framing = Framing::decoder(move || match made.fetch_add(1, Ordering::Relaxed) {
        1 => panic!("while it was made"),
        _ => Lines::default(),
    });
    let echo = echo([framing], Limits::new());
    let (mut good, _) = echo.client(0);
    let check = |good: &mut Client| {
        good.send("hello\n");
        assert_eq!(frame(good), b"hello");
    };
    // As where a session cannot be made, no callback runs.
    let mut unmade = Client::connect(echo.addr(0));
    assert_eq!(unmade.rest(), "");
    assert_eq!(echo.running.handle.stats().closed.panicked, 1);
    check(&mut good);

    let (mut panics, _) = echo.client(0);
    panics.send("before\npanic\nbehind\n");
    assert_eq!(rest(&mut panics), [b"before"]);
    assert_eq!(echo.closed.next().0, "Panicked(\"at a line\")");
    assert_eq!(echo.running.handle.stats().closed.panicked, 2);
    check(&mut good);
    drop((good, unmade, panics));
    echo.running.stop();
}

#[test]
fn a_length_that_cannot_be_is_the_end_and_one_of_nothing_is_a_frame() {
    let types = [LengthType::I8, LengthType::I16, LengthType::I32, LengthType::U32Be];
    let itself = prefixed(LengthPrefix::new(LengthType::U16Be).body_offset(0));
    let framings = types.map(|kind| prefixed(LengthPrefix::new(kind))).into_iter().chain([itself]);
    let echo = echo(framings, Limits::new().max_frame(1000));
    for (listener, lie, why) in [
        (0, &b"\x80"[..], "the client broke the protocol: a frame of -128 bytes"),
        (1, b"\xff\xff", "the client broke the protocol: a frame of -1 bytes"),
        (2, b"\xff\xff\xff\xff", "the client broke the protocol: a frame of -1 bytes"),
        (3, b"\xff\xff\xff\xff", "a frame was longer than 1000 bytes"),
        (3, b"\x7f\xff\xff\xff", "a frame was longer than 1000 bytes"),
        (3, b"\0\0\x03\xe5", "a frame was longer than 1000 bytes"),
        (4, b"\0\0", "the client broke the protocol: a frame of 0 bytes is shorter than its header"),
        (4, b"\0\x01", "the client broke the protocol: a frame of 1 bytes is shorter than its header"),
    ] {
        let (mut client, _) = echo.client(listener);
        client.send(lie);
        assert!(rest(&mut client).is_empty());
        assert_eq!(echo.closed.next().1, why, "{lie:?}");
    }
    assert_eq!(echo.frames_of(3, &[b"\0\0\0\0\0\0\0\x01x\0\0\0\0"]), [&b""[..], b"x", b""]);
    echo.running.stop();
}

/// The memory that this process has asked for, used or not.
fn address_space() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    size.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn no_memory_is_taken_for_what_a_header_only_claims() {
    if let Some(child) = in_child!() {
        succeeds(child);
        return;
    }
    const CLIENTS: usize = 200;
    const MAX: usize = 16 * 1024 * 1024;
    let echo = echo([prefixed(LengthPrefix::new(LengthType::U32Be))], Limits::new().max_frame(MAX));
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| echo.client(0)).collect();
    for (client, _) in &mut clients {
        client.send(b"\0\0\0\x05hello");
        assert_eq!(frame(client), b"hello");
    }
    let before = (resident_bytes(), address_space());
    let claim = [&length(LengthType::U32Be, MAX - 4)[..], b"only this"].concat();
    for (client, id) in &mut clients {
        client.send(&claim);
        let received = (9 + claim.len()) as u64;
        eventually("it is read", || echo.running.handle.connection(*id).unwrap().bytes_received == received);
    }
    let resident = resident_bytes().saturating_sub(before.0);
    assert!(resident < CLIENTS * 16 * 1024, "{resident} bytes for {CLIENTS} clients");
    let asked_for = address_space().saturating_sub(before.1);
    assert!(asked_for < CLIENTS * MAX / 10, "{asked_for} bytes for {CLIENTS} clients");

    // One that closes in the middle of a frame has closed; nobody hears of that frame.
    for (mut client, _) in clients {
        client.socket.get_ref().shutdown(Shutdown::Write).unwrap();
        assert!(rest(&mut client).is_empty());
        assert_eq!(echo.closed.next().0, "Client");
    }
    echo.running.stop();
}

#[test]
fn a_client_in_another_language_speaks_in_frames() {
    if !programs(&["python3"]) {
        return;
    }
    const CLIENT: &str = r#"
import socket, struct, sys

frames = [b"", b"hello", bytes(range(256)) * 300, "grüße".encode()]
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as server:
    sent = b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)
    for at in range(0, len(sent), 1000):
        server.sendall(sent[at:at + 1000])
    answers = server.makefile("rb")
    for frame in frames:
        (length,) = struct.unpack(">I", answers.read(4))
        assert answers.read(length) == frame
    # A lie is the end.
    server.sendall(struct.pack(">I", 2**32 - 1))
    assert answers.read() == b""
print("all came back")
"#;
    let echo = echo([prefixed(LengthPrefix::new(LengthType::U32Be))], Limits::new());
    let port = echo.addr(0).port().to_string();
    let mut python = Command::new("python3")
        .args(["-", &port])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(CLIENT.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"all came back\n");
    assert_eq!(echo.closed.next().0, format!("FrameTooLong({})", 256 * 1024));
    echo.running.stop_within(PATIENCE);
}

/// What is received of a client that sends this and closes, and whether something of it was dropped.
fn received(framing: Framing, sent: &[u8], reset: bool) -> (Vec<String>, u64) {
    let (tell, told) = events();
    let (close, closed) = events();
    let server = Server::builder::<(), ()>()
        .framing(framing)
        .limits(Limits::new().max_frame(8))
        .on_receive(move |_, frame| Ok(tell.send(String::from_utf8_lossy(frame).into_owned())?))
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, _| Ok(close.send(())?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send(sent);
    if reset {
        eventually("it is here", || server.handle.stats().traffic.bytes_received == sent.len() as u64);
        client.reset();
    } else {
        drop(client);
    }
    closed.next();
    let unfinished = server.handle.stats().closed.unfinished;
    server.stop();
    (told.all_so_far(), unfinished)
}

#[test]
fn the_last_line_of_a_client_that_ends_and_takes_no_answer_is_received() {
    let (tell, told) = events();
    let gate = Gate::default();
    let held = gate.clone();
    let server = Server::builder::<(), ()>()
        .framing(Framing::lines().unfinished_too())
        .session(move |_| held.pass())
        .on_receive(move |conn, line| {
            let _ = conn.send("taken\n");
            Ok(tell.send(String::from_utf8_lossy(line).into_owned())?)
        })
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    let lines: Vec<String> = (0..500).map(|line| line.to_string()).collect();
    client.send(lines.join("\n"));
    client.socket.get_ref().shutdown(Shutdown::Write).unwrap();
    drop(client);
    gate.open();
    for line in lines {
        assert_eq!(told.next(), line);
    }
    server.stop();
}

#[test]
fn what_a_client_leaves_unfinished_is_dropped_and_counted_or_is_a_frame_where_that_is_wanted() {
    let lines = || Framing::lines().unfinished_too();
    let two = || Framing::delimiter(b"\r\n").unfinished_too();
    let of = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    for (framing, sent, expected, dropped) in [
        (Framing::lines(), "one\ntwo", &["one"][..], 1),
        (Framing::lines(), "one\n", &["one"], 0),
        (lines(), "one\ntwo", &["one", "two"], 0),
        (lines(), "one\n", &["one"], 0),
        (lines(), "", &[], 0),
        (two(), "one\r\ntwo\r", &["one", "two\r"], 0),
        (Framing::fixed(2), "abc", &["ab"], 1),
    ] {
        assert_eq!(received(framing, sent.as_bytes(), false), (of(expected), dropped), "{sent:?}");
    }
    // A reset is no end, and what is too long is none either.
    assert_eq!(received(lines(), b"one\ntwo", true), (of(&["one"]), 1));
    assert_eq!(received(Framing::lines(), b"one\ntwo", true), (of(&["one"]), 1));
    assert_eq!(received(two(), b"12345678\r", false).0, of(&[]));
    let server = Server::builder::<(), ()>()
        .framing(Framing::fixed(2).unfinished_too())
        .on_receive(|_, _| Ok(()))
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0");
    assert!(server.err().unwrap().to_string().starts_with("framing: only what ends with a delimiter"));
}
