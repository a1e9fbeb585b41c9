//! Receive, task, finish: what the first program does, over real sockets.

mod common;

use std::cell::Cell;
use std::collections::HashSet;
use std::io::Write;
use std::rc::Rc;
use std::sync::{Arc, Barrier, OnceLock};
use std::thread::{self, ThreadId};

use anyhow::bail;
use backroom::{Address, CloseReason, Framing, Limits, Outcome, SendError, Server, TaskError, TaskFailure};
use common::{Gate, events, eventually, run};

/// `{line} -> OK` for each line, whatever the order.
fn echo() -> Server {
    Server::builder()
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(String::from_utf8_lossy(line).into_owned())?;
            Ok(())
        })
        .on_task(|_, line| Ok(format!("{line} -> OK\n")))
        .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
        .bind("127.0.0.1:0")
        .unwrap()
}

#[test]
fn the_seed_program_answers_and_its_types_are_inferred() {
    let server = Server::builder()
        .task_worker_num(4)
        .on_receive(|conn, data| {
            let id = conn.task(String::from_utf8_lossy(data).into_owned())?;
            assert_eq!(id.sequence(), 1);
            Ok(())
        })
        .on_task(|cx, data| Ok(format!("{}: {data} -> OK\n", cx.id())))
        .on_finish(|conn, done| {
            let id = done.id();
            let result = done.into_result()?;
            assert!(result.starts_with(&format!("{id}: ")));
            Ok(conn.send(result)?)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("mail");
    assert!(client.line().ends_with(": mail -> OK"));
    drop(client);
    assert_eq!(server.stop().tasks.done, 1);
}

#[test]
fn many_clients_with_many_requests_in_flight_get_every_answer_once() {
    const CLIENTS: usize = 20;
    const LINES: usize = 500;
    let server = run(echo());
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.client();
                let lines: String = (0..LINES).map(|line| format!("{number}.{line}\n")).collect();
                client.send(lines);
                let answers: HashSet<String> = (0..LINES).map(|_| client.line()).collect();
                let expected = (0..LINES).map(|line| format!("{number}.{line} -> OK")).collect();
                assert_eq!(answers, expected);
            });
        }
    });
    let tasks = server.stop().tasks;
    assert_eq!((tasks.done, tasks.delivered), ((CLIENTS * LINES) as u64, (CLIENTS * LINES) as u64));
}

#[test]
fn a_finish_closure_runs_on_the_worker_that_submitted_and_may_hold_what_is_not_send() {
    let server = Server::builder()
        .framing(Framing::lines())
        .session(|_| Rc::new(Cell::new(0u32)))
        .on_receive(|conn, line| {
            let worker: ThreadId = thread::current().id();
            let count = Rc::clone(conn.session());
            conn.task_then(String::from_utf8_lossy(line).into_owned(), move |conn, done| {
                assert_eq!(thread::current().id(), worker);
                count.set(count.get() + 1);
                let answer = format!("{} {}\n", done.into_result()?, conn.session().get());
                Ok(conn.send(answer)?)
            })?;
            Ok(())
        })
        .on_task(|_, line: String| Ok(line))
        .on_finish(|_, _| bail!("the closure given with the task runs instead"))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    assert_eq!(client.ask("a"), "a 1");
    assert_eq!(client.ask("b"), "b 2");
    assert_eq!(server.handle.stats().tasks.finish_errors, 0);
    drop(client);
    server.stop();
}

