//! Clients that break off, and machines that run short. What needs a process of its own runs this binary again.

mod common;

use std::collections::HashSet;
use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backroom::{
    Address, BindError, CloseReason, Framing, Limits, Listener, Server, ServerBuilder, TaskError, TaskOptions,
    TaskPool, stage,
};
use common::house::SHORT;
use common::{Client, Gate, PATIENCE, Running, events, eventually, log_from, run, succeeds};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

type Builder = ServerBuilder<Vec<u8>, Vec<u8>, (), (), stage::State>;

/// Answers each line through a task.
fn echo(configure: impl FnOnce(Builder) -> Builder) -> Running {
    run(bind_echo(configure).unwrap())
}

fn bind_echo(configure: impl FnOnce(Builder) -> Builder) -> Result<Server, BindError> {
    configure(Server::builder().framing(Framing::lines()))
        .on_receive(|conn, line| {
            conn.task(line.to_vec())?;
            Ok(())
        })
        .on_task(|_, mut line| {
            line.push(b'\n');
            Ok(line)
        })
        .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
        .bind("127.0.0.1:0")
}

#[test]
fn a_reset_in_mid_frame_delivers_no_part_of_it_and_tells_on_close_once() {
    let (report, seen) = events();
    let close_report = report.clone();
    let server = Server::builder()
        .framing(Framing::lines())
        .on_receive(move |conn, line| {
            report.send(String::from_utf8_lossy(line).into_owned())?;
            Ok(conn.send("got it\n")?)
        })
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, reason| {
            let reset = matches!(reason, CloseReason::Io(_));
            Ok(close_report.send(format!("closed, reset: {reset}"))?)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    assert_eq!(client.ask("whole"), "got it");
    client.send("half a fra");
    client.reset();
    assert_eq!(seen.next(), "whole");
    assert_eq!(seen.next(), "closed, reset: true");
    server.stop();
    assert_eq!(seen.all_so_far(), Vec::<String>::new());
}

#[test]
fn a_send_that_finds_the_client_gone_is_told_as_such_and_not_as_a_failed_callback() {
    let gone = Gate::default();
    let client_gone = gone.clone();
    let (report, closed) = events();
    let server = Server::builder()
        .on_receive(move |conn, _| {
            client_gone.pass();
            loop {
                conn.send([0; 100 * 1024])?;
            }
        })
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, reason| Ok(report.send(matches!(reason, CloseReason::Io(_)))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("x");
    eventually("it is connected", || server.handle.connections().count() == 1);
    client.reset();
    gone.open();
    assert!(closed.next());
    server.stop();
}

#[test]
fn a_reset_before_the_accept_leaves_the_acceptor_well() {
    let server = Server::builder()
        .on_receive(|conn, data| Ok(conn.send(data)?))
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    // Bound but not running: clients queue in the kernel, and are gone when they are accepted.
    for _ in 0..50 {
        Client::connect(server.local_addr()).reset();
    }
    let mut patient = Client::connect(server.local_addr());
    patient.send("x\n");
    let server = run(server);
    assert_eq!(patient.line(), "x");
    assert_eq!(server.client().ask("y"), "y");
    drop(patient);
    server.stop();
}

#[test]
fn a_late_result_reaches_no_stranger_though_the_descriptor_is_used_again() {
    let (gate, started) = (Gate::default(), Gate::default());
    let (task_gate, task_started) = (gate.clone(), started.clone());
    let (report, closed) = events();
    let server = Server::builder()
        .task_worker_num(2)
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(line.to_vec())?;
            Ok(())
        })
        .on_task(move |_, mut line| {
            if line == b"slow" {
                task_started.open();
                task_gate.pass();
            }
            line.push(b'\n');
            Ok(line)
        })
        .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
        .on_close(move |conn, _| Ok(report.send(conn.id())?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut gone = server.client();
    gone.send("slow\n");
    started.pass();
    gone.reset();
    let gone = closed.next();
    eventually("its descriptors are free", || server.handle.stats().connections == 0);

    let mut stranger = server.client();
    assert_eq!(stranger.ask("mine"), "mine");
    gate.open();
    eventually("the late result is orphaned", || server.handle.stats().tasks.orphaned == 1);
    assert_eq!(stranger.ask("mine too"), "mine too");
    stranger.end_sending();
    assert_eq!(stranger.rest(), "");
    assert_ne!(closed.next(), gone);
    server.stop();
}

#[test]
fn no_connection_id_is_used_twice_even_by_two_servers() {
    let (report, ids) = events();
    let start = || {
        let report = report.clone();
        let server = Server::builder()
            .on_connect(move |conn| Ok(report.send(conn.id())?))
            .on_receive(|conn, data| Ok(conn.send(data)?))
            .on_task(|_, ()| Ok(()))
            .bind("127.0.0.1:0")
            .unwrap();
        run(server)
    };
    let servers = [start(), start()];
    let mut seen = HashSet::new();
    for round in 0..200 {
        assert_eq!(servers[round % 2].client().ask("x"), "x");
        assert!(seen.insert(ids.next()), "used twice");
    }
    for server in servers {
        server.stop();
    }
}

#[test]
fn a_closed_connection_with_tasks_in_flight_holds_no_descriptor() {
    let Some(child) = in_child!() else {
        let gate = Gate::default();
        let task_gate = gate.clone();
        let server = Server::builder()
            .task_worker_num(1)
            .on_receive(|conn, _| {
                conn.task(())?;
                Ok(())
            })
            .on_task(move |_, ()| {
                task_gate.pass();
                Ok(())
            })
            .bind("127.0.0.1:0")
            .unwrap();
        let server = run(server);
        let files = common::open_files();
        for accepted in 1..=50 {
            let mut client = server.client();
            client.send("x");
            eventually("it is accepted", || server.handle.stats().tasks.accepted == accepted);
            client.reset();
        }
        eventually("all are closed", || server.handle.stats().connections == 0);
        // One that the acceptor has ready for the next client; and one each of the workers that wait for their next
        // client, for a second.
        eventually("they hold no descriptor", || common::open_files() <= files + 1);
        gate.open();
        assert_eq!(server.stop().tasks.orphaned, 50);
        return;
    };
    succeeds(child);
}

#[test]
fn short_of_descriptors_it_waits_without_spinning_and_recovers_within_a_second() {
    const FILES: u64 = 64;
    let Some(mut child) = in_child!() else {
        let hard = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(FILES), maximum: hard }).unwrap();
        // Two acceptors, which must not wake each other either.
        let server = echo(|builder| builder.max_connections(1000).listen(Listener::tcp("127.0.0.1:0")));
        let addresses: Vec<String> = server.handle.local_addrs().iter().map(Address::to_string).collect();
        eprintln!("{}", addresses.join(" "));
        // The clients are the other process's; it says on the standard input when to measure.
        let mut line = String::new();
        io::stdin().read_line(&mut line).unwrap();
        let (cpu, time) = (common::cpu_time(), Instant::now());
        io::stdin().read_line(&mut line).unwrap();
        let used = (common::cpu_time() - cpu).as_secs_f64() / time.elapsed().as_secs_f64();
        assert!(used < 0.05, "{:.1} % of a core while nothing can be accepted", used * 100.0);
        io::stdin().read_line(&mut line).unwrap();
        server.stop();
        return;
    };
    use std::io::{BufRead, BufReader};
    let mut stdin = child.stdin.take().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    let addresses: [SocketAddr; 2] = loop {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "the child ended");
        let addresses: Result<Vec<_>, _> = line.split_whitespace().map(str::parse).collect();
        if let Some(addresses) = addresses.ok().and_then(|addresses| addresses.try_into().ok()) {
            break addresses;
        }
    };
    let mut clients: Vec<Client> = (0..200).map(|number| Client::connect(addresses[number % 2])).collect();
    for client in &mut clients {
        client.send("x\n");
    }
    // Of whichever listener was the first to have them.
    let has_answer = |client: &Client| {
        let socket = client.socket.get_ref();
        socket.set_nonblocking(true).unwrap();
        let has_answer = socket.peek(&mut [0; 2]).is_ok_and(|n| n == 2);
        socket.set_nonblocking(false).unwrap();
        has_answer
    };
    eventually("those it has descriptors for are served", || {
        clients.iter().filter(|client| has_answer(client)).count() >= 10
    });
    stdin.write_all(b"begin\n").unwrap();
    thread::sleep(Duration::from_secs(2)); // over which the processor time is measured
    stdin.write_all(b"end\n").unwrap();

    let last = clients.pop().unwrap();
    let closed = Instant::now();
    drop(clients);
    let mut last = last;
    assert_eq!(last.line(), "x");
    assert!(closed.elapsed() < Duration::from_secs(1), "it took {:?} to recover", closed.elapsed());
    drop(last);
    stdin.write_all(b"stop\n").unwrap();
    drop(stdin);
    succeeds(child);
}

