//! The examples as a stranger would use them: started, talked to, stopped by a signal.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::example::Example;
use common::{Client, Program, eventually, programs};
use rustix::process::{Signal, kill_process};

#[test]
fn the_demo_plays_through_and_exits_well() {
    let (output, status) = Example::start("task_server", &["--demo"]).end();
    assert!(status.success());
    for part in ["Dispatched async task: id=", "New async task [id=", "finished: second mail -> OK"] {
        assert!(output.contains(part), "{part:?} is missing in:\n{output}");
    }
    assert_eq!(output.lines().filter(|line| line.starts_with("client gets: ") && line.ends_with(" -> OK")).count(), 3);
    assert_eq!(output.lines().last(), Some("shutdown: accepted=3 done=3 failed=0 abandoned=0 orphaned=0"));
}

#[test]
fn it_answers_lines_pings_failures_and_panics_and_drains_at_sigterm() {
    let mut example = Example::start("task_server", &["--listen", "127.0.0.1:0", "--task-workers", "2"]);
    let mut client = example.client();
    assert_eq!(client.ask("ping"), "pong");
    assert_eq!(client.ask("a mail\r"), "a mail -> OK");
    assert_eq!(client.ask("panic"), "panic -> FAILED: the task panicked: a task that panics");
    assert_eq!(client.ask("fail"), "fail -> FAILED: a task that fails");
    assert_eq!(client.ask("\x1b[31m"), "\x1b[31m -> OK");
    example.signal(Signal::TERM);
    let (output, status) = example.end();
    assert!(status.success());
    assert!(output.contains("\\u{1b}[31m -> OK"), "what goes to the terminal is escaped");
    assert_eq!(output.lines().last(), Some("shutdown: accepted=4 done=2 failed=2 abandoned=0 orphaned=0"));
}

#[test]
fn at_sigint_it_finishes_what_it_accepted() {
    let mut example = Example::start("task_server", &["--listen", "127.0.0.1:0", "--task-ms", "100", "--quiet"]);
    let mut client = example.client();
    // The answered ping shows that the lines before it are accepted.
    client.send("a\nb\nc\nping\n");
    assert_eq!(client.line(), "pong");
    example.signal(Signal::INT);
    let rest = client.rest();
    let mut answers: Vec<&str> = rest.lines().collect();
    answers.sort_unstable();
    assert_eq!(answers, ["a -> OK", "b -> OK", "c -> OK"]);
    let (output, status) = example.end();
    assert!(status.success());
    assert_eq!(output, "shutdown: accepted=3 done=3 failed=0 abandoned=0 orphaned=0\n");
}

#[test]
fn at_a_sigterm_at_any_moment_it_loses_nothing_that_it_accepted() {
    // With those by the handle of tests/shutdown.rs, five hundred.
    const TIMES: u64 = 300;
    for number in 0..TIMES {
        let mut example = Example::start("task_server", &["--listen", "127.0.0.1:0", "--task-ms", "1", "--quiet"]);
        let mut client = example.client();
        assert_eq!(client.ask("ping"), "pong");
        let mut writer = client.socket.get_ref().try_clone().unwrap();
        let writes = thread::spawn(move || while writer.write_all(b"a\n").is_ok() {});
        // The moment at which the signal comes: at random within the load.
        let moment = RandomState::new().hash_one(number) % 20_000;
        thread::sleep(Duration::from_micros(moment));
        example.signal(Signal::TERM);
        let rest = client.rest();
        let answers = rest.lines().filter(|line| *line == "a -> OK").count();
        client.socket.get_ref().shutdown(Shutdown::Both).unwrap();
        writes.join().unwrap();
        let (output, status) = example.end();
        assert!(status.success());
        assert_eq!(output, format!("shutdown: accepted={answers} done={answers} failed=0 abandoned=0 orphaned=0\n"));
    }
}

#[test]
fn what_it_cannot_finish_in_time_it_says_and_exits_with_an_error() {
    let args = ["--listen", "127.0.0.1:0", "--task-ms", "60000", "--drain-seconds", "0", "--quiet"];
    let mut example = Example::start("task_server", &args);
    let mut client = example.client();
    client.send("a\nping\n");
    assert_eq!(client.line(), "pong");
    example.signal(Signal::TERM);
    assert_eq!(client.rest(), "a -> FAILED: the server shut down first\n");
    let (output, status) = example.end();
    assert_eq!(status.code(), Some(1));
    assert_eq!(output, "shutdown: accepted=1 done=0 failed=0 abandoned=1 orphaned=0\n");
}

