//! The chat, as people use it: by programs that know nothing of it.

mod common;

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::example::Example;
use common::house::slow_client;
use common::{Client, PATIENCE, Program, eventually, programs, raise_file_limit};
use rustix::event::{Timespec, epoll};
use rustix::process::Signal;

struct Chat {
    example: Example,
    addr: SocketAddr,
}

impl Chat {
    fn open(args: &[&str]) -> Chat {
        let mut example = Example::start("chat", &[["--listen", "127.0.0.1:0"].as_slice(), args].concat());
        let addr = example.address();
        Chat { example, addr }
    }

    /// One who is in the lobby, and has read what those are shown who come.
    fn guest(&self, name: &str) -> Client {
        let mut guest = Client::connect(self.addr);
        guest.send(format!("/nick {name}\n"));
        guest.reads(&format!("is now {name}"));
        guest
    }
}

trait Reads {
    /// Reads until a line ends so, and gives all up to there.
    fn reads(&mut self, end: &str) -> Vec<String>;
}

impl Reads for Client {
    fn reads(&mut self, end: &str) -> Vec<String> {
        let mut lines = vec![self.line()];
        while !lines.last().is_some_and(|line| line.ends_with(end)) {
            lines.push(self.line());
        }
        lines
    }
}

#[test]
fn what_one_says_all_in_the_room_read_and_nobody_else() {
    let chat = Chat::open(&[]);
    let [mut ann, mut bob, mut eve] = ["ann", "bob", "eve"].map(|name| chat.guest(name));
    ann.reads("is now eve");
    bob.reads("is now eve");
    eve.send("/join Kitchen\n");
    assert_eq!(eve.reads("eve enters"), ["* You are in kitchen, alone.", "* eve enters"]);
    assert_eq!((ann.line(), bob.line()), ("* eve leaves".into(), "* eve leaves".into()));

    assert_eq!(ann.ask("does anybody listen?"), "ann: does anybody listen?");
    assert_eq!(bob.line(), "ann: does anybody listen?");
    assert_eq!(eve.ask("alone at last"), "eve: alone at last");
    assert_eq!(ann.ask("/who"), "* in lobby: ann, bob");
    assert_eq!(ann.ask("/rooms"), "* lobby: 2");
    assert_eq!(ann.line(), "* kitchen: 1");
    assert_eq!(bob.ask("/quit"), "* Goodbye.");
    assert_eq!(bob.rest(), "");
    assert_eq!(ann.line(), "* bob leaves");
}

#[test]
fn who_enters_is_shown_what_was_said_last() {
    let chat = Chat::open(&["--history", "2"]);
    let mut ann = chat.guest("ann");
    for line in ["one", "two", "three"] {
        assert_eq!(ann.ask(line), format!("ann: {line}"));
    }
    let mut late = Client::connect(chat.addr);
    let greeting = late.reads("enters");
    assert!(greeting[0].starts_with("* Welcome, guest-"), "{greeting:?}");
    assert_eq!(greeting[1..5], ["* You are in lobby with ann.", "* Said before you came:", "ann: two", "ann: three"]);
}

#[test]
fn who_enters_a_room_where_much_was_said_is_shown_the_end_of_it() {
    let chat = Chat::open(&["--history", "1000", "--max-outbox", "60000"]);
    let mut ann = chat.guest("ann");
    for number in 0..50 {
        let long = format!("{number} {}", "x".repeat(2000));
        assert_eq!(ann.ask(&long), format!("ann: {long}"));
    }
    let mut late = Client::connect(chat.addr);
    let greeting = late.reads("enters");
    let said: Vec<&String> = greeting.iter().filter(|line| line.starts_with("ann: ")).collect();
    assert!((10..20).contains(&said.len()) && said.last().unwrap().starts_with("ann: 49 "), "{} lines", said.len());
}

#[test]
fn who_leaves_is_sent_all_that_was_said_before_though_others_speak_on() {
    let chat = Chat::open(&["--history", "0"]);
    let mut ann = chat.guest("ann");
    let mut slow = slow_client(chat.addr);
    slow.send("/nick slow\n");
    ann.reads("is now slow");
    let said = |number: usize| format!("{number} {}", "x".repeat(2000));
    (0..50).for_each(|number| assert_eq!(ann.ask(&said(number)), format!("ann: {}", said(number))));
    slow.send("/quit\n");
    // What is said meanwhile finds it closing, which is no reason to cut it off.
    while !ann.ask("anybody?").ends_with("leaves") {}
    let rest = slow.rest();
    let (before, after) = rest.split_once("* Goodbye.\n").expect("a goodbye");
    (0..50).for_each(|number| assert!(before.contains(&said(number)), "line {number} is missing"));
    // Somebody may speak between the goodbye and the closing.
    assert!(after.lines().all(|line| line == "ann: anybody?"), "{after:?}");
}