/// The address space that this process has taken.
fn address_space() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split_whitespace().next().unwrap().parse().unwrap();
    pages * 4096
}

fn limit_address_space(bytes: u64) {
    let before = getrlimit(Resource::As);
    setrlimit(Resource::As, Rlimit { current: Some(bytes), maximum: before.maximum }).unwrap();
}

/// A server with one client, another that has asked and waits for its thread, and the limit that there was before.
fn without_room_for_a_thread() -> (Running, [Client; 2], Rlimit) {
    // A worker's stack does not fit into the address space that is left; a small thing does.
    let server = echo(|builder| builder.worker_stack_size(1 << 30).task_worker_num(1));
    let mut first = server.client();
    assert_eq!(first.ask("x"), "x");
    let before = getrlimit(Resource::As);
    limit_address_space(address_space() + (256 << 20));
    let mut waits = server.client();
    waits.send("z\n");
    eventually("it is accepted", || server.handle.stats().accepted_connections == 2);
    (server, [first, waits], before)
}

#[test]
fn a_client_for_whose_thread_there_is_no_address_space_waits_until_there_is() {
    let Some(child) = in_child!() else {
        let (server, [mut first, mut waits], before) = without_room_for_a_thread();
        waits.socket.get_ref().set_read_timeout(Some(SHORT)).unwrap();
        assert!(waits.socket.fill_buf().is_err(), "it is not served");
        assert_eq!(first.ask("y"), "y", "the others are served");
        setrlimit(Resource::As, before).unwrap();
        waits.socket.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(waits.line(), "z", "once there is room");
        assert_eq!(server.handle.stats().refused.total(), 0);
        drop((first, waits));
        server.stop();
        return;
    };
    succeeds(child);
}