/// What a program writes to there goes nowhere: its reader is gone, or its disk is full, or nobody reads it. With the
/// reader.
fn unwritable() -> [(&'static str, OwnedFd, Option<UnixStream>); 3] {
    let (gone, _) = UnixStream::pair().unwrap();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let (mut clogged, reader) = UnixStream::pair().unwrap();
    clogged.set_nonblocking(true).unwrap();
    while clogged.write(&[b'.'; 1000]).is_ok() {}
    assert_eq!(clogged.write(b".").unwrap_err().kind(), ErrorKind::WouldBlock);
    clogged.set_nonblocking(false).unwrap();
    [("gone", gone.into(), None), ("full", full.into(), None), ("clogged", clogged.into(), Some(reader))]
}

#[test]
fn a_server_whose_output_goes_nowhere_serves_on_and_ends_when_it_is_told_to() {
    for (name, question, answer) in [
        ("task_server", "a mail\n", "a mail -> OK"),
        ("task_server", "panic\n", "panic -> FAILED: the task panicked: a task that panics"),
        ("chat", "/nonsense\n", "* That is no command; /help lists them."),
        ("web_mail", "GET /nowhere HTTP/1.0\r\n\r\n", "404 Not Found"),
    ] {
        for (how, output, _reader) in unwritable() {
            // It cannot say where it listens.
            let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let mut command = Command::new(Example::program(name));
            // All that there is to say is tried to be.
            command.args(["--listen", &addr.to_string()]).env("RUST_LOG", "trace");
            command.stdout(output.try_clone().unwrap()).stderr(output);
            let mut program = Program::start(&mut command);
            eventually("it listens", || TcpStream::connect(addr).is_ok());
            let mut client = Client::connect(addr);
            client.send(question);
            while client.line() != answer {}
            assert!(program.0.try_wait().unwrap().is_none(), "{name}, {how}");
            kill_process(rustix::process::Pid::from_child(&program.0), Signal::TERM).unwrap();
            eventually(&format!("{name} ends, {how}"), || program.0.try_wait().unwrap().is_some());
            assert!(program.0.wait().unwrap().success(), "{name}, {how}");
        }
    }
}

#[test]
fn what_is_printed_faster_than_it_is_read_is_left_out_and_counted() {
    const LINES: usize = 10_000;
    let mut example = Example::start("task_server", &["--listen", "127.0.0.1:0"]);
    let mut client = example.client();
    for _ in 0..LINES / 100 {
        client.send("a\n".repeat(100));
        (0..100).for_each(|_| assert_eq!(client.line(), "a -> OK"));
    }
    // Somebody begins to read.
    let mut printed = Vec::new();
    for line in example.stdout.by_ref().lines().map(Result::unwrap) {
        let is_gap = line.ends_with("lines are left out here)");
        printed.push(line);
        if is_gap {
            break;
        }
        // What is said next tells of the gap.
        assert_eq!(client.ask("ping"), "pong");
        client.send("b\n");
        assert_eq!(client.line(), "b -> OK");
    }
    example.signal(Signal::TERM);
    let (rest, status) = example.end();
    assert!(status.success());
    let all: Vec<&str> = printed.iter().map(String::as_str).chain(rest.lines()).collect();
    let left_out = |line: &&str| line.strip_prefix('(')?.split_once(" lines are left out")?.0.parse::<usize>().ok();
    let (gaps, counted) = all.iter().filter_map(left_out).fold((0, 0), |(gaps, sum), count| (gaps + 1, sum + count));
    assert!(gaps > 0 && all.last().unwrap().starts_with("shutdown: accepted="), "{:?}", all.last());
    let accepted: usize = all.last().unwrap().split(['=', ' ']).nth(2).unwrap().parse().unwrap();
    assert_eq!(all.len() - 1 - gaps + counted, 3 * accepted, "each line is there or counted");
}

#[test]
fn a_second_sigint_ends_a_program_that_waits_for_somebody_to_read() {
    let folder = Folder::new("unread");
    for number in 0..100 {
        fs::write(folder.0.join(number.to_string()), "").unwrap();
    }
    let [.., (_, clogged, _reader)] = unwritable();
    let mut command = Command::new(Example::program("embed"));
    command.arg(&folder.0).stdout(clogged.try_clone().unwrap()).stderr(clogged);
    let mut program = Program::start(&mut command);
    let pid = rustix::process::Pid::from_child(&program.0);
    let catches_signals = || {
        let status = fs::read_to_string(format!("/proc/{}/status", program.0.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() & 2 != 0
    };
    eventually("it takes signals", catches_signals);
    eventually("it ends", || {
        let _ = kill_process(pid, Signal::INT);
        program.0.try_wait().unwrap().is_some()
    });
    assert_eq!(program.0.wait().unwrap().code(), Some(130));
}

/// A folder that is gone at the end of the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("backroom-{name}-{}", std::process::id()));
        fs::create_dir_all(path.join("inner")).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_pool_hashes_the_files_of_a_folder() {
    let folder = Folder::new("hashes");
    fs::write(folder.0.join("empty"), "").unwrap();
    fs::write(folder.0.join("inner/abc"), "abc").unwrap();
    fs::write(folder.0.join("large"), vec![0; 1 << 20]).unwrap();
    let (output, status) = Example::start("embed", &[folder.0.to_str().unwrap(), "--threads", "2"]).end();
    assert!(status.success());
    let mut lines: Vec<&str> = output.lines().collect();
    lines.sort_unstable();
    let expected = [
        ("30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58", "large"),
        ("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "inner/abc"),
        ("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "empty"),
    ];
    let expected = expected.map(|(digest, name)| format!("{digest}  {}", folder.0.join(name).display()));
    assert_eq!(lines, expected);
}

#[test]
fn sha256sum_understands_the_names_of_all_files() {
    let folder = Folder::new("names");
    for name in [&b"plain"[..], b"two\nlines", b"back\\slash", b"not \xff UTF-8"] {
        fs::write(folder.0.join("inner").join(OsStr::from_bytes(name)), name).unwrap();
    }
    let mut example = Example::start("embed", &[folder.0.to_str().unwrap()]);
    let mut output = Vec::new();
    example.stdout.read_to_end(&mut output).unwrap();
    assert!(example.end().1.success());
    let Ok(mut check) = Command::new("sha256sum").args(["--check", "--strict", "-"]).stdin(Stdio::piped()).spawn()
    else {
        return eprintln!("SKIPPED: there is no sha256sum here");
    };
    check.stdin.take().unwrap().write_all(&output).unwrap();
    assert!(check.wait().unwrap().success());
    assert_eq!(output.split(|byte| *byte == b'\n').count(), 5);
}

#[test]
fn a_second_sigint_waits_for_no_file() {
    let folder = Folder::new("impatient");
    // Sparse, and more than can be hashed in the life of this test.
    fs::File::create(folder.0.join("endless")).unwrap().set_len(1 << 42).unwrap();
    let args = [folder.0.to_str().unwrap(), "--drain-secs", "86400"];
    let example = Example::start("embed", &args);
    // Once it has opened the file, it takes signals.
    let opened = |example: &Example| {
        let files = fs::read_dir(format!("/proc/{}/fd", example.child.id())).unwrap();
        files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|path| path.ends_with("endless")))
    };
    eventually("it hashes", || opened(&example));
    example.signal(Signal::INT);
    // Two that come at once may count as one.
    let stopped = AtomicBool::new(false);
    let (output, errors, status) = thread::scope(|scope| {
        let pid = example.pid();
        let stopped = &stopped;
        scope.spawn(move || {
            while !stopped.load(Ordering::Relaxed) && kill_process(pid, Signal::INT).is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        let ended = example.end_with_errors();
        stopped.store(true, Ordering::Relaxed);
        ended
    });
    assert_eq!((output.as_str(), status.code()), ("", Some(130)));
    assert!(errors.contains("0 failed, 1 left out"), "{errors}");
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let (output, status) = Example::start("embed", &["/nowhere/at/all"]).end();
    assert_eq!((output.as_str(), status.code()), ("", Some(1)));
}

#[test]
fn at_sigint_the_pool_finishes_the_files_it_has_begun() {
    let folder = Folder::new("interrupted");
    for number in 0..400 {
        // Sparse: they take time to hash, and no room.
        fs::File::create(folder.0.join(number.to_string())).unwrap().set_len(4 << 20).unwrap();
    }
    let mut example = Example::start("embed", &[folder.0.to_str().unwrap(), "--threads", "2"]);
    // What it has buffered comes when it is done, so this waits for the first lines.
    let mut first = String::new();
    example.stdout.read_line(&mut first).unwrap();
    example.signal(Signal::INT);
    let (rest, errors, status) = example.end_with_errors();
    assert_eq!(status.code(), Some(130));
    let lines = 1 + rest.lines().count();
    assert!(lines < 400, "it stopped before the end");
    let summary = errors.lines().next().unwrap();
    assert!(summary.starts_with(&format!("{lines} files, ")), "{errors}");
    assert!(summary.ends_with(&format!("; 0 failed, {} left out", 400 - lines)), "{errors}");
    let digest = first.split_whitespace().next().unwrap();
    assert!(rest.lines().all(|line| line.starts_with(digest)), "every line is whole");
}

#[test]
fn a_kernel_that_has_no_memory_for_a_sleep_now_and_then_closes_no_client() {
    if !programs(&["strace"]) {
        return;
    }
    for fault in ["ppoll:error=ENOMEM:when=3+3", "ppoll:error=EAGAIN:when=2+3", "ppoll:error=EINTR:when=2+2"] {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=ppoll", "-e", &format!("inject={fault}"), "--"]);
        let mut server =
            Example::start_as(command.arg(Example::program("task_server")).args(["--listen", "127.0.0.1:0"]));
        let mut client = server.client();
        for line in 0..50 {
            assert_eq!(client.ask(&format!("line {line}")), format!("line {line} -> OK"), "{fault}");
        }
        drop(client);
    }
}