#[test]
fn a_finish_closure_may_submit_the_next_task_ten_thousand_times() {
    let server = Server::builder()
        .framing(Framing::lines())
        .on_receive(|conn, _| {
            conn.task(10_000u32)?;
            Ok(())
        })
        .on_task(|_, left| Ok(left - 1))
        .on_finish(|conn, done| {
            match done.into_result()? {
                0 => conn.send("done\n")?,
                left => {
                    conn.task(left)?;
                }
            }
            Ok(())
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    assert_eq!(client.ask("go"), "done");
    drop(client);
    assert_eq!(server.stop().tasks.done, 10_000);
}

#[test]
fn a_task_that_fails_or_panics_is_an_outcome_too() {
    let server = Server::builder()
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(line.to_vec())?;
            Ok(())
        })
        .on_task(|_, line| match &line[..] {
            b"fail" => bail!("no luck"),
            b"panic" => panic!("a bug"),
            _ => Ok(line),
        })
        .on_finish(|conn, done| {
            let answer = match done.outcome() {
                Outcome::Done(_) => "done".to_owned(),
                Outcome::Failed(error) => format!("failed: {error}"),
                Outcome::Panicked(message) => format!("panicked: {message}"),
                other => format!("{other:?}"),
            };
            conn.send(answer + "\n")?;
            match done.into_result() {
                Ok(_) => Ok(()),
                Err(TaskFailure::Failed(error)) => Err(error),
                Err(TaskFailure::Panicked(_)) => Ok(()),
                Err(other) => Err(other.into()),
            }
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    assert_eq!(client.ask("fail"), "failed: no luck");
    assert_eq!(client.ask("panic"), "panicked: a bug");
    assert_eq!(client.ask("well"), "done");
    drop(client);
    let stats_errors = server.handle.stats().tasks.finish_errors;
    let tasks = server.stop().tasks;
    assert_eq!((tasks.done, tasks.failed, tasks.panicked, stats_errors), (1, 1, 1, 1));
}

#[test]
fn each_task_worker_owns_its_state_and_says_where_a_task_ran() {
    let server = Server::builder()
        .task_worker_num(3)
        .framing(Framing::lines())
        // Rc: made on the thread that owns it, so it need not be Send.
        .task_worker(|index| Ok((index, Rc::new(Cell::new(0)), thread::current().id())))
        .on_receive(|conn, _| {
            conn.task(())?;
            Ok(())
        })
        .on_task(|cx, ()| {
            let worker_index = cx.worker_index();
            let ((index, count, thread), info) = cx.parts();
            assert_eq!((*index, *thread), (worker_index, thread::current().id()));
            assert_eq!(info.connection_id().number(), info.id().submitter());
            count.set(count.get() + 1);
            assert_eq!(cx.worker().0, worker_index);
            Ok(worker_index)
        })
        .on_finish(|conn, done| {
            assert_eq!(done.worker_index(), done.result().copied());
            Ok(conn.send("ok\n")?)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("x\n".repeat(300));
    for _ in 0..300 {
        assert_eq!(client.line(), "ok");
    }
    drop(client);
    server.stop();
}

#[test]
fn a_burst_of_tasks_is_begun_by_all_free_task_workers() {
    const TASK_WORKERS: usize = 4;
    let all_run = Barrier::new(TASK_WORKERS);
    let server = Server::builder()
        .task_worker_num(TASK_WORKERS)
        .framing(Framing::lines())
        .on_receive(|conn, _| {
            conn.task(())?;
            Ok(())
        })
        .on_task(move |_, ()| {
            all_run.wait();
            Ok(())
        })
        .on_finish(|conn, _| Ok(conn.send("ok\n")?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    for _ in 0..1000 {
        client.send("x\n".repeat(TASK_WORKERS));
        for _ in 0..TASK_WORKERS {
            assert_eq!(client.line(), "ok");
        }
    }
    drop(client);
    server.stop();
}

#[test]
fn a_connection_knows_itself_and_its_two_halves_can_be_used_together() {
    let (report, connected) = events::<(Address, Address)>();
    let server = Server::builder()
        .framing(Framing::lines())
        .session(|peer| vec![format!("hello {peer}")])
        .on_connect(move |conn| {
            report.send((conn.peer_addr().clone(), conn.local_addr().clone()))?;
            let (greetings, link) = conn.parts();
            for greeting in greetings.drain(..) {
                link.send(greeting + "\n")?;
            }
            Ok(())
        })
        .on_receive(|conn, line| {
            conn.session_mut().push(String::from_utf8_lossy(line).into_owned());
            let id = conn.task(conn.session().len())?;
            assert_eq!((id.submitter(), conn.tasks_in_flight()), (conn.id().number(), 1));
            Ok(())
        })
        .on_task(|cx, len| {
            // Bytes from elsewhere go through the connection's mailbox.
            cx.server().send(cx.connection_id(), "from the task\n")?;
            Ok(len)
        })
        .on_finish(|conn, done| {
            assert_eq!(conn.tasks_in_flight(), 0);
            conn.send(format!("{}\n", done.into_result()?))?;
            Ok(())
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    let peer = client.socket.get_ref().local_addr().unwrap();
    assert_eq!(connected.next(), (peer.into(), server.addr().into()));
    assert_eq!(client.line(), format!("hello {peer}"));
    client.send("one\n");
    let mut answers = [client.line(), client.line()];
    answers.sort();
    assert_eq!(answers, ["1", "from the task"]);
    let known = server.handle.connections().list();
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].peer_addr, peer.into());
    drop(client);
    server.stop();
}

#[test]
fn times_queued_and_run_are_told() {
    let (gate, waiting) = (Gate::default(), Gate::default());
    let (task_gate, task_waiting) = (gate.clone(), waiting.clone());
    let (report, finished) = events::<(std::time::Duration, std::time::Duration)>();
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(line == b"slow")?;
            Ok(())
        })
        .on_task(move |_, slow| {
            if slow {
                task_waiting.open();
                task_gate.pass();
            }
            Ok(())
        })
        .on_finish(move |_, done| Ok(report.send((done.time_queued(), done.time_run()))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("slow\nquick\n");
    waiting.pass();
    let held = std::time::Instant::now();
    thread::sleep(std::time::Duration::from_millis(20)); // the slow work
    let held = held.elapsed();
    gate.open();
    let (slow, quick) = (finished.next(), finished.next());
    assert!(slow.1 >= held, "ran {:?}", slow.1);
    assert!(quick.0 >= held, "queued {:?}", quick.0);
    assert!(quick.1 < held, "ran {:?}", quick.1);
    drop(client);
    server.stop();
}

#[test]
fn without_on_finish_tasks_run_and_are_counted() {
    let server = Server::builder()
        .on_receive(|conn, data| {
            conn.task(data.len())?;
            Ok(())
        })
        .on_task(|_, len| Ok(len))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("x");
    client.end_sending();
    assert_eq!(client.rest(), "");
    assert_eq!(server.stop().tasks.delivered, 1);
}

#[test]
fn a_half_closed_client_still_gets_its_answers() {
    let server = run(echo());
    let mut client = server.client();
    client.send("one\ntwo\nunended");
    client.end_sending();
    let rest = client.rest();
    let mut answers: Vec<&str> = rest.lines().collect();
    answers.sort_unstable();
    assert_eq!(answers, ["one -> OK", "two -> OK"]);
    server.stop();
}

#[test]
fn close_flushes_what_was_sent_and_waits_for_no_task() {
    let gate = Gate::default();
    let task_gate = gate.clone();
    let server = Server::builder()
        .framing(Framing::lines())
        .on_receive(|conn, _| {
            conn.task(())?;
            conn.send("bye\n".repeat(10_000))?;
            conn.close();
            assert_eq!(conn.send("too late"), Err(SendError::Closed));
            Ok(())
        })
        .on_task(move |_, ()| {
            task_gate.pass();
            Ok(())
        })
        .on_finish(|_, _| panic!("nobody is there to be told"))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    // More lines than one: the rest must not turn the orderly close into a reset.
    client.send("x\n".repeat(1000));
    assert_eq!(client.rest(), "bye\n".repeat(10_000));
    gate.open();
    let tasks = server.stop().tasks;
    assert_eq!((tasks.accepted, tasks.done, tasks.orphaned), (1, 1, 1));
}

#[test]
fn the_handle_sends_to_a_connection_and_closes_it() {
    let (report, ids) = events();
    let server = Server::builder()
        .on_connect(move |conn| Ok(report.send(conn.id())?))
        .on_receive(|conn, _| {
            conn.task(())?;
            Ok(())
        })
        .on_task(|_, ()| Ok(()))
        .limits(Limits::new().max_outbox(64))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    let id = ids.next();
    server.handle.send(id, "one\n").unwrap();
    server.handle.send(id, "two\n").unwrap();
    assert_eq!((client.line(), client.line()), ("one".into(), "two".into()));
    assert_eq!(server.handle.send(id, [0; 65]), Err(SendError::TooLong));
    server.handle.send(id, "three\n").unwrap();
    assert!(server.handle.close(id));
    assert_eq!(client.rest(), "three\n");
    drop(client);
    eventually("the connection is forgotten", || server.handle.connections().count() == 0);
    assert!(!server.handle.close(id));
    assert_eq!(server.handle.send(id, "four\n"), Err(SendError::Closed));
    server.stop();
}

#[test]
fn what_a_task_sent_goes_before_what_its_finish_closure_sends_and_before_the_close() {
    let server = Server::builder()
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(line == b"close")?;
            Ok(())
        })
        .on_task(|cx, close| {
            cx.server().send(cx.connection_id(), "progress\n")?;
            Ok(close)
        })
        .on_finish(|conn, done| {
            match done.into_result()? {
                true => conn.close(),
                false => conn.send("done\n")?,
            }
            Ok(())
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    for _ in 0..100 {
        let mut client = server.client();
        client.send("answer\n");
        assert_eq!((client.line(), client.line()), ("progress".into(), "done".into()));
        client.send("close\n");
        assert_eq!(client.rest(), "progress\n");
    }
    server.stop();
}

#[test]
fn mail_that_was_accepted_before_the_close_is_flushed() {
    let server = Server::builder()
        .on_receive(|conn, _| {
            conn.send("first\n")?;
            conn.server().send(conn.id(), "by mail\n")?;
            conn.close();
            Ok(())
        })
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("x");
    assert_eq!(client.rest(), "first\nby mail\n");
    drop(client);
    server.stop();
}

#[test]
fn a_mailbox_is_bounded_and_a_task_that_sends_much_goes_before_its_answer() {
    const PART: usize = 600 * 1024;
    const ANSWER: usize = 300 * 1024;
    let (report, refused) = events();
    let server = Server::builder()
        .framing(Framing::lines())
        .on_receive(|conn, _| {
            conn.task(())?;
            Ok(())
        })
        .on_task(move |cx, ()| {
            let (server, id) = (cx.server(), cx.connection_id());
            let mut parts = 0;
            // The client does not read yet, so its outbox and then its mailbox fill up.
            let error = loop {
                match server.send(id, vec![b'p'; PART]) {
                    Ok(()) => parts += 1,
                    Err(error) => break error,
                }
            };
            report.send((parts, error))?;
            Ok(())
        })
        .on_finish(|conn, done| {
            done.into_result()?;
            conn.send(vec![b'a'; ANSWER])?;
            conn.close();
            Ok(())
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("x\n");
    let (parts, error) = refused.next();
    assert_eq!(error, SendError::OutboxFull);
    let everything = client.rest();
    assert_eq!(everything.len(), parts * PART + ANSWER);
    assert!(everything[..parts * PART].bytes().all(|byte| byte == b'p'), "the answer overtook what came before it");
    assert_eq!(server.handle.stats().tasks.finish_errors, 0);
    drop(client);
    server.stop();
}

#[test]
fn an_error_from_on_connect_or_on_receive_flushes_and_closes_with_that_reason() {
    for place in ["connect", "receive"] {
        let (report, closed) = events();
        let fail_at = move |here| if here == place { Err(anyhow::anyhow!("no luck at {here}")) } else { Ok(()) };
        let server = Server::builder()
            .on_connect(move |conn| {
                conn.send("sent before\n")?;
                fail_at("connect")
            })
            .on_receive(move |_, _| fail_at("receive"))
            .on_task(|_, ()| Ok(()))
            .on_close(move |_, reason| {
                let error = match reason {
                    CloseReason::CallbackFailed(error) => error.to_string(),
                    other => format!("{other:?}"),
                };
                Ok(report.send(error)?)
            })
            .bind("127.0.0.1:0")
            .unwrap();
        let server = run(server);
        let mut client = server.client();
        let _ = client.socket.get_mut().write_all(b"x");
        assert_eq!(client.rest(), "sent before\n");
        assert_eq!(closed.next(), format!("no luck at {place}"));
        drop(client);
        server.stop();
    }
}

#[test]
fn a_task_from_on_close_runs_and_its_outcome_is_orphaned() {
    for cancel in [false, true] {
        let (report, ran) = events();
        let server = Server::builder()
            .cancel_on_close(cancel)
            .on_receive(|_, _| Ok(()))
            .on_task(move |_, text: String| Ok(report.send(text)?))
            .on_close(|conn, _| {
                conn.task("a last word".to_owned())?;
                Ok(())
            })
            .bind("127.0.0.1:0")
            .unwrap();
        let server = run(server);
        drop(server.client());
        assert_eq!(ran.next(), "a last word");
        let tasks = server.stop().tasks;
        assert_eq!((tasks.done, tasks.orphaned), (1, 1));
    }
}

/// Uses the server's handle when it is dropped.
struct Nosy(backroom::ServerHandle);

impl Nosy {
    fn look(handle: &backroom::ServerHandle) {
        for connection in handle.connections() {
            let _ = handle.send(connection.id, "");
        }
        assert!(handle.stats().accepted_connections <= 1);
    }
}

impl Drop for Nosy {
    fn drop(&mut self) {
        Nosy::look(&self.0);
    }
}

#[test]
fn no_lock_is_held_while_user_code_runs() {
    let handle: Arc<OnceLock<backroom::ServerHandle>> = Arc::default();
    let early = Arc::clone(&handle);
    let server = Server::builder()
        .session(move |_| Nosy(early.get().unwrap().clone()))
        .on_start(|handle| {
            Nosy::look(handle);
            Ok(())
        })
        .on_connect(|conn| {
            Nosy::look(conn.server());
            Ok(())
        })
        .on_receive(|conn, _| {
            let payload = Nosy(conn.server().clone());
            conn.task(payload)?;
            Ok(())
        })
        .on_task(|cx, _payload| {
            Nosy::look(cx.server());
            Ok(Nosy(cx.server().clone()))
        })
        .on_finish(|conn, _done| {
            Nosy::look(conn.server());
            conn.send("finished\n")?;
            Ok(())
        })
        .on_close(|conn, _| {
            Nosy::look(conn.server());
            Ok(())
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server_handle = server.handle();
    handle.set(server_handle.clone()).unwrap();
    let server = run(server);
    let mut client = server.client();
    assert_eq!(client.ask("x"), "finished");
    // One whose result comes when the connection is gone, so that it is dropped elsewhere.
    client.send("y");
    drop(client);
    eventually("it is closed", || server_handle.stats().connections == 0);
    assert_eq!(server.stop().tasks.done, 2);
}

#[test]
fn close_in_on_connect_is_followed_by_no_other_callback_but_on_close() {
    let (report, closed) = events();
    let server = Server::builder()
        .on_connect(|conn| {
            conn.task(())?;
            conn.send("go away\n")?;
            conn.close();
            Ok(())
        })
        .on_receive(|_, _| panic!("a frame after the close"))
        .on_task(|_, ()| Ok(()))
        .on_finish(|_, _| panic!("an outcome after the close"))
        .on_close(move |_, reason| Ok(report.send(reason.to_string())?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    for _ in 0..20 {
        let mut client = server.client();
        let _ = client.socket.get_mut().write_all(b"x\n");
        assert_eq!(client.rest(), "go away\n");
        assert_eq!(closed.next(), "closed by the server");
    }
    assert_eq!(server.stop().tasks.accepted, 20);
}

#[test]
fn try_task_hands_the_payload_back_at_the_cap_and_takes_no_id() {
    let gate = Gate::default();
    let task_gate = gate.clone();
    let (report, refused) = events();
    let server = Server::builder()
        .task_worker_num(1)
        .max_tasks_in_flight(2)
        .framing(Framing::lines())
        .on_receive(move |conn, _| {
            let first = conn.try_task("a".to_owned())?;
            conn.try_task("b".to_owned())?;
            let error = conn.try_task("c".to_owned()).unwrap_err();
            let next = conn.task("d".to_owned())?;
            assert_eq!(next.sequence(), first.sequence() + 2, "a refused task takes no id");
            Ok(report.send((error.reason(), error.into_payload()))?)
        })
        .on_task(move |_, _| {
            task_gate.pass();
            Ok(())
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("x\n");
    assert_eq!(refused.next(), (TaskError::TooManyInFlight, "c".to_owned()));
    gate.open();
    drop(client);
    assert_eq!(server.stop().tasks.accepted, 3);
}