#[test]
fn a_client_that_waits_for_a_thread_when_the_server_shuts_down_is_refused_in_order() {
    let Some(child) = in_child!() else {
        let (server, [_first, mut waits], before) = without_room_for_a_thread();
        server.handle.shutdown(PATIENCE);
        assert_eq!(waits.rest(), "", "no reset");
        assert_eq!(server.handle.stats().refused.shutdown, 1);
        setrlimit(Resource::As, before).unwrap();
        drop(waits);
        server.ended();
        return;
    };
    succeeds(child);
}

#[test]
fn under_any_limit_of_address_space_a_burst_of_clients_is_served_or_the_server_says_why_it_does_not_start() {
    const MIB: u64 = 1 << 20;
    // The whole of it. In steps, since the allocator takes much at once for each of some threads.
    let limits = (100..360).step_by(5).chain([400, 500, 700, 900, 1200, 2000]);
    if let Some(limit) = std::env::var_os(LIMIT) {
        let log = log_from(log::LevelFilter::Warn);
        // Std's start of a thread is beyond our reach.
        let (hand_over, server) = std::sync::mpsc::sync_channel::<Option<Server>>(0);
        let running = thread::spawn(move || server.iter().flatten().next().map(Server::run));
        hand_over.send(None).unwrap();
        // Before anything of the library is started, as `prlimit` does.
        limit_address_space(limit.to_str().unwrap().parse::<u64>().unwrap() * MIB);
        let server = match bind_echo(|builder| builder.task_worker_num(2)) {
            Ok(server) => server,
            Err(error) => return says_so(error.into()),
        };
        let handle = server.handle();
        hand_over.send(Some(server)).unwrap();
        let answers = answers(handle.local_addr().inet().unwrap());
        handle.shutdown(PATIENCE);
        match running.join().unwrap().unwrap() {
            Ok(report) => {
                assert_eq!(report.tasks.abandoned, 0);
                // Some are refused where there is no address space for the thread of a single client.
                if handle.stats().refused.no_thread > 0 {
                    return assert!(log.lock().iter().any(|line| line.contains("address space")));
                }
                assert_eq!(answers.unwrap(), 150);
                eprintln!("{SERVED}");
            }
            Err(error) => says_so(error.into()),
        }
        return;
    }
    for limit in limits {
        let mut command = common::as_child(Command::new(std::env::current_exe().unwrap()), test_name!());
        let output = command.env(LIMIT, limit.to_string()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{limit} MiB: {}\n{stderr}", output.status);
        assert!(limit < 300 && limit != 260 || stderr.contains(SERVED), "{limit} MiB: {stderr}");
    }
}

const SERVED: &str = "all were served";

fn says_so(error: anyhow::Error) {
    let error = format!("{error:#}");
    assert!(error.contains("address space"), "{error}");
}

/// How many of a burst of clients are answered. All that have a thread are, and then the others, in no order.
fn answers(addr: SocketAddr) -> io::Result<usize> {
    let clients: io::Result<Vec<_>> = (0..150).map(|_| TcpStream::connect(addr)).collect();
    let clients = clients?;
    for mut client in &clients {
        client.set_read_timeout(Some(PATIENCE))?;
        client.write_all(b"x\n")?;
        client.shutdown(Shutdown::Write)?;
    }
    let answered = clients.into_iter().map(|mut client| {
        let mut answer = [0; 2];
        client.read_exact(&mut answer)?;
        Ok((answer == *b"x\n") as usize)
    });
    answered.sum()
}

const LIMIT: &str = "BACKROOM_TEST_ADDRESS_SPACE";

#[test]
fn a_thread_that_cannot_start_refuses_its_connection_and_the_acceptor_goes_on() {
    use std::os::unix::process::CommandExt;

    if common::is_child() {
        let server = echo(|builder| builder.task_worker_num(1));
        let mut first = server.client();
        assert_eq!(first.ask("x"), "x");
        let threads = getrlimit(Resource::Nproc);
        setrlimit(Resource::Nproc, Rlimit { current: Some(0), maximum: threads.maximum }).unwrap();
        for refused in 1..=3 {
            assert_eq!(server.client().rest(), "");
            eventually("it is counted", || server.handle.stats().refused.total() == refused);
        }
        assert_eq!(first.ask("y"), "y", "the others are served");
        setrlimit(Resource::Nproc, threads).unwrap();
        assert_eq!(server.client().ask("z"), "z", "and so is the next once there is room");
        drop(first);
        server.stop();
        return;
    }
    let mut command = common::as_child(Command::new(std::env::current_exe().unwrap()), test_name!());
    if rustix::process::geteuid().is_root() {
        // The limit does not bind root.
        command.uid(65534);
    }
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stderr}", output.status);
}

