//! Values of 64 KiB, handed over and given back by value, overflow no stack: by no way of submitting, without
//! optimizations either. Each way runs in a process of its own, since an overflow would end this one.

#![allow(clippy::unit_arg)]

mod common;

use std::process::Command;
use std::thread;
use std::time::Duration;

use backroom::{
    Connection, Finished, Framing, Listener, PacketSocket, Priority, Retry, Server, ServerHandle, Submitter,
    TaskContext, TaskOptions, TaskPool,
};
use common::{PATIENCE, as_child, is_child, run};

const LEN: usize = 64 * 1024;
type Large = [u8; LEN];
type Conn = Connection<Large, Large, Large>;
type Context = TaskContext<Large, Large, Large, ServerHandle>;
type Way = fn(&mut Conn) -> anyhow::Result<()>;

/// What a task is to do, as its first byte.
const RETURN: u8 = 0;
const FINISH_TWICE: u8 = 1;
const SUBMIT: u8 = 2;
const FINISH_LATER: u8 = 3;
const FINISH_IN_VAIN: u8 = 4;

fn large(first: u8) -> Large {
    let mut value = [7; LEN];
    value[0] = first;
    value
}

fn check(value: &Large) -> &'static str {
    if value[1..].iter().all(|byte| *byte == 7) { "ok\n" } else { "bad\n" }
}

fn done(conn: &mut Conn, done: Finished<Large>) -> anyhow::Result<()> {
    if done.is_last() {
        let value = done.into_result()?;
        conn.send(check(&value))?;
    }
    Ok(())
}

// One function for each, not inlined, so that none has the stack of another.
const WAYS: [(&str, Way); 18] = [
    ("task", |conn| {
        conn.task(large(RETURN))?;
        Ok(())
    }),
    ("results before the last", |conn| {
        conn.task(large(FINISH_TWICE))?;
        Ok(())
    }),
    ("a result that is refused", |conn| {
        conn.task(large(FINISH_IN_VAIN))?;
        Ok(())
    }),
    ("a further task", |conn| {
        conn.task(large(SUBMIT))?;
        Ok(())
    }),
    ("finished later", |conn| {
        conn.task(large(FINISH_LATER))?;
        Ok(())
    }),
    ("task_then", |conn| {
        conn.task_then(large(RETURN), done)?;
        Ok(())
    }),
    ("task_each", |conn| {
        conn.task_each(large(FINISH_TWICE), done)?;
        Ok(())
    }),
    ("task_oneway", |conn| {
        conn.task_oneway(large(RETURN))?;
        Ok(conn.send("ok\n")?)
    }),
    ("try_task, refused", |conn| {
        while conn.try_task(large(RETURN)).is_ok() {}
        refused(conn)
    }),
    ("with options", |conn| {
        let options = TaskOptions::new().priority(Priority::High).retry(Retry::attempts(2)).deadline(PATIENCE);
        conn.with(options).task(large(RETURN))?;
        Ok(())
    }),
    ("delayed", |conn| {
        conn.with(TaskOptions::new().after(Duration::from_millis(1))).task(large(RETURN))?;
        Ok(())
    }),
    ("cancelled", |conn| {
        let id = conn.with(TaskOptions::new().after(PATIENCE)).task_oneway(large(RETURN))?;
        conn.cancel(id);
        Ok(conn.send("ok\n")?)
    }),
    ("task_every", |conn| {
        let repetition = conn.task_every(Duration::from_millis(1), || large(RETURN))?;
        conn.after(Duration::from_millis(20), move |_| Ok(repetition.stop()));
        Ok(())
    }),
    ("task_wait", |conn| {
        let value = conn.task_wait(large(RETURN), PATIENCE)?;
        Ok(conn.send(check(&value))?)
    }),
    ("task_wait_multi", |conn| {
        for value in conn.task_wait_multi(vec![large(RETURN), large(RETURN)], PATIENCE) {
            conn.send(check(&value?))?;
        }
        Ok(())
    }),
    ("run", |conn| {
        let value = large(RETURN);
        let work = move || value;
        conn.run(work, |conn, value| Ok(conn.send(check(&value?))?))?;
        Ok(())
    }),
    ("a closure for a worker", |conn| {
        let value = large(RETURN);
        let (remote, id) = (conn.remote(), conn.id());
        Ok(remote.with_connection(id, move |conn| Ok(conn.send(check(&value))?))?)
    }),
    ("a timer", |conn| {
        let value = large(RETURN);
        conn.after(Duration::ZERO, move |conn| Ok(conn.send(check(&value))?));
        Ok(())
    }),
];

fn refused(conn: &mut Conn) -> anyhow::Result<()> {
    let refused = conn.try_task(large(RETURN)).expect_err("there is no room");
    let value = refused.into_payload();
    Ok(conn.send(check(&value))?)
}

fn task(context: &mut Context, value: Large) -> anyhow::Result<Large> {
    assert_eq!(check(context.worker()), "ok\n");
    match value[0] {
        FINISH_TWICE => finish(context, value),
        FINISH_IN_VAIN => finish_in_vain(context, value),
        SUBMIT => submit(context, value),
        FINISH_LATER => finish_later(context, value),
        _ => Ok(value),
    }
}