#[test]
fn who_goes_to_another_room_reads_nothing_more_of_the_one_before() {
    const TIMES: usize = 100;
    let chat = Chat::open(&["--history", "0"]);
    let mut ann = chat.guest("ann");
    let mut eve = chat.guest("eve");
    let (is_done, start) = (AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        scope.spawn(|| {
            // Until the end of the test, however it ends.
            while !is_done.load(Ordering::Relaxed) && start.elapsed() < PATIENCE {
                ann.send("still here\n".repeat(20));
                (0..20).for_each(|_| drop(ann.reads("still here")));
            }
        });
        for _ in 0..TIMES {
            // Typed at once, and said in the kitchen.
            eve.send("/join kitchen\nalone\n/join lobby\n");
            let until_there = eve.reads("in kitchen, alone.");
            let there = eve.reads("eve: alone");
            assert_eq!(there, ["* eve enters", "eve: alone"], "{} lines before", until_there.len());
            eve.reads("eve enters");
        }
        is_done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_name_is_one_persons_until_they_leave_or_change_it() {
    let chat = Chat::open(&[]);
    let mut ann = chat.guest("Ann");
    let mut eve = Client::connect(chat.addr);
    eve.reads("enters");
    assert_eq!(eve.ask("/nick aNN"), "* Somebody is called aNN already.");
    for unfit in ["", "a b", "guest-1", "a\tb", "a/b", &"x".repeat(25)] {
        let told = eve.ask(&format!("/nick {unfit}"));
        assert!(told.starts_with("* A name has 1 to 24 letters"), "{unfit:?}: {told}");
    }
    ann.reads("enters");
    assert_eq!(ann.ask("/nick ANN"), "* Ann is now ANN");
    assert_eq!(ann.ask("/nick bea"), "* ANN is now bea");
    eve.reads("is now bea");
    eve.send("/nick ann\n");
    assert!(eve.line().ends_with(" is now ann"));
    ann.send("/quit\n");
    eve.reads("* bea leaves");
    assert_eq!(eve.ask("/nick Bea"), "* ann is now Bea");
}

#[test]
fn nothing_that_one_says_does_anything_to_the_terminals_of_others() {
    let chat = Chat::open(&[]);
    let mut ann = chat.guest("ann");
    let mut eve = chat.guest("eve");
    ann.reads("is now eve");
    eve.send(b"\x1b[2J\x07clear\x1b]0;title\x07\r\n");
    assert_eq!(ann.line(), "eve: [2Jclear]0;title");
    eve.send(b"\xff\xfe \xc2\x9b31m\n");
    assert_eq!(ann.line(), "eve: \u{fffd}\u{fffd} 31m");
    eve.send("left\u{202e}right\u{2028}below\n");
    assert_eq!(ann.line(), "eve: leftrightbelow");
    eve.reads("below");
    eve.send("\r\n   \n/nonsense\n");
    assert_eq!(eve.reads("lists them.").last().unwrap(), "* That is no command; /help lists them.");
    assert!(eve.ask("/help").starts_with("* /join ROOM"));
}

/// However many speak at once: that is what one task worker per room is for.
#[test]
fn all_read_the_same_in_the_same_order_and_nobody_misses_anything_or_reads_it_twice() {
    const SPEAKERS: usize = 6;
    const LINES: usize = 150;
    let chat = Chat::open(&["--history", "100000"]);
    let mut witness = chat.guest("witness");
    let is_said = |line: &String| line.starts_with("s-");
    thread::scope(|scope| {
        let speak = |speaker: usize| {
            let mut client = chat.guest(&format!("s-{speaker}"));
            // Pipelined, and read while it is sent, lest it be dropped.
            let mut writer = client.socket.get_ref().try_clone().unwrap();
            let lines: String = (0..LINES).map(|line| format!("{line}\n")).collect();
            scope.spawn(move || writer.write_all(lines.as_bytes()).unwrap());
            scope.spawn(move || {
                client.reads(&format!("s-{speaker}: {}", LINES - 1));
                client
            })
        };
        let speakers: Vec<_> = (0..SPEAKERS).map(speak).collect();
        let mut all = Vec::new();
        let mut came_late = Vec::new();
        while all.len() < SPEAKERS * LINES {
            let line = witness.line();
            if is_said(&line) {
                all.push(line);
                if all.len() % (SPEAKERS * LINES / 10) == 0 {
                    came_late.push(Client::connect(chat.addr));
                }
            }
        }
        for speaker in 0..SPEAKERS {
            let of_one = all.iter().filter_map(|line| line.strip_prefix(&format!("s-{speaker}: ")));
            assert!(of_one.eq((0..LINES).map(|line| line.to_string())), "what one says stays in order");
        }
        for mut late in came_late {
            let read: Vec<String> = late.reads(all.last().unwrap()).into_iter().filter(is_said).collect();
            assert_eq!(read, all);
        }
        speakers.into_iter().for_each(|speaker| drop(speaker.join().unwrap()));
    });
}

#[test]
fn who_takes_nothing_is_dropped_and_the_others_read_on() {
    let chat = Chat::open(&["--max-outbox", "60000"]);
    let mut ann = chat.guest("ann");
    let mut bob = chat.guest("bob");
    ann.reads("is now bob");
    let mut deaf = slow_client(chat.addr);
    ann.reads("enters");
    bob.reads("enters");
    let long = "x".repeat(4000);
    let mut said = 0;
    loop {
        ann.send(format!("{long}\n"));
        said += 1;
        let line = ann.line();
        bob.line();
        if line != format!("ann: {long}") {
            assert!(line.starts_with("* guest-") && line.ends_with(" leaves"), "{line}");
            break;
        }
        assert!(said < 10_000, "it is never dropped");
    }
    let (_, is_reset) = deaf.until_closed();
    assert!(is_reset);
    ann.reads(&long);
    assert_eq!(ann.ask("/who"), "* in lobby: ann, bob");
}

#[test]
fn all_are_told_when_it_closes() {
    let chat = Chat::open(&[]);
    let mut guests = ["ann", "bob"].map(|name| chat.guest(name));
    guests[0].reads("is now bob");
    chat.example.signal(Signal::TERM);
    for guest in &mut guests {
        assert_eq!(guest.rest(), "* The server closes. Goodbye.\n");
    }
    drop(guests);
    let (_, status) = chat.example.end();
    assert!(status.success());
}

/// A program on whose standard input one types, and whose output one reads.
struct Terminal {
    _program: Program,
    keyboard: ChildStdin,
    screen: mpsc::Receiver<u8>,
}

impl Terminal {
    fn start(command: &str) -> Terminal {
        let words: Vec<&str> = command.split(' ').collect();
        let mut child: Child = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("spawn");
        let keyboard = child.stdin.take().unwrap();
        let output: ChildStdout = child.stdout.take().unwrap();
        let (sender, screen) = mpsc::channel();
        thread::spawn(move || {
            BufReader::new(output).bytes().map_while(Result::ok).try_for_each(|byte| sender.send(byte))
        });
        Terminal { _program: Program(child), keyboard, screen }
    }

    fn types(&mut self, line: &str) {
        self.keyboard.write_all(format!("{line}\n").as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    fn shows(&mut self, text: &str) {
        let mut shown = Vec::new();
        let start = Instant::now();
        while !String::from_utf8_lossy(&shown).contains(text) {
            let left = PATIENCE.saturating_sub(start.elapsed());
            match self.screen.recv_timeout(left) {
                Ok(byte) => shown.push(byte),
                Err(_) => panic!("{text:?} is not in {:?}", String::from_utf8_lossy(&shown)),
            }
        }
    }
}

/// Each types, and all others read it.
fn converse(terminals: &mut [Terminal]) {
    for number in 0..terminals.len() {
        terminals[number].types(&format!("/nick person-{number}"));
        terminals.iter_mut().for_each(|terminal| terminal.shows(&format!("is now person-{number}\n")));
    }
    for number in 0..terminals.len() {
        terminals[number].types("a word from me");
        terminals.iter_mut().for_each(|terminal| terminal.shows(&format!("person-{number}: a word from me\n")));
    }
}

#[test]
fn nc_and_socat_talk_to_one_another() {
    if !programs(&["nc", "socat"]) {
        return;
    }
    let chat = Chat::open(&[]);
    let port = chat.addr.port();
    let nc = Terminal::start(&format!("nc 127.0.0.1 {port}"));
    let socat = Terminal::start(&format!("socat STDIO TCP:127.0.0.1:{port}"));
    let mut terminals = [nc, socat];
    terminals.iter_mut().for_each(|terminal| terminal.shows("* Welcome, guest-"));
    converse(&mut terminals);
    terminals[0].types("/quit");
    terminals[0].shows("* Goodbye.\n");
    terminals[1].shows("* person-0 leaves\n");
}

#[cfg(feature = "tls")]
#[test]
fn openssl_talks_to_nc_over_tls() {
    if !programs(&["nc", "openssl"]) {
        return;
    }
    let mut chat = Chat::open(&["--tls-listen", "127.0.0.1:0"]);
    let tls_port = chat.example.address().port();
    let nc = Terminal::start(&format!("nc 127.0.0.1 {}", chat.addr.port()));
    let openssl = Terminal::start(&format!("openssl s_client -quiet -connect 127.0.0.1:{tls_port}"));
    let mut terminals = [nc, openssl];
    terminals.iter_mut().for_each(|terminal| terminal.shows("* Welcome, guest-"));
    converse(&mut terminals);
}

/// Shows how soon, too; `BACKROOM_MEMBERS` says of how many.
#[test]
fn all_of_a_large_room_read_what_one_says_and_its_author_types_on() {
    raise_file_limit();
    let members = std::env::var("BACKROOM_MEMBERS").map_or(300, |members| members.parse().expect("a number"));
    let chat = Chat::open(&["--history", "0"]);
    let mut audience = Audience::of(members, &chat);
    let last = sorted((0..50).map(|number| audience.time(&format!("word-{number}"))));
    let own = sorted((0..50).map(|_| audience.author_waits()));
    println!("{members} members: the last reads it after {last}, its author's next command is answered after {own}");
}

fn sorted(times: impl Iterator<Item = Duration>) -> String {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
    format!("{:.2} ms (5 % {:.2}, 95 % {:.2})", at(50), at(5), at(95))
}

/// Many members, read by one thread.
struct Audience {
    author: Client,
    members: Vec<(TcpStream, Vec<u8>)>,
    epoll: OwnedFd,
}

impl Audience {
    fn of(size: usize, chat: &Chat) -> Audience {
        let mut author = chat.guest("author");
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let enter = |index| {
            let member = TcpStream::connect(chat.addr).unwrap();
            member.set_nonblocking(true).unwrap();
            epoll::add(&epoll, &member, epoll::EventData::new_u64(index), epoll::EventFlags::IN).unwrap();
            (member, Vec::new())
        };
        let members = (1..size as u64).map(|member| enter(member - 1)).collect();
        eventually("all have entered", || {
            author.send("/rooms\n");
            author.reads("")[0] == format!("* lobby: {size}")
        });
        Audience { author, members, epoll }
    }

    /// How long the author, who has just said something, waits for the answer to a command.
    fn author_waits(&mut self) -> Duration {
        let start = Instant::now();
        self.author.send("something to all\n/help\n");
        let before = self.author.reads("leave");
        let time = start.elapsed();
        if !before.iter().any(|line| line.ends_with("something to all")) {
            self.author.reads("something to all");
        }
        time
    }

    /// How long after the author has said this the last has read it.
    fn time(&mut self, word: &str) -> Duration {
        let line = format!("author: {word}\n");
        let mut waiting = self.members.len();
        let mut events = Vec::with_capacity(1024);
        let mut chunk = [0; 16 * 1024];
        let start = Instant::now();
        self.author.send(format!("{word}\n"));
        while waiting > 0 {
            let timeout = Timespec::try_from(PATIENCE).unwrap();
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)).unwrap();
            assert!(!events.is_empty(), "{waiting} have not read it");
            for event in events.drain(..) {
                let (socket, read) = &mut self.members[event.data.u64() as usize];
                let count = socket.read(&mut chunk).expect("it is readable");
                assert!(count > 0, "one was dropped");
                read.extend_from_slice(&chunk[..count]);
                if read.ends_with(line.as_bytes()) {
                    read.clear();
                    waiting -= 1;
                }
            }
        }
        let time = start.elapsed();
        self.author.reads(word);
        time
    }
}