#[test]
fn where_the_timers_thread_cannot_start_delayed_tasks_are_refused_and_others_go_on() {
    let Some(child) = in_child!() else {
        let pool = TaskPool::builder().task_worker_num(1).on_task(|_, ()| Ok(())).build().unwrap();
        let mut submitter = pool.submitter();
        submitter.task_wait((), PATIENCE).unwrap();
        let later = TaskOptions::new().after(Duration::from_millis(1));
        // No thread more; but for privileged users, whom this does not bind. Those have no room for its stack.
        let threads = getrlimit(Resource::Nproc);
        setrlimit(Resource::Nproc, Rlimit { current: Some(0), maximum: threads.maximum }).unwrap();
        let room = getrlimit(Resource::As);
        limit_address_space(address_space());

        let refused = submitter.with(later.clone()).try_task(()).unwrap_err();
        assert_eq!(refused.reason(), TaskError::NoTimer);
        assert!(matches!(submitter.task_every(Duration::from_secs(1), || ()), Err(TaskError::NoTimer)));
        submitter.task_wait((), PATIENCE).expect("others go on");

        setrlimit(Resource::As, room).unwrap();
        setrlimit(Resource::Nproc, threads).unwrap();
        submitter.with(later).task(()).expect("there is room for it now");
        let tasks = pool.shutdown(PATIENCE).tasks;
        assert_eq!((tasks.accepted, tasks.outcomes()), (3, 3));
        return;
    };
    succeeds(child);
}

