//! examples/task_server.rs as a stranger would use it: started, talked to, stopped by a signal.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use common::Client;
use rustix::process::{Pid, Signal, kill_process};

struct Example {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Example {
    /// `cargo test` builds the examples beside the tests.
    fn start(args: &[&str]) -> Example {
        let mut program: PathBuf = std::env::current_exe().unwrap();
        program.pop();
        program.pop();
        program.push("examples/task_server");
        let mut child = Command::new(program)
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example, which `cargo test` builds unless it is told which test to run");
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Example { child, stdout }
    }

    fn client(&mut self) -> Client {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let addr = line.trim().strip_prefix("listening on ").expect("where it listens");
        Client::connect(addr.parse().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn end(mut self) -> (String, ExitStatus) {
        let mut output = String::new();
        self.stdout.read_to_string(&mut output).unwrap();
        (output, self.child.wait().unwrap())
    }
}

#[test]
fn the_demo_plays_through_and_exits_well() {
    let (output, status) = Example::start(&["--demo"]).end();
    assert!(status.success());
    for part in ["Dispatched async task: id=", "New async task [id=", "finished: second mail -> OK"] {
        assert!(output.contains(part), "{part:?} is missing in:\n{output}");
    }
    assert_eq!(output.lines().filter(|line| line.starts_with("client gets: ") && line.ends_with(" -> OK")).count(), 3);
    assert_eq!(output.lines().last(), Some("shutdown: accepted=3 done=3 failed=0 abandoned=0 orphaned=0"));
}

#[test]
fn it_answers_lines_pings_failures_and_panics_and_drains_at_sigterm() {
    let mut example = Example::start(&["--listen", "127.0.0.1:0", "--task-workers", "2"]);
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
    let mut example = Example::start(&["--listen", "127.0.0.1:0", "--task-ms", "100", "--quiet"]);
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
fn what_it_cannot_finish_in_time_it_says_and_exits_with_an_error() {
    let args = ["--listen", "127.0.0.1:0", "--task-ms", "60000", "--drain-seconds", "0", "--quiet"];
    let mut example = Example::start(&args);
    let mut client = example.client();
    client.send("a\nping\n");
    assert_eq!(client.line(), "pong");
    example.signal(Signal::TERM);
    assert_eq!(client.rest(), "a -> FAILED: the server shut down first\n");
    let (output, status) = example.end();
    assert_eq!(status.code(), Some(1));
    assert_eq!(output, "shutdown: accepted=1 done=0 failed=0 abandoned=1 orphaned=0\n");
}