#[inline(never)]
fn finish(context: &Context, value: Large) -> anyhow::Result<Large> {
    context.finish(value)?;
    Ok(value)
}

#[inline(never)]
fn finish_in_vain(context: &Context, value: Large) -> anyhow::Result<Large> {
    loop {
        if let Err(refused) = context.finish(value) {
            return Ok(refused.into_result());
        }
    }
}

#[inline(never)]
fn submit(context: &Context, value: Large) -> anyhow::Result<Large> {
    context.task(large(RETURN))?;
    context.task_oneway_with(&TaskOptions::new().after(Duration::from_millis(1)), large(RETURN))?;
    Ok(value)
}

#[inline(never)]
fn finish_later(context: &Context, value: Large) -> anyhow::Result<Large> {
    context.finish_later(move |reply| reply.finish(value))
}

/// A server with as little stack as may be, or with what it has by default.
fn ask(way: Way, least: bool) {
    const LEAST: usize = 128 * 1024;
    let builder = Server::builder()
        .session(|_| large(RETURN))
        .task_worker(|_| Ok(large(RETURN)))
        .framing(Framing::lines())
        .listen(Listener::tcp("127.0.0.1:0"))
        .on_receive(move |conn: &mut Conn, _| way(conn))
        .on_task(task)
        .on_finish(done);
    let builder = if least { builder.worker_stack_size(LEAST).task_worker_stack_size(LEAST) } else { builder };
    let server = run(builder.build().unwrap());
    let mut client = server.client();
    assert_eq!(client.ask("go"), "ok");
    drop(client);
    server.stop();
}

/// Which part of a test a child runs.
const PART: &str = "BACKROOM_TEST_PART";

/// Runs each part in a child of its own.
fn each_part<'a>(test: &str, names: impl IntoIterator<Item = &'a str>, run: impl Fn(&str)) {
    if is_child() {
        return run(&std::env::var(PART).unwrap());
    }
    for name in names {
        let mut command = as_child(Command::new(std::env::current_exe().unwrap()), test);
        let output = command.env(PART, name).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {}\n{stderr}", output.status);
    }
}

#[test]
fn values_of_64_kib_overflow_no_stack_by_default_whatever_way_they_go() {
    each_part(test_name!(), WAYS.map(|(name, _)| name), |part| {
        let (_, way) = WAYS.into_iter().find(|(name, _)| *name == part).unwrap();
        ask(way, false);
    });
}

#[test]
fn values_of_64_kib_overflow_no_stack_of_the_least_size_either_but_in_closures() {
    let in_closures = ["run", "a closure for a worker", "a timer"];
    let names = WAYS.map(|(name, _)| name).into_iter().filter(|name| !in_closures.contains(name));
    each_part(test_name!(), names, |part| {
        let (_, way) = WAYS.into_iter().find(|(name, _)| *name == part).unwrap();
        ask(way, true);
    });
}

type Sub = Submitter<Large, Large>;

#[inline(never)]
fn submit_to_pool(submitter: &mut Sub) {
    submitter.task(large(RETURN)).unwrap();
}

#[inline(never)]
fn submit_within(submitter: &mut Sub) {
    submitter.task_within(large(RETURN), PATIENCE).unwrap();
}

#[inline(never)]
fn wait_for_pool(submitter: &mut Sub) {
    let value = submitter.task_wait(large(RETURN), PATIENCE).unwrap();
    assert_eq!(check(&value), "ok\n");
}

#[test]
fn a_thread_of_the_program_may_submit_values_of_64_kib_and_wait_for_them() {
    each_part(test_name!(), ["task", "task_within", "task_wait"], |part| {
        let part = part.to_owned();
        // As much stack as every thread of a Rust program has.
        let thread = thread::Builder::new().stack_size(2 * 1024 * 1024).spawn(move || {
            let pool = TaskPool::builder()
                .on_task(|_, value: Large| Ok(value))
                .on_finish(|_, done| {
                    let value = done.into_result()?;
                    Ok(assert_eq!(check(&value), "ok\n"))
                })
                .build()
                .unwrap();
            let mut submitter = pool.submitter();
            match &*part {
                "task" => submit_to_pool(&mut submitter),
                "task_within" => submit_within(&mut submitter),
                _ => wait_for_pool(&mut submitter),
            }
            common::finish_all(&mut submitter);
        });
        thread.unwrap().join().unwrap();
    });
}

#[test]
fn a_packet_socket_may_submit_values_of_64_kib() {
    each_part(test_name!(), ["packet"], |_| {
        let server = Server::builder()
            .listen_udp("127.0.0.1:0")
            .on_packet(|socket: &mut PacketSocket<Large, Large>, from, _| {
                socket.task_then(large(RETURN), move |socket, done| {
                    let value = done.into_result()?;
                    Ok(socket.send_to(from, check(&value))?)
                })?;
                Ok(())
            })
            .on_task(|_, value: Large| Ok(value))
            .build()
            .unwrap();
        let server = run(server);
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send_to(b"go", server.addr()).unwrap();
        let mut answer = [0; 9];
        let len = client.recv(&mut answer).unwrap();
        assert_eq!(&answer[..len], b"ok\n");
        server.stop();
    });
}