#[test]
fn task_workers_that_cannot_start_are_an_error_from_bind() {
    let Some(child) = in_child!() else {
        std::panic::set_hook(Box::new(|_| ()));
        let before = getrlimit(Resource::As);
        setrlimit(Resource::As, Rlimit { current: Some(4 << 30), maximum: before.maximum }).unwrap();
        let error = Server::builder()
            .task_worker_num(8)
            .task_worker_stack_size(1 << 30)
            .on_receive(|_, _| Ok(()))
            .on_task(|_, ()| Ok(()))
            .bind("127.0.0.1:0")
            .err()
            .unwrap();
        assert!(error.to_string().starts_with("cannot start the task workers: "), "{error}");
        // Those that had started end.
        eventually("no thread is left", || common::threads() <= 2);
        return;
    };
    succeeds(child);
}

#[test]
fn it_prints_nothing_handles_no_signal_and_starts_no_thread_before_bind() {
    let Some(child) = in_child!() else {
        let signals = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let handled = |line: &&str| line.starts_with("SigCgt") || line.starts_with("SigIgn");
            status.lines().filter(handled).map(str::to_owned).collect::<Vec<_>>()
        };
        let (threads, handled) = (common::threads(), signals());
        let builder = Server::builder()
            .framing(Framing::lines())
            .limits(Limits::new().max_frame(100))
            .on_receive(|conn, line| {
                anyhow::ensure!(line != b"error", "an error");
                conn.task(())?;
                Ok(())
            })
            .on_task(|_, ()| Ok(()))
            .on_finish(|_, _| anyhow::bail!("another error"));
        assert_eq!(common::threads(), threads);
        let server = run(builder.bind("127.0.0.1:0").unwrap());
        for input in ["x\n", "error\n", &"long".repeat(100)] {
            let mut client = server.client();
            client.send(input);
            client.end_sending();
            client.rest();
        }
        server.stop();
        assert_eq!(signals(), handled);
        return;
    };
    let (stdout, stderr) = succeeds(child);
    let ours = |line: &&str| !line.is_empty() && !line.starts_with("running 1 test") && !line.starts_with("test ");
    assert_eq!(stdout.lines().filter(ours).collect::<Vec<_>>(), Vec::<&str>::new());
    assert_eq!(stderr, "");
}

#[test]
fn a_client_that_never_reads_costs_no_more_memory_than_its_limits_say() {
    let Some(child) = in_child!() else {
        const OUTBOX: usize = 1 << 20;
        let server = Server::builder()
            .framing(Framing::lines())
            .limits(Limits::new().max_outbox(OUTBOX))
            .on_receive(|conn, _| {
                conn.task(())?;
                Ok(())
            })
            .on_task(|_, ()| Ok(vec![b'x'; 16 * 1024]))
            .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
            .bind("127.0.0.1:0")
            .unwrap();
        let server = run(server);
        drop(server.client());
        let before = resident();
        let mut deaf = TcpStream::connect(server.addr()).unwrap();
        deaf.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        // Until the server reads no more. A million lines are more than the kernel holds, and would be 16 GiB of
        // answers.
        let line = [[b'x'; 99].as_slice(), b"\n"].concat();
        let sent = (0..1_000_000).take_while(|_| deaf.write_all(&line).is_ok()).count();
        assert!(sent < 1_000_000);
        let (grown, tasks) = (resident() - before, server.handle.stats().tasks);
        // The outbox, doubled while it grows, and as many results as may be in flight.
        assert!(grown < 8 * OUTBOX, "{grown} bytes more");
        assert!(tasks.accepted < 1000, "{tasks:?}");
        drop(deaf);
        server.stop();
        return;
    };
    succeeds(child);
}

fn resident() -> usize {
    resident_of(std::process::id())
}

fn resident_of(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn the_default_limit_of_connections_follows_from_the_process_and_is_logged() {
    let Some(child) = in_child!() else {
        let logged = log_from(log::LevelFilter::Info);
        let hard = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(164), maximum: hard }).unwrap();
        let server = echo(|builder| builder);
        let lines = logged.lock().clone();
        assert!(lines.iter().any(|line| line.ends_with("at most 50 connections")), "{lines:?}");
        server.stop();
        return;
    };
    succeeds(child);
}

#[test]
fn a_storm_of_panics_and_errors_is_logged_once_a_second_and_with_no_raw_bytes() {
    let Some(child) = in_child!() else {
        let logged = log_from(log::LevelFilter::Debug);
        std::panic::set_hook(Box::new(|_| ()));
        let server = Server::builder()
            .framing(Framing::lines())
            .limits(Limits::new().max_frame(1000))
            .on_receive(|conn, line| {
                conn.task(String::from_utf8_lossy(line).into_owned())?;
                Ok(())
            })
            .on_task(|_, line| -> anyhow::Result<()> { panic!("bad line {line}") })
            .on_finish(|conn, done| {
                conn.send("x\n")?;
                Ok(done.into_result()?)
            })
            .bind("127.0.0.1:0")
            .unwrap();
        let server = run(server);
        let begun = Instant::now();
        let mut client = server.client();
        for _ in 0..1000 {
            assert_eq!(client.ask(&("\x1b[31m".to_owned() + &"long ".repeat(100))), "x");
        }
        drop(client);
        server.stop();
        let seconds = begun.elapsed().as_secs() as usize + 1;
        let lines = logged.lock().clone();
        let count = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
        let _ = std::panic::take_hook();
        assert!((1..=seconds).contains(&count("ERROR task ")), "{lines:?}");
        assert!((1..=seconds).contains(&count("WARN connection ")), "{lines:?}");
        assert!(lines.iter().all(|line| line.len() < 600 && !line.contains('\x1b')), "{lines:?}");
        return;
    };
    succeeds(child);
}

#[test]
fn a_signal_does_not_disturb_a_sleeping_server() {
    let Some(child) = in_child!() else {
        let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGUSR1]).unwrap();
        let server = echo(|builder| builder);
        let mut client = server.client();
        for _ in 0..20 {
            assert_eq!(client.ask("x"), "x");
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::USR1).unwrap();
            assert_eq!(signals.forever().next(), Some(signal_hook::consts::SIGUSR1));
        }
        drop(client);
        server.stop();
        return;
    };
    succeeds(child);
}

#[test]
fn a_worker_thread_serves_the_next_connection() {
    let (report, served) = events();
    let server = Server::builder()
        .on_receive(move |conn, data| {
            report.send((thread::current().id(), thread::current().name().map(str::to_owned)))?;
            Ok(conn.send(data)?)
        })
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut threads = HashSet::new();
    for _ in 0..50 {
        assert_eq!(server.client().ask("x"), "x");
        let (thread, name) = served.next();
        assert!(name.unwrap().starts_with("br-worker-"));
        threads.insert(thread);
        // Its thread is back once its place is.
        eventually("it is closed", || server.handle.stats().connections == 0);
    }
    assert!(threads.len() < 25, "{} threads for 50 connections, one after the other", threads.len());
    server.stop();
}

#[test]
fn more_clients_than_a_default_backlog_holds_connect_before_the_first_is_accepted() {
    common::raise_file_limit();
    let server = Server::builder()
        .max_connections(500)
        .on_receive(|conn, data| Ok(conn.send(data)?))
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    // Bound and not running. The standard library would ask for a backlog of 128.
    let connect =
        || TcpStream::connect_timeout(&server.local_addr().inet().unwrap(), Duration::from_millis(500)).unwrap();
    // Which the system may bound below what was asked for.
    let bound =
        std::fs::read_to_string("/proc/sys/net/core/somaxconn").map_or(128, |bound| bound.trim().parse().unwrap());
    let clients: Vec<TcpStream> = (0..500.min(bound)).map(|_| connect()).collect();
    let server = run(server);
    eventually("all are accepted", || server.handle.stats().accepted_connections == clients.len() as u64);
    drop(clients);
    server.stop();
}

#[test]
fn a_client_that_is_gone_raises_no_signal_that_could_end_the_program() {
    let Some(child) = in_child!() else {
        let raised = Arc::new(AtomicBool::new(false));
        // In place of ignoring it, which Rust's own programs do, and others that embed this need not.
        signal_hook::flag::register(signal_hook::consts::SIGPIPE, Arc::clone(&raised)).unwrap();
        let gate = Gate::default();
        let (reset_gate, (report, sent)) = (gate.clone(), events());
        let server = Server::builder::<(), ()>()
            .on_receive(move |conn, _| {
                reset_gate.pass();
                // More than is gathered, so it is written now.
                report.send(conn.send([b'x'; 100_000]))?;
                Ok(())
            })
            .on_task(|_, ()| Ok(()))
            .bind("127.0.0.1:0")
            .unwrap();
        let server = run(server);
        let mut client = server.client();
        client.send("x");
        eventually("it is read", || server.handle.stats().traffic.frames_received == 1);
        // A reset after an end is what the kernel answers with this signal.
        client.end_sending();
        client.reset();
        gate.open();
        assert!(sent.next().is_err());
        assert!(!raised.load(Ordering::SeqCst));
        server.stop();
        return;
    };
    succeeds(child);
}

/// Says where it listens, and serves until the other process says that it is enough.
fn serve_for_another_process(server: Running) {
    eprintln!("at {}", server.addr());
    let mut line = String::new();
    io::stdin().read_line(&mut line).unwrap();
    server.stop();
}

/// Where such a child listens.
fn address_of(child: &mut std::process::Child) -> SocketAddr {
    let stderr = child.stderr.as_mut().unwrap();
    // Byte by byte, so that what follows is left for the end.
    let lines = std::iter::repeat_with(|| {
        let byte = |stderr: &mut std::process::ChildStderr| {
            let mut byte = [0];
            Read::read_exact(stderr, &mut byte).expect("the child ended");
            byte[0]
        };
        let line: Vec<u8> = std::iter::repeat_with(|| byte(stderr)).take_while(|byte| *byte != b'\n').collect();
        String::from_utf8(line).unwrap()
    });
    lines.filter_map(|line| line.strip_prefix("at ")?.parse().ok()).next().unwrap()
}

#[test]
fn nine_thousand_clients_at_once_are_served_and_come_and_go_and_cost_little_memory() {
    const CLIENTS: usize = 9_000;
    let Some(mut child) = in_child!() else {
        common::raise_file_limit();
        return serve_for_another_process(echo(|builder| builder.max_connections(CLIENTS)));
    };
    common::raise_file_limit();
    let files = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| files as usize);
    // In the child, each has two descriptors.
    let count = CLIENTS.min((files - 200) / 2);
    let addr = address_of(&mut child);
    let connect = || {
        let mut client = Client::connect(addr);
        client.send("x\n");
        client
    };
    let mut clients: Vec<Client> = (0..count).map(|_| connect()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.line(), "x"));
    let memory = || resident_of(child.id()) / count;
    let at_first = memory();
    assert!(at_first < 48 * 1024, "{at_first} bytes for each");
    for _ in 0..3 {
        clients.truncate(count - count / 10);
        clients.extend((clients.len()..count).map(|_| connect()));
        clients[count - count / 10..].iter_mut().for_each(|client| assert_eq!(client.line(), "x"));
    }
    assert!(memory() < at_first + at_first / 4, "{} bytes for each, and {at_first} before", memory());
    clients.iter_mut().step_by(10).for_each(|client| assert_eq!(client.ask("y"), "y"));
    drop(clients);
    child.stdin.take().unwrap().write_all(b"enough\n").unwrap();
    succeeds(child);
}

#[test]
#[cfg(target_os = "linux")]
fn threads_can_be_told_apart_where_the_system_shows_them() {
    let Some(child) = in_child!() else {
        let server = Server::builder::<(), ()>()
            .task_worker_num(3)
            .listen_udp("127.0.0.1:0")
            .on_packet(|_, _, _| Ok(()))
            .on_receive(|conn, _| {
                conn.with(TaskOptions::new().after(PATIENCE)).task_oneway(())?;
                Ok(conn.send("ok\n")?)
            })
            .on_task(|_, ()| Ok(()))
            .bind("127.0.0.1:0")
            .unwrap();
        let server = run(server);
        let mut clients = [server.client(), server.client()];
        clients.iter_mut().for_each(|client| assert_eq!(client.ask("x"), "ok"));
        let names = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap();
            let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
            let mut names: Vec<String> = names.map(|name| name.trim_end().to_owned()).collect();
            names.retain(|name| name.starts_with("br-"));
            names.sort_unstable();
            names
        };
        let port = server.handle.local_addrs()[1].inet().unwrap().port();
        let udp = format!("br-udp-{port}");
        let expected =
            ["br-acceptor-1", "br-task-0", "br-task-1", "br-task-2", "br-timer", &udp, "br-worker-1", "br-worker-2"];
        // A new thread has the name of the one that starts it until it gives itself its own.
        eventually("each has its name", || names() == expected);
        drop(clients);
        server.stop();
        return;
    };
    succeeds(child);
}
